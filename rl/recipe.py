"""The GRPO recipe: every key, its default and its meaning. Defaults live here and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from data.creatures import CREATURE_KINDS
from data.typed_recipe import RecipeError, build, check_types, read_recipe
from rewards.guards import GUARD_NAMES
from rewards.recorded_poses import PoseFileError, load_recorded_poses
from rewards.settings import REWARD_NAMES, RewardSettings


def _positive(section: str, owner: object, *names: str) -> None:
    for name in names:
        if not getattr(owner, name) > 0:
            raise RecipeError(f"'{section}.{name}' must be above 0, not {getattr(owner, name)}")


def _not_negative(section: str, owner: object, *names: str) -> None:
    for name in names:
        if not getattr(owner, name) >= 0:
            raise RecipeError(f"'{section}.{name}' must not be negative, not {getattr(owner, name)}")


@dataclass(frozen=True)
class DataRecipe:
    """Meshes to rig. `meshes`: a pattern, path or list of them; null: procedural creatures by seed.

    `eval_meshes`: those held out, likewise. With null creatures of other seeds are held out from creatures,
    and from files `eval_count`, but no more than half (a single mesh serves both). A folder made by
    `python -m data.prepare` means its rigs, those for training in `meshes` and those held out in
    `eval_meshes`; with null up to `eval_count` of the latter are.
    `points` is N, the surface points a mesh is shown with. `max_turn_deg` turns each creature about the
    up axis by an angle up to that, drawn from its seed; `kinds` are the creatures' kinds, null for all.
    """

    meshes: str | list[str] | None = None
    eval_meshes: str | list[str] | None = None
    train_count: int = 64
    eval_count: int = 16
    seed: int = 0
    points: int = 1024
    class_name: str | None = "articulation"
    max_faces: int = 1_000_000
    max_megabytes: int = 512
    max_turn_deg: float = 0.0
    kinds: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _positive("data", self, "train_count", "eval_count", "points", "max_faces", "max_megabytes")
        if not 0 <= self.max_turn_deg <= 180:
            raise RecipeError(f"'data.max_turn_deg' must be 0 to 180, not {self.max_turn_deg}")
        for name in ("meshes", "eval_meshes"):
            if getattr(self, name) == []:
                raise RecipeError(f"'data.{name}' names nothing; give files, folders or patterns, or null")
        for kind in self.kinds or ():
            if kind not in CREATURE_KINDS:
                raise RecipeError(f"'data.kinds' has '{kind}'; choose from {', '.join(CREATURE_KINDS)}")


@dataclass(frozen=True)
class LoraRecipe:
    """Low-rank adapters (PEFT) on the language model's linear layers instead of full fine-tuning."""

    rank: int = 16
    alpha: int = 32
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")

    def __post_init__(self) -> None:
        _positive("policy.lora", self, "rank", "alpha")
        if not self.target_modules:
            raise RecipeError("'policy.lora.target_modules' is empty; name at least one layer such as q_proj")


@dataclass(frozen=True)
class PolicyRecipe:
    """The policy to refine. The mesh encoder stays frozen unless `train_mesh_encoder`."""

    path: str = "checkpoints/small"
    skin_vae: str | None = None
    grammar: Literal["strict", "released", "fork"] = "strict"
    train_mesh_encoder: bool = False
    lora: LoraRecipe | None = None


@dataclass(frozen=True)
class CoverageRecipe:
    """Volumetric joint coverage [R_vj]; alpha per `distance_unit`."""

    weight: float = 5.0
    alpha: float = 0.05
    distance_unit: Literal["cells", "mesh"] = "cells"


@dataclass(frozen=True)
class ContainmentRecipe:
    """Bone containment [R_vk]: each bone is probed at `samples_per_bone` + 1 points."""

    weight: float = 1.0
    samples_per_bone: int = 10


