"""Keys and defaults of the recipe sections data, policy (with LoRA), workers, ray, eval and rig."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from data.creatures import expanded_kinds
from data.field_docs import KEY_DOCS
from data.typed_recipe import PathText, RecipeError, require_not_negative, require_positive
from rl.recipe.rewards import DeformationRecipe, RewardsRecipe
from rl.recipe.run_control import ProfileRecipe, ReportRecipe, TrainGuardRecipe
from rl.recipe.train import train_docs
from rl.recipe.tuning import TuningRecipe, check_tune_steps


@dataclass(frozen=True)
class DataRecipe:
    """The meshes to rig, for training and held out for evaluation."""

    meshes: PathText | list[PathText] | None = None
    """Training meshes: files, folders, patterns or a list of them; a folder made by `python -m data.prepare`
    gives its training split; null for procedural creatures. Source: this project."""

    eval_meshes: PathText | list[PathText] | None = None
    """Held-out meshes, given as in `data.meshes`; a prepared folder gives its held-out split. null holds out
    `data.eval_count` meshes: creatures of other seeds, or some of `data.meshes`. Source: this project."""

    train_count: int = 64
    """Procedural creatures to train on if `data.meshes` is null; above 0. Source: this project."""

    eval_count: int = 16
    """Meshes to hold out if `data.eval_meshes` is null; above 0. At most half of the files are held out (a
    single mesh is used for both training and evaluation); of each prepared folder, up to this many of its
    held-out split. Source: this project."""

    seed: int = 0
    """Seed of the creatures, the surface points and the split; at least 0. Source: this project."""

    points: int = 1024
    """Surface points of a mesh that the policy sees (N); above 0; released models use 54,000. Source:
    specification, section 3."""

    class_name: str | None = "articulation"
    """Class token of the prompt: a class of the policy's vocabulary, or null for none. Source: specification,
    section 9.2."""

    max_faces: int = 1_000_000
    """Meshes with more faces are skipped; above 0. Source: this project."""

    max_megabytes: int = 512
    """Mesh files larger than this are skipped, MiB; above 0. Source: this project."""

    up: Literal["y", "z"] | None = None
    """Axis that points up in mesh files of formats without a convention (OBJ, PLY, STL, OFF); `z` turns them
    to y-up, null means `y`. glTF files, prepared folders and creatures are y-up. Source: this project."""

    max_turn_deg: float = 0.0
    """Each creature is turned about the up axis by a random angle up to this, degrees; 0 to 180. Source: this
    project."""

    skeleton: Literal["given"] | None = None
    """`given`: training rollouts get the skeleton of the mesh's rig as part of the prompt, so that only
    SkinTokens are sampled and trained; meshes without a rig are skipped. null: whole rigs are sampled.
    Source: specification, section 9.2 (prompt with a complete skeleton)."""

    max_quarantined: float = 0.1
    """Quarantined meshes after which the run stops: a share of all meshes below 1 (at least one mesh), else a
    number; at least 0. A mesh is quarantined when workers die or hang on it twice: it is listed in
    `output_dir/quarantine.json` and its rigs are not scored any more. Source: this project."""

    kinds: tuple[str, ...] | None = None
    """Creature kinds to cycle through, such as `[quadruped, biped]`; a kind listed twice comes twice as
    often, and `lifelike` stands for all kinds that look like game artists' rigs. null lets each seed choose
    among the others. Source: this project."""

    def __post_init__(self) -> None:
        require_positive("data", self, "train_count", "eval_count", "points", "max_faces", "max_megabytes")
        require_not_negative("data", self, "seed", "max_quarantined")
        if not 0 <= self.max_turn_deg <= 180:
            raise RecipeError(f"'data.max_turn_deg' must be between 0 and 180, not {self.max_turn_deg}")
        for name in ("meshes", "eval_meshes"):
            if getattr(self, name) == []:
                raise RecipeError(
                    f"'data.{name}' is an empty list; list files, folders or patterns, or set it to null"
                )
        if self.up == "z" and self.meshes is None and self.eval_meshes is None:
            raise RecipeError(
                "'data.up' is z but there are only procedural creatures, which are y-up; set data.meshes, or "
                "rig.up for rl.rig"
            )
        try:
            expanded_kinds(self.kinds or ())
        except ValueError as error:
            raise RecipeError(f"'data.kinds': {error}") from None


@dataclass(frozen=True)
class LoraRecipe:
    """Low-rank adapters (PEFT) on the language model's linear layers."""

    rank: int = 16
    """Rank of the adapters; above 0. Source: PEFT (`r`)."""

    alpha: int = 32
    """Scale of the adapters, which add `alpha / rank` times their product; above 0. Source: PEFT
    (`lora_alpha`)."""

    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Names of the linear layers that get an adapter; at least one. Source: PEFT."""

    def __post_init__(self) -> None:
        require_positive("policy.lora", self, "rank", "alpha")
        if not self.target_modules:
            raise RecipeError(
                "'policy.lora.target_modules' is empty; name at least one layer, such as q_proj"
            )


@dataclass(frozen=True)
class PolicyRecipe:
    """The policy to refine, and which of its weights are trained."""

    path: PathText = "checkpoints/small"
    """Policy directory: TokenRig, its tokenizer and the skin VAE. Source: this project."""

    skin_vae: PathText | None = None
    """Directory of another skin VAE to decode SkinTokens with; null for the policy's own. Source: this
    project."""

    grammar: Literal["strict", "released", "fork"] = "strict"
    """Token sequences that sampling allows: `strict`, only complete rigs; `released`, as the released system
    does; `fork`, as its later fork does. Source: specification, sections 9.3 to 9.5; `strict` is this
    project's."""

    train_mesh_encoder: bool = False
    """Train the mesh encoder and its output projection too, with `lora` in full beside the adapters;
    otherwise they are frozen. Source: this project."""

    lora: LoraRecipe | None = None
    """Train adapters instead of all weights of the language model; `{}` for adapters with the defaults below,
    null for full fine-tuning. Source: PEFT."""