@dataclass(frozen=True)
class SparsityRecipe:
    """Skin coverage and sparsity [R_sc]; threshold is the paper's beta, the powers its alpha_z, alpha_m."""

    weight: float = 1.0
    threshold: float = 0.1
    max_influences: int = 4
    unbound_power: float = 1.0
    crowded_power: float = 1.0


@dataclass(frozen=True)
class SmoothnessRecipe:
    """Deformation smoothness [R_mo]; poses are described under `deformation`."""

    weight: float = 1.0
    scale: float = 1.0
    reduce: Literal["max", "mean"] = "max"


@dataclass(frozen=True)
class BoneInfluenceRecipe:
    """Opt-in guard: share of bones that are the strongest on at least `min_vertices` scoring vertices."""

    weight: float = 0.0
    min_vertices: int = 1


@dataclass(frozen=True)
class JointCountPriorRecipe:
    """Opt-in guard: how usual the number of joints is; 0.61 at `factor` times `expected`, or a `factor`th."""

    weight: float = 0.0
    expected: float = 30.0
    factor: float = 2.0


@dataclass(frozen=True)
class RewardsRecipe:
    """The four rewards and two opt-in guards (docs/rewards.md).

    The total is their weighted sum, 0 for a rig that does not decode.
    """

    coverage: CoverageRecipe = field(default_factory=CoverageRecipe)
    containment: ContainmentRecipe = field(default_factory=ContainmentRecipe)
    sparsity: SparsityRecipe = field(default_factory=SparsityRecipe)
    smoothness: SmoothnessRecipe = field(default_factory=SmoothnessRecipe)
    bone_influence: BoneInfluenceRecipe = field(default_factory=BoneInfluenceRecipe)
    joint_count_prior: JointCountPriorRecipe = field(default_factory=JointCountPriorRecipe)
    resolution: int = 196
    interior: Literal["projection", "flood", "surface"] = "projection"
    max_scoring_vertices: int = 16_384

    def __post_init__(self) -> None:
        _positive("rewards", self, "resolution", "max_scoring_vertices")
        for name in (*REWARD_NAMES, *GUARD_NAMES):
            if getattr(self, name).weight < 0:
                raise RecipeError(
                    f"'rewards.{name}.weight' must not be negative, not {getattr(self, name).weight}"
                )
        if not any(self.weights.values()):
            raise RecipeError("every reward weight is 0; set at least one 'rewards.<name>.weight' above 0")

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each of the four rewards, then of the guards that have one."""
        return {name: getattr(self, name).weight for name in (*REWARD_NAMES, *self.guards)}

    @property
    def guards(self) -> tuple[str, ...]:
        """The guards that are asked for: those with a weight."""
        return tuple(name for name in GUARD_NAMES if getattr(self, name).weight > 0)


@dataclass(frozen=True)
class DeformationRecipe:
    """Poses for the smoothness reward.

    `poses` is a number of random poses, with rotations up to `max_angle_deg` about random axes; or an NPZ
    file of recorded joint rotations (rewards/recorded_poses.py), of which `frames` are drawn each time.
    """

    poses: int | str = 5
    max_angle_deg: float = 30.0
    frames: int = 5

    def __post_init__(self) -> None:
        _positive("deformation", self, "frames", *([] if isinstance(self.poses, str) else ["poses"]))


@dataclass(frozen=True)
class WorkersRecipe:
    """Where rewards are computed. `ray`: actors beside the training; `inline`: in this process.

    `retries` count system failures (a dead worker, a time-out); rows that still fail are left out of
    their group, and `max_failed_batches` batches in a row without any score stop the run.
    """

    backend: Literal["ray", "inline"] = "ray"
    count: int = 2
    timeout_s: float = 300.0
    retries: int = 2
    max_failed_batches: int = 3
    decoder_device: str = "cpu"

    def __post_init__(self) -> None:
        _positive("workers", self, "count", "timeout_s", "max_failed_batches")
        _not_negative("workers", self, "retries")


@dataclass(frozen=True)
class RayRecipe:
    """Ray cluster: null starts an embedded local one; otherwise its address (or `auto`)."""

    address: str | None = None
    namespace: str = "tokenrig-rl"


@dataclass(frozen=True)
class EvalRecipe:
    """Evaluation on held-out meshes, with the same seeds for every policy (docs/metrics.md).

    `samples` rigs per mesh count. With `best_of` N, each is the one of N sampled rigs with the highest total
    reward. `decoding`: `sampled` at `temperature`; `greedy`, the likeliest token each time; `beam`, a beam of
    `beams` ranked by log-probability over length to the power of `length_penalty`. The latter two give one
    rig per mesh, whatever `samples`. `batch_size`: rigs (or beams) decoded at once.
    `metrics`: also measure rigs against the meshes' known ones, with skin weights at up to `metric_vertices`
    vertices of each. `compare`: for `rl.evaluate`, further policies to set beside `policy.path`.
    """

    samples: int = 2
    best_of: int = 1
    decoding: Literal["sampled", "greedy", "beam"] = "sampled"
    temperature: float = 1.0
    beams: int = 4
    length_penalty: float = 1.0
    seed: int = 1234
    batch_size: int = 64
    metrics: bool = True
    metric_vertices: int = 256
    compare: tuple[str, ...] = ()
    before_and_after: bool = True

    def __post_init__(self) -> None:
        _positive("eval", self, "samples", "best_of", "beams", "batch_size", "metric_vertices")
        _not_negative("eval", self, "temperature", "length_penalty")
        if self.best_of > 1 and (self.decoding != "sampled" or self.temperature == 0):
            how = "eval.decoding=sampled" if self.decoding != "sampled" else "an 'eval.temperature' above 0"
            raise RecipeError(
                f"'eval.best_of' is {self.best_of} but every rig of a mesh would be the same; "
                f"set {how} or eval.best_of=1"
            )


@dataclass(frozen=True)
class RigRecipe:
    """For `rl.rig`: the mesh file to rig, and how. `out` null: `<mesh>_rigged.glb` beside it.

    Of `candidates` sampled rigs the one with the highest total reward is kept; `temperature` 0 takes the
    likeliest tokens.
    """

    mesh: str | None = None
    out: str | None = None
    candidates: int = 8
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _positive("rig", self, "candidates")
        if self.temperature < 0:
            raise RecipeError(f"'rig.temperature' must be at least 0, not {self.temperature}")


@dataclass(frozen=True)
class Recipe:
    """A whole run. `train` is TRL's GRPOConfig, with its names; `output_dir` receives everything.

    `resume`: go on from the newest checkpoint in `output_dir`, if there is one; false: start over, with what
    was there kept aside.
    `rollout_batch_size`: rigs sampled at once, null for all of a step's.
    """

    output_dir: str = "outputs/grpo"
    data: DataRecipe = field(default_factory=DataRecipe)
    policy: PolicyRecipe = field(default_factory=PolicyRecipe)
    rewards: RewardsRecipe = field(default_factory=RewardsRecipe)
    deformation: DeformationRecipe = field(default_factory=DeformationRecipe)
    workers: WorkersRecipe = field(default_factory=WorkersRecipe)
    ray: RayRecipe = field(default_factory=RayRecipe)
    eval: EvalRecipe = field(default_factory=EvalRecipe)
    rig: RigRecipe = field(default_factory=RigRecipe)
    train: dict[str, Any] = field(default_factory=dict)
    rollout_batch_size: int | None = None
    resume: bool = True

    def __post_init__(self) -> None:
        if self.rollout_batch_size is not None and self.rollout_batch_size < 1:
            raise RecipeError(f"'rollout_batch_size' must be above 0 or null, not {self.rollout_batch_size}")


# What this project needs TRL to do differently from TRL's own defaults; a recipe may override all but
# those in _FIXED. bf16 and gradient checkpointing are the GPU recipes' choice, not a default.
TRAIN_DEFAULTS: dict[str, Any] = {
    "learning_rate": 1e-6,
    "num_generations": 24,
    "per_device_train_batch_size": 24,
    "gradient_accumulation_steps": 1,
    "max_completion_length": 2048,
    "max_steps": 1400,
    "beta": 0.1,
    "epsilon": 0.2,
    "loss_type": "grpo",
    "temperature": 1.0,
    "bf16": False,
    "gradient_checkpointing": False,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_steps": 100,
    "save_total_limit": 2,
    "report_to": "none",
    "seed": 42,
    "remove_unused_columns": False,
    "dataloader_pin_memory": False,
    "ddp_find_unused_parameters": False,  # every trained weight takes part in every pass
    "log_completions": False,
    "disable_tqdm": False,
}

_ONE_DISTRIBUTION = "sampling and training must use one distribution"
_OWN_SAMPLER = "the rollout is this project's own sampler"
_OWN_EVALUATION = "held-out meshes are evaluated before and after training, see 'eval'"

# What cannot be had here: the value that stays, and why. A recipe that asks for another is refused rather
# than silently ignored.
_FIXED: dict[str, tuple[Any, str]] = {
    "top_p": (1.0, _ONE_DISTRIBUTION),
    "top_k": (0, _ONE_DISTRIBUTION),
    "min_p": (None, _ONE_DISTRIBUTION),
    "repetition_penalty": (1.0, _ONE_DISTRIBUTION),
    "use_vllm": (False, _OWN_SAMPLER),
    "use_transformers_continuous_batching": (False, _OWN_SAMPLER),
    "use_transformers_paged": (False, _OWN_SAMPLER),
    "generation_kwargs": (None, _OWN_SAMPLER),
    "cache_implementation": (None, _OWN_SAMPLER),
    "chat_template_kwargs": (None, "prompts are no conversations"),
    "use_liger_kernel": (False, "the log-probabilities are grammar-masked by the model itself"),
    "model_init_kwargs": (None, "the policy is loaded as 'policy' says, and its reference alike"),
    "pad_to_multiple_of": (None, "a prompt begins with its mesh"),
    "remove_unused_columns": (False, "the rewards read every column"),
    "num_train_epochs": (3.0, "a run's length is 'train.max_steps'"),
    "shuffle_dataset": (False, "the order of the meshes is this project's, so that a resumed run keeps it"),
    "eval_strategy": ("no", _OWN_EVALUATION),
    "eval_on_start": (False, _OWN_EVALUATION),
    "load_best_model_at_end": (False, "there is no evaluation between steps to choose by"),
}

# Keys of `train` that another key of the recipe sets.
_ELSEWHERE = {
    "output_dir": "'output_dir' at the top of the recipe",
    "reward_weights": "'rewards.<name>.weight'",
    "resume_from_checkpoint": "'resume' at the top of the recipe",
}


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, overlay, override and check a GRPO recipe.

    Raises:
        RecipeError: naming the key that is unknown, of a wrong type or not allowed.
    """
    values = read_recipe(path, overrides)
    recipe = build(Recipe, values)
    return check_recipe(recipe)