@dataclass(frozen=True)
class RolloutRecipe:
    """How rigs are sampled; every engine samples the distribution that is trained."""

    engine: Literal["auto", "fast", "plain"] = "auto"
    """`fast` keeps each mesh's prefix once and samples on weights prepared for it; `plain` runs the model
    itself, the reference; `auto` is `fast`, unless on CUDA it fails its check at the start of the run, which
    is reported. Source: this project."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Weights and caches of the fast engine. `auto`: bfloat16 with `train.bf16`, else float32. Source: this
    project."""

    batch_size: int | None = None
    """Rigs sampled at once; at least 1, or null for all of a step's. Source: this project."""

    def __post_init__(self) -> None:
        if self.batch_size is not None:
            require_positive("rollout", self, "batch_size")


@dataclass(frozen=True)
class LogProbsRecipe:
    """How log-probabilities of rollouts are computed in training: current, old and reference."""

    engine: Literal["auto", "fast", "plain"] = "auto"
    """`fast` runs each mesh's prefix once for its group and no padding: in float32 on a CPU, in bfloat16 or
    float16 on a GPU; `plain` runs every row with its own prefix, the reference; `auto` is `fast` where it
    runs and, on CUDA, passes its check at the first step, else `plain`, which is reported. Source: this
    project."""