def check_recipe(recipe: Recipe) -> Recipe:
    """Check the `train` section against GRPOConfig and fill in this project's defaults."""
    from trl import GRPOConfig  # seconds to import: only when a recipe is really used

    given = recipe.train
    check_types(GRPOConfig, given, "train")
    for key, place in _ELSEWHERE.items():
        if key in given:
            raise RecipeError(f"'train.{key}' is set by {place}; use that")
    for key, (value, reason) in _FIXED.items():
        if key in given and given[key] != value:
            raise RecipeError(f"'train.{key}' must stay {value!r}: {reason}")
    for key in given:
        if key.startswith("vllm_"):
            raise RecipeError(f"'train.{key}' has no effect here, leave it out: {_OWN_SAMPLER}")
    merged = {**TRAIN_DEFAULTS, **given}
    if merged["temperature"] <= 0:
        raise RecipeError(f"'train.temperature' must be above 0, not {merged['temperature']}")
    if merged["max_steps"] <= 0:
        raise RecipeError(f"'train.max_steps' must be above 0, not {merged['max_steps']}")
    _check_group(merged)
    _check_reporting(merged["report_to"])
    reward_settings(recipe)
    return replace(recipe, train=merged)


def _check_group(train: Mapping[str, Any]) -> None:
    """Refuse groups that do not fill whole batches of rollouts."""
    group = train["num_generations"]
    if group < 2:
        raise RecipeError(f"'train.num_generations' must be at least 2 (rigs are compared), not {group}")
    rows, processes = train["per_device_train_batch_size"], int(os.environ.get("WORLD_SIZE", "1"))
    steps = train.get("steps_per_generation") or train["gradient_accumulation_steps"]
    batch = train.get("generation_batch_size") or rows * processes * steps
    if batch % group:
        made_of = (
            "generation_batch_size"
            if train.get("generation_batch_size")
            else f"per_device_train_batch_size {rows} x {processes} processes x {steps} batches"
        )
        raise RecipeError(
            f"'train.num_generations' {group} does not divide the {batch} rollouts of a step ({made_of}); "
            "change one of them"
        )


def _check_reporting(report_to: str | Sequence[str] | None) -> None:
    """Refuse a reporter that is unknown or not installed."""
    names = [report_to] if isinstance(report_to, str) else list(report_to or [])
    if set(names) <= {"none", "all"}:
        return
    from transformers.integrations import get_available_reporting_integrations

    for name in names:
        if name not in get_available_reporting_integrations():
            how = "pip install 'tokenrig-rl[wandb]', or" if name == "wandb" else "install its package, or"
            raise RecipeError(
                f"'train.report_to' asks for {name}, which is not installed here; {how} use none"
            )


def reward_settings(recipe: Recipe) -> RewardSettings:
    """The reward workers' settings of a recipe (RecipeError if a value is out of range)."""
    rewards, deformation = recipe.rewards, recipe.deformation
    recorded = isinstance(deformation.poses, str)
    try:
        if recorded:
            load_recorded_poses(str(deformation.poses))  # refuse a bad file now rather than in a worker
        return RewardSettings(
            resolution=rewards.resolution,
            interior=rewards.interior,
            alpha=rewards.coverage.alpha,
            distance_unit=rewards.coverage.distance_unit,
            samples_per_bone=rewards.containment.samples_per_bone,
            threshold=rewards.sparsity.threshold,
            max_influences=rewards.sparsity.max_influences,
            unbound_power=rewards.sparsity.unbound_power,
            crowded_power=rewards.sparsity.crowded_power,
            poses=deformation.frames if recorded else int(deformation.poses),
            pose_file=str(deformation.poses) if recorded else None,
            guards=rewards.guards,
            min_owned_vertices=rewards.bone_influence.min_vertices,
            expected_joints=rewards.joint_count_prior.expected,
            joint_count_factor=rewards.joint_count_prior.factor,
            max_angle_deg=deformation.max_angle_deg,
            smoothness_scale=rewards.smoothness.scale,
            reduce=rewards.smoothness.reduce,
            max_scoring_vertices=rewards.max_scoring_vertices,
        )
    except PoseFileError as error:
        raise RecipeError(f"'deformation.poses': {error}") from error
    except ValueError as error:
        raise RecipeError(f"rewards or deformation: {error}") from error


def total_reward(rewards: Mapping[str, float], recipe: RewardsRecipe) -> float:
    """The weighted sum GRPO optimises."""
    return sum(weight * rewards[name] for name, weight in recipe.weights.items())


def grpo_arguments(recipe: Recipe) -> dict[str, Any]:
    """Keyword arguments for GRPOConfig."""
    fixed = {key: value for key, (value, _) in _FIXED.items()}
    return {
        **fixed,
        **recipe.train,
        # A checkpoint under way, the model card, tables of completions; see rl/checkpoints.py.
        "output_dir": os.path.join(recipe.output_dir, "trainer"),
        "reward_weights": list(recipe.rewards.weights.values()),
    }