@dataclass(frozen=True)
class WorkersRecipe:
    """Where rewards are computed, and what happens when that fails."""

    backend: Literal["ray", "inline"] = "ray"
    """`ray` scores in actors while training continues; `inline` scores in the training process, with the same
    results. Source: this project."""

    count: int = 2
    """Ray actors that score, and groups that a CPU decodes at once; above 0. Source: this project."""

    timeout_s: float = 300.0
    """Longest time that a worker may take to prepare a mesh, to decode a group or to score its share of one,
    seconds; above 0. A worker that takes longer is killed and replaced, and its rigs are scored again. Once
    such tasks have finished, a worker gets ten times as long as the slowest of them took for the same amount
    of work, if that is shorter. Source: this project."""

    min_deadline_s: float = 30.0
    """A worker gets at least this many seconds, however fast earlier ones were; above 0. An idle worker that
    does not answer for this long is replaced too. Source: this project."""

    startup_timeout_s: float = 300.0
    """Limit for starting or restarting the workers (imports, compilation, model), seconds; above 0. Source:
    this project."""

    retries: int = 2
    """How often a group is scored again after its own mesh stopped a worker, or after `timeout_s` in which no
    worker did anything; at least 0. Rollouts that still fail are dropped from their group. Groups that lost
    a worker through no fault of theirs are always scored again. Source: this project."""

    max_restarts: int = 20
    """Workers replaced, dead or hung, after which the run stops; at least 0. The budget for failures of the
    infrastructure: it counts from the start of the command. Source: this project."""

    max_failed_batches: int = 3
    """Consecutive batches without any score after which the run stops; above 0. Batches of quarantined meshes
    do not count. Source: this project."""

    decoder_device: str = "cpu"
    """Device on which SkinTokens are decoded: `cpu`, `cuda` or `cuda:N`. Source: this project."""

    decoder_dtype: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Dtype of the skin decoder's matrix products. `tf32` needs CUDA. `bfloat16` is the fastest; rewards then
    differ by rounding (docs/decoder_study.md). Source: this project."""

    def __post_init__(self) -> None:
        require_positive(
            "workers",
            self,
            *("count", "timeout_s", "min_deadline_s", "startup_timeout_s", "max_failed_batches"),
        )
        require_not_negative("workers", self, "retries", "max_restarts")


@dataclass(frozen=True)
class RayRecipe:
    """The Ray cluster of the reward workers."""

    address: str | None = None
    """Address of a running cluster, or `auto`; null starts a local one for this run. Source: Ray."""

    namespace: str = "tokenrig-rl"
    """Ray namespace of the reward actors. Source: Ray."""


@dataclass(frozen=True)
class EvalRecipe:
    """Evaluation on held-out meshes, with the same seeds for every policy (docs/metrics.md)."""

    samples: int = 2
    """Sampled rigs per mesh; above 0. Greedy and beam decoding always give one rig. Source: this project."""

    best_of: int = 1
    """Each rig is the one with the highest total reward of this many candidates; above 0; more than 1 needs
    `sampled` decoding at a temperature above 0. Source: this project."""

    decoding: Literal["sampled", "greedy", "beam"] = "sampled"
    """`sampled`; `greedy`, the most likely token at each step; or `beam`, beam search. Source: this project;
    the released demo samples with beams (specification, section 9.6)."""

    temperature: float = 1.0
    """Temperature of sampled decoding; at least 0, and 0 is greedy. Source: this project."""

    tune_steps: int = 0
    """Each rig is the best of tuning to its mesh in this many steps, each with `eval.best_of` more rigs; at
    least 0; in `python -m rl.evaluate` only. `tuning_gain` is its total reward less that of the best of as
    many rigs without tuning (docs/metrics.md). Source: this project."""

    beams: int = 4
    """Beams of beam search; above 0. Source: this project."""

    length_penalty: float = 1.0
    """Beams are ranked by log-probability divided by length to this power; at least 0. Source:
    transformers."""

    seed: int = 1234
    """Seed of rollouts and poses; at least 0. Source: this project."""

    batch_size: int = 64
    """Rigs, or beams, decoded at once; above 0. Source: this project."""

    skeleton: Literal["given"] | None = None
    """`given`: rigs get the skeleton of the mesh's ground truth and are compared in skin and motion only,
    without pairing of joints; meshes without a rig are skipped. null: the policy writes the skeleton.
    Source: SkinTokens, table 4."""

    metrics: bool = True
    """Compare rigs with the ground truth of meshes that have one: skeleton, skin and motion metrics. Source:
    specification, section 17."""

    metric_vertices: int | None = 256
    """Maximum number of vertices per mesh at which skinning weights are compared; above 0, null for all, as
    in published tables. Source: this project."""

    skin_convention: Literal["plain", "puppeteer", "puppeteer_modelsresource"] = "plain"
    """How skin scores are counted. `plain`: an influence is a weight above 0.01. `puppeteer`: predictions are
    pruned and vertices selected as in Puppeteer's evaluation; `puppeteer_modelsresource`: the same, with its
    threshold for ModelsResource. Source: specification, section 17."""

    compare: tuple[PathText, ...] = ()
    """Additional policy directories that `python -m rl.evaluate` compares with `policy.path`. Source: this
    project."""

    before_and_after: bool = True
    """Evaluate before and after training. Source: this project."""

    every: int = 0
    """Also evaluate during training: before the first step, after each multiple of this many steps and after
    the last; 0 for never. The means are logged as `eval/<measure>` (docs/watching_a_run.md). Source: this
    project."""

    every_samples: int = 1
    """`eval.samples` of the evaluations during training; above 0. Source: this project."""

    every_meshes: int | None = None
    """Held-out meshes of the evaluations during training, spread evenly over all; above 0, or null for all.
    Source: this project."""

    best_by: str = "total"
    """Measure by which the evaluations during training choose the policy that is kept in `policy_best/`: a
    reward, `total`, `valid` or a metric, also with `_valid`, as docs/watching_a_run.md lists them. The
    measure knows whether higher or lower is better. Source: this project."""

    sheets: int = 0
    """Held-out meshes, spread evenly over all, of which `python -m rl.evaluate` draws one rig per policy at
    rest and posed, to `output_dir/sheets/`; at least 0. Source: this project."""

    def __post_init__(self) -> None:
        limits = [n for n in ("metric_vertices", "every_meshes") if getattr(self, n) is not None]
        require_positive("eval", self, "samples", "best_of", "beams", "batch_size", "every_samples", *limits)
        require_not_negative(
            "eval", self, "temperature", "tune_steps", "length_penalty", "seed", "every", "sheets"
        )
        if self.best_of > 1 and (self.decoding != "sampled" or self.temperature == 0):
            how = "eval.decoding=sampled" if self.decoding != "sampled" else "an 'eval.temperature' above 0"
            raise RecipeError(
                f"'eval.best_of' is {self.best_of} but every rig of a mesh would be the same; "
                f"set {how} or eval.best_of=1"
            )
        check_tune_steps("eval", self.tune_steps, "best_of", self.best_of, self.temperature)
        if self.tune_steps and self.sheets:
            raise RecipeError(
                "'eval.sheets' draws rigs of the policy as it is, without 'eval.tune_steps'; set one to 0"
            )


@dataclass(frozen=True)
class RigRecipe:
    """Rigging one mesh file with `python -m rl.rig`."""

    mesh: PathText | None = None
    """Mesh file to rig; `rl.rig` requires it. Source: this project."""

    out: PathText | None = None
    """GLB file to write, with a picture next to it; null for `<mesh>_rigged.glb` next to the mesh. Source:
    this project."""

    skeleton: PathText | None = None
    """Skeleton to keep: `own`, that of `rig.mesh`, or a file with one (GLB, glTF or VRM with a skin, JSON,
    prepared rig NPZ) in the frame and unit of the mesh file. The policy only skins it. null: the policy
    writes the skeleton. Source: this project."""

    up: Literal["y", "z"] | None = None
    """Axis that points up in an OBJ, PLY, STL or OFF file; `z` turns the mesh to y-up, also in the GLB that
    is written; null means `y`. glTF files are y-up by standard: `z` is refused. Source: this project."""

    candidates: int = 8
    """Rigs to sample, of which the one with the highest total reward is written; above 0. Source: this
    project."""

    temperature: float = 1.0
    """Sampling temperature; at least 0, and 0 is greedy. Source: this project."""

    tune_steps: int = 0
    """Steps of tuning to the mesh, each with `rig.candidates` more rigs; at least 0. As many rigs are sampled
    without tuning, to say what it gained; the best of all is written. The tuned weights are thrown away
    (docs/rigging.md). Source: this project."""

    seed: int = 0
    """Seed of the candidates and their poses; at least 0. Source: this project."""

    keep_skin: bool = False
    """Keep the old skin of a rigged glTF file. The new skin is the one in use either way. By default the old
    one is removed: its entry, its vertex attributes, its joint nodes except those that carry a mesh, camera
    or light, and their animations; the rest of the file stays, and so do the unused bytes of its accessors.
    With true, its entry, joints and animations stay, though no mesh uses them, and its vertex attributes stay
    as `_JOINTS_0` and `_WEIGHTS_0`. Source: this project."""

    sheet: bool = False
    """Also draw the rig at rest, its skin and three poses, to a PNG named after `rig.out`, `_sheet.png`
    instead of `.glb`. Source: this project."""

    viewer: bool = False
    """Also write an interactive 3D viewer of the rig next to `rig.out`, as `.html`: one page without links to
    anything else. Source: this project."""

    def __post_init__(self) -> None:
        require_positive("rig", self, "candidates")
        require_not_negative("rig", self, "temperature", "seed", "tune_steps")
        check_tune_steps("rig", self.tune_steps, "candidates", self.candidates, self.temperature)


@dataclass(frozen=True)
class Recipe:
    """One GRPO run; evaluation and rigging use the same recipe."""

    output_dir: PathText = "outputs/grpo"
    """Directory for checkpoints, metrics and the refined policy. Source: this project."""

    data: DataRecipe = field(default_factory=DataRecipe)
    """Meshes to train on and to evaluate with."""

    policy: PolicyRecipe = field(default_factory=PolicyRecipe)
    """Policy to refine."""

    rewards: RewardsRecipe = field(default_factory=RewardsRecipe)
    """Rewards and their weights."""

    deformation: DeformationRecipe = field(default_factory=DeformationRecipe)
    """Poses of the smoothness reward."""

    rollout: RolloutRecipe = field(default_factory=RolloutRecipe)
    """Sampling of rigs, in training, evaluation and rigging."""

    log_probs: LogProbsRecipe = field(default_factory=LogProbsRecipe)
    """Log-probabilities in training."""

    workers: WorkersRecipe = field(default_factory=WorkersRecipe)
    """Reward workers."""

    ray: RayRecipe = field(default_factory=RayRecipe)
    """Ray cluster."""

    eval: EvalRecipe = field(default_factory=EvalRecipe)
    """Evaluation."""

    report: ReportRecipe = field(default_factory=ReportRecipe)
    """Rollouts to keep, and the page of a run."""

    rig: RigRecipe = field(default_factory=RigRecipe)
    """Rigging one mesh."""

    tuning: TuningRecipe = field(default_factory=TuningRecipe)
    """Tuning to one mesh, in rigging and evaluation."""

    train: dict[str, Any] = field(default_factory=dict, metadata={KEY_DOCS: train_docs})
    """TRL's GRPOConfig, under TRL's names; keys that are not set take this project's defaults, then TRL's.
    Source: TRL."""

    train_guard: TrainGuardRecipe = field(default_factory=TrainGuardRecipe)
    """Non-finite steps, and saving and stopping by the clock."""

    profile: ProfileRecipe = field(default_factory=ProfileRecipe)
    """Profiling of some steps."""

    resume: bool = True
    """Resume from the last checkpoint in `output_dir`, if there is one; false starts over and moves the
    earlier run's checkpoints, metrics and recipe to `previous-N/`. Source: this project."""
