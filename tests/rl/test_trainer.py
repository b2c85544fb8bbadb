"""The seams to TRL: log-probabilities, what trains, reference, rewards, metrics."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from trl import GRPOConfig

from data.command_line import RunFailedError, run_command
from policy.bundle import RigPolicy, load, load_model
from policy.tokenrig.modeling import TokenRigForCausalLM
from rewards.service import InlineRewardService
from rewards.worker import INVALID, UNSCORED, GroupScore, RewardMesh, RolloutRig, RolloutScore
from rl.mesh_bank import MeshBank
from rl.mesh_schedule import mesh_schedule, schedule_length
from rl.meshes import load_meshes, prepare_meshes
from rl.policy_setup import load_policy
from rl.recipe import Recipe, grpo_arguments, reward_settings
from rl.reporting import MetricsLog
from rl.scoring import read_rollout
from rl.trainer import RigGRPOTrainer
from rl.training import build_trainer, optimise
from tests.rl import tiny

WORDS = tiny.VOCABULARY

# Deprecations of transformers, which TRL has to fix.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


class Run:
    """The parts of a training run in this process, with a service of one's own if given."""

    def __init__(self, recipe: Recipe, service: object | None = None) -> None:
        self.recipe = recipe
        self.args = GRPOConfig(**grpo_arguments(recipe))
        self.policy: RigPolicy = load_policy(recipe)
        self.service = service or InlineRewardService(self.policy.skin_vae, reward_settings(recipe))
        meshes = prepare_meshes(load_meshes(recipe), self.service, recipe)
        self.bank = MeshBank(meshes.samples, self.policy.vocabulary, recipe.data.class_name)
        self.train_meshes = meshes.train
        self.before = weights(self.policy.model)

    def trainer(self) -> RigGRPOTrainer:
        return build_trainer(*self._parts(), MetricsLog(self.metrics_file))

    def optimise(self) -> TokenRigForCausalLM:
        return optimise(*self._parts(), checkpoint=None)

    def _parts(self):
        return self.recipe, self.args, self.policy, self.bank, self.train_meshes, self.service

    def metrics(self) -> list[dict[str, float | None]]:
        return [json.loads(line) for line in self.metrics_file.read_text().splitlines()]

    @property
    def metrics_file(self) -> Path:
        return Path(self.recipe.output_dir) / "metrics.jsonl"


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}


def changed(before: dict[str, torch.Tensor], model: torch.nn.Module) -> set[str]:
    return {name for name, tensor in model.named_parameters() if not torch.equal(tensor, before[name])}


class FakeService:
    """Scores with numbers of the test's choosing: `value_of(row)` for all four rewards, None for unscored."""

    def __init__(self, value_of: Callable[[int], float | None]) -> None:
        self.value_of = value_of
        self.events: list[str] = []
        self.submitted: list[tuple[int, int, int]] = []

    def prepare_meshes(self, meshes: Sequence[RewardMesh]) -> list[str | None]:
        return [None] * len(meshes)

    def submit(self, mesh: int, rigs: Sequence[RolloutRig | None], pose_seed: int) -> "FakeService.Pending":
        self.events.append("submit")
        self.submitted.append((mesh, len(rigs), pose_seed))
        return FakeService.Pending(self, [self.score(row, rig) for row, rig in enumerate(rigs)])

    def score(self, row: int, rig: RolloutRig | None) -> RolloutScore:
        value = self.value_of(row)
        if value is None:
            return UNSCORED if rig is not None else INVALID
        names = ("coverage", "containment", "sparsity", "smoothness")
        return RolloutScore(dict.fromkeys(names, value), valid=rig is not None)

    def close(self) -> None: ...

    class Pending:
        def __init__(self, service: "FakeService", scores: list[RolloutScore]) -> None:
            self.service, self.scores = service, scores

        def result(self) -> GroupScore:
            self.service.events.append("result")
            return GroupScore(self.scores, 0.25, 0.5, failure="the worker died")


@pytest.fixture
def batch(make_recipe):
    """A trainer, and a batch of rollouts as TRL makes it: (trainer, inputs)."""
    trainer = Run(make_recipe()).trainer()
    prompts = [{"prompt": trainer.bank.prompt(k)} for k in (0, 0, 0, 0, 2, 2, 2, 2)]
    trainer.model.train()
    return trainer, trainer._generate_and_score_completions(prompts)


# ------------------------------------------------------------------ the log-probability seam


def seam(trainer: RigGRPOTrainer, inputs: dict[str, torch.Tensor], **options):
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    length = inputs["completion_ids"].shape[1]
    return trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, length, **options)


def test_the_seam_equals_a_direct_forward_pass(batch):
    trainer, inputs = batch
    log_probs, entropies, auxiliary = seam(trainer, inputs, compute_entropy=True)
    assert auxiliary is None
    assert log_probs.shape == entropies.shape == inputs["completion_ids"].shape
    for row, mesh in enumerate((0, 0, 0, 0, 2, 2, 2, 2)):
        length = int(inputs["completion_mask"][row].sum())
        completion = inputs["completion_ids"][row : row + 1, :length]
        sample = trainer.bank.samples[mesh]
        direct = trainer.model(
            input_ids=torch.cat([torch.tensor([[WORDS.bos, trainer.bank.class_id]]), completion], dim=1),
            points=torch.from_numpy(sample.points)[None],
            normals=torch.from_numpy(sample.normals)[None],
            completion_ids=completion,
        )
        torch.testing.assert_close(log_probs[row, :length], direct.log_probs[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(entropies[row, :length], direct.entropies[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 8, None])
def test_batches_do_not_change_the_seam(batch, batch_size):
    trainer, inputs = batch
    whole, no_entropies, _ = seam(trainer, inputs)
    parts, _, _ = seam(trainer, inputs, batch_size=batch_size)
    assert no_entropies is None
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "changes", [{}, {"train.temperature": 0.7, "policy.grammar": "released"}, {"policy.grammar": "fork"}]
)
def test_the_trained_distribution_is_the_sampled_one(make_recipe, changes):
    trainer = Run(make_recipe(changes)).trainer()
    trainer.model.train()
    inputs = trainer._generate_and_score_completions([{"prompt": trainer.bank.prompt(1)} for _ in range(8)])
    log_probs, _, _ = seam(trainer, inputs)
    mask = inputs["completion_mask"].bool()
    sampled = inputs["sampling_per_token_logps"]
    torch.testing.assert_close(log_probs[mask], sampled[mask], atol=1e-4, rtol=0)


def test_prompt_ids_name_the_mesh(batch):
    trainer, inputs = batch
    assert inputs["prompt_ids"].tolist() == [
        [WORDS.size + mesh, WORDS.bos, WORDS.class_id("articulation")] for mesh in (0, 0, 0, 0, 2, 2, 2, 2)
    ]
    inputs["prompt_ids"][0, 0] = WORDS.size + len(trainer.bank)
    with pytest.raises(ValueError, match="mesh handle"):
        seam(trainer, inputs)


# ------------------------------------------------------------------ what trains


def encoder_names(names: set[str]) -> set[str]:
    return {name for name in names if name.startswith(("mesh_encoder", "output_proj"))}


def test_a_frozen_encoder_neither_trains_nor_runs_again(make_recipe, monkeypatch):
    run = Run(make_recipe({"train.max_steps": 3}))
    encoded: list[int] = []
    clouds = MeshBank.clouds

    def counting(bank, index, device):
        encoded.extend(index.tolist())
        return clouds(bank, index, device)

    monkeypatch.setattr(MeshBank, "clouds", counting)
    trained = run.optimise()
    moved = changed(run.before, trained)
    assert not encoder_names(moved)
    assert "transformer.model.layers.0.self_attn.q_proj.weight" in moved
    for name, parameter in trained.named_parameters():  # nor does the optimiser keep anything for it
        assert parameter.requires_grad is not bool(encoder_names({name}))
    assert sorted(encoded) == sorted(set(encoded))  # each mesh once in three steps


def test_a_trained_encoder_gets_gradients_and_its_embeddings_are_not_kept(make_recipe):
    run = Run(make_recipe({"policy.train_mesh_encoder": True, "train.max_steps": 1}))
    trained = run.optimise()
    moved = encoder_names(changed(run.before, trained))
    assert any(name.startswith("mesh_encoder") for name in moved)
    assert any(name.startswith("output_proj") for name in moved)
    assert not run.bank._embeds


@pytest.mark.parametrize("what", [{"policy.train_mesh_encoder": True}, {"policy.lora": {"rank": 2}}])
def test_gradient_checkpointing_changes_memory_alone(make_recipe, what):
    """Also where gradients go through the language model's input, or its first weights are frozen."""
    moved = []
    for checkpointing in (False, True):
        changes = {"train.gradient_checkpointing": checkpointing, **what}
        run = Run(make_recipe({"train.max_steps": 1, "resume": False, **changes}))
        moved.append(weights(run.optimise()))
    for name, tensor in moved[0].items():
        torch.testing.assert_close(tensor, moved[1][name], atol=1e-6, rtol=1e-5)


def test_lora_trains_adapters_alone_and_exports_a_merged_policy(make_recipe, tmp_path):
    run = Run(make_recipe({"policy.lora": {"rank": 4, "alpha": 8}, "train.max_steps": 3}))
    trainer = run.trainer()
    trainable = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)
    assert all(part in " ".join(trainable) for part in ("q_proj", "k_proj", "v_proj", "o_proj"))
    trainer.train()
    # The reference is the model without its adapters: no distance at first, some later.
    kl = [line["kl"] for line in run.metrics()]
    assert kl[0] == pytest.approx(0, abs=1e-7)
    assert kl[-1] > 1e-7

    merged = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).merge_and_unload()
    assert type(merged) is TokenRigForCausalLM
    moved = changed(run.before, merged)
    assert moved
    assert all(name.endswith("_proj.weight") and ".self_attn." in name for name in moved)
    exported = RigPolicy(merged.eval(), run.policy.skin_vae)
    exported.save(tmp_path / "exported")
    again = load(tmp_path / "exported")
    for name, tensor in weights(merged).items():
        torch.testing.assert_close(weights(again.model)[name], tensor)
    # The checkpoint holds the adapters; loading merges them into the policy that the run began with.
    from_checkpoint = load_model(tmp_path / "run" / "checkpoints" / "checkpoint-3")
    for name, tensor in weights(from_checkpoint).items():
        torch.testing.assert_close(tensor, weights(merged)[name])


def test_bf16_trains_on_a_cpu(make_recipe):
    run = Run(make_recipe({"train.bf16": True, "train.use_cpu": True, "train.max_steps": 2}))
    trained = run.optimise()
    assert changed(run.before, trained)
    assert {p.dtype for p in trained.parameters()} == {torch.float32}  # mixed precision: the weights stay
    for line in run.metrics():
        assert math.isfinite(line["loss"])
        # What was sampled is what is trained, but for rounding to eight bits.
        assert abs(line["kl"]) < 1e-3
    # The wrapper of mixed precision is gone: what is evaluated after training is what was saved.
    prompt = {"input_ids": torch.tensor([[WORDS.bos, WORDS.class_none]])}
    embeds = torch.zeros(1, tiny.MESH_TOKENS, 32)
    plain = load_model(run.recipe.policy.path)
    plain.load_state_dict(trained.state_dict())
    with torch.no_grad():
        assert torch.equal(
            trained.eval()(**prompt, mesh_embeds=embeds).logits,
            plain.eval()(**prompt, mesh_embeds=embeds).logits,
        )


# ------------------------------------------------------------------ metrics


ISSUE_METRICS = [
    "frac_reward_zero_std",
    "kl",
    "entropy",
    "clip_ratio/low_mean",
    "clip_ratio/high_mean",
    "clip_ratio/region_mean",
    "reward",
    "reward_std",
    *(
        f"rewards/{name}/{part}"
        for name in ("coverage", "containment", "sparsity", "smoothness")
        for part in ("mean", "std")
    ),
    "rig/valid",
    "rig/joints",
    "rig/unscored",
    "seconds/rollout",
    "seconds/decode",
    "seconds/score",
    "seconds/train",
    "seconds/wait_for_rewards",
    "tokens_per_second",
    "completions/mean_length",
    "completions/clipped_ratio",
    "grad_norm",
    "learning_rate",
    "loss",
]


@pytest.fixture(scope="module")
def three_steps(policy_path, tmp_path_factory) -> Run:
    recipe = tiny.make_recipe(policy_path, tmp_path_factory.mktemp("run"), {"train.max_steps": 3})
    run = Run(recipe)
    run.optimise()
    return run


def test_every_step_logs_every_metric(three_steps):
    lines = three_steps.metrics()
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert not [name for name in ISSUE_METRICS if not isinstance(line.get(name), int | float)]


def test_metrics_mean_what_they_say(three_steps):
    for line in three_steps.metrics():
        rewards = {
            name: line[f"rewards/{name}/mean"]
            for name in ("coverage", "containment", "sparsity", "smoothness")
        }
        assert all(0 <= value <= 1 for value in rewards.values())
        total = 5 * rewards["coverage"] + sum(rewards.values()) - rewards["coverage"]
        assert line["reward"] == pytest.approx(total, abs=1e-5)
        # Strict grammar: what the limit does not cut off is valid.
        assert line["rig/valid"] == pytest.approx(1 - line["completions/clipped_ratio"])
        assert line["rig/unscored"] == 0
        parts = line["seconds/rollout"] + line["seconds/wait_for_rewards"] + line["seconds/train"]
        assert parts == pytest.approx(line["step_time"])
        assert line["tokens_per_second"] == pytest.approx(
            8 * line["completions/mean_length"] / line["seconds/rollout"], rel=1e-4
        )


def test_the_reference_is_the_policy_at_first_and_is_left_behind(three_steps):
    kl = [line["kl"] for line in three_steps.metrics()]
    assert kl[0] == pytest.approx(0, abs=1e-7)
    assert kl[2] > 1e-6


def test_steps_that_reuse_rollouts_are_logged_too(make_recipe):
    """Two updates from each batch: the second one has ratios to clip, and no rewards of its own."""
    run = Run(make_recipe({"train.num_iterations": 2, "train.max_steps": 4, "train.learning_rate": 0.03}))
    run.optimise()
    lines = run.metrics()
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert ["reward" in line for line in lines] == [True, False, True, False]
    for line in lines:
        assert {"kl", "entropy", "loss", "seconds/train", "clip_ratio/region_mean"} <= set(line)
    assert lines[1]["clip_ratio/region_mean"] > lines[0]["clip_ratio/region_mean"] == 0


def test_accumulated_batches_are_one_step(make_recipe):
    """2 x 4 rows accumulated are the same 8 rollouts, rewards and update as 8 rows at once."""
    steps = []
    for rows, passes in ((8, 1), (4, 2)):
        changes = {"train.per_device_train_batch_size": rows, "train.gradient_accumulation_steps": passes}
        run = Run(make_recipe({"train.max_steps": 1, "train.loss_type": "dapo", **changes}))
        moved = weights(run.optimise())
        steps.append((moved, run.metrics()[0]))
    assert steps[0][1]["reward"] == pytest.approx(steps[1][1]["reward"], abs=1e-6)
    for name, tensor in steps[0][0].items():
        torch.testing.assert_close(tensor, steps[1][0][name], atol=1e-5, rtol=1e-4)


def test_guards_and_gdpo_reach_the_trainer(make_recipe):
    """An opt-in reward with its own weight; rewards normalised one by one before they are added."""
    changes = {
        "rewards.bone_influence.weight": 2.0,
        "train.multi_objective_aggregation": "normalize_then_sum",
        "train.max_steps": 1,
        "train.log_completions": True,
    }
    run = Run(make_recipe(changes))
    assert changed(run.before, run.optimise())
    (line,) = run.metrics()
    names = ("containment", "sparsity", "smoothness")
    total = 5 * line["rewards/coverage/mean"] + 2 * line["rewards/bone_influence/mean"]
    assert line["reward"] == pytest.approx(
        total + sum(line[f"rewards/{name}/mean"] for name in names), abs=1e-5
    )
    assert list(Path(run.args.output_dir).glob("completions/*.parquet"))


def test_runs_repeat(three_steps, policy_path, tmp_path):
    again = Run(tiny.make_recipe(policy_path, tmp_path / "again", {"train.max_steps": 3}))
    again.optimise()
    assert stable(again.metrics()) == stable(three_steps.metrics())
    other = Run(tiny.make_recipe(policy_path, tmp_path / "other", {"train.max_steps": 3, "train.seed": 1}))
    other.optimise()
    assert stable(other.metrics()) != stable(three_steps.metrics())


def stable(lines: list[dict[str, float | None]]) -> list[dict[str, float | None]]:
    """Metrics without those that measure time."""
    return [
        {key: value for key, value in line.items() if "second" not in key and "time" not in key}
        for line in lines
    ]


# ------------------------------------------------------------------ rewards


def test_rewards_are_collected_after_the_log_probability_passes(make_recipe):
    service = FakeService(lambda row: row / 4)
    run = Run(make_recipe({"train.max_steps": 1, "train.num_iterations": 2}), service)
    trainer = run.trainer()
    direct = trainer._get_per_token_logps_and_entropies

    def noting(*arguments, **options):
        service.events.append("log-probabilities")
        return direct(*arguments, **options)

    trainer._get_per_token_logps_and_entropies = noting
    trainer.train()
    first_result = service.events.index("result")
    # Two meshes are sent off, then the old and the reference log-probabilities are made, then scores come.
    assert service.events[:first_result] == ["submit", "submit", "log-probabilities", "log-probabilities"]


def test_a_group_shares_its_poses_and_steps_do_not(make_recipe):
    service = FakeService(lambda row: row / 4)
    Run(make_recipe({"train.max_steps": 3, "data.train_count": 4}), service).optimise()
    assert [rows for _, rows, _ in service.submitted] == [4] * 6  # 8 rollouts: two groups of 4 a step
    seeds = [seed for _, _, seed in service.submitted]
    assert len(set(seeds)) == 6


@pytest.mark.parametrize(
    "changes", [{}, {"train.gradient_accumulation_steps": 2, "train.steps_per_generation": 1}]
)
def test_no_two_batches_are_alike(make_recipe, changes):
    """One mesh and a policy that stands still: what differs between batches is chance alone."""
    service = FakeService(lambda row: row / 8)
    sampled = []
    service.score = lambda row, rig: (sampled.append(rig), INVALID)[1]
    still = {"data.train_count": 1, "train.max_steps": 2, "train.learning_rate": 1e-12}
    Run(make_recipe({**still, **changes}), service).optimise()
    rigs = [tuple(rig.codes.ravel()) for rig in sampled if rig is not None]
    assert len(rigs) > 8
    assert len(set(rigs)) == len(rigs)


def test_rows_without_a_score_leave_their_group(make_recipe):
    """Rewards 0.25, 0.5, 0.75 in all four, so totals 2, 4, 6: mean 4, deviation 2; the first row has none."""
    service = FakeService(lambda row: [None, 0.25, 0.5, 0.75][row])
    trainer = Run(make_recipe(), service).trainer()
    trainer.model.train()
    prompts = [{"prompt": trainer.bank.prompt(k)} for k in (0, 0, 0, 0, 1, 1, 1, 1)]
    whole = {"complete": True}
    service.score = lambda row, rig: FakeService.score(service, row, rig or whole)
    advantages = trainer._generate_and_score_completions(prompts)["advantages"]
    expected = torch.tensor([0.0, -1.0, 0.0, 1.0] * 2) * 2 / (2 + 1e-4)
    torch.testing.assert_close(advantages, expected)
    assert trainer._metrics["train"]["rig/unscored"] == [2.0]
    assert trainer._metrics["train"]["rewards/coverage/mean"] == [pytest.approx(0.5)]


def test_invalid_rigs_stay_in_their_group_with_nothing(make_recipe):
    """A cut-off rollout scores 0 in everything and pulls the group's mean down: it is the policy's fault."""
    trainer = Run(make_recipe({"train.max_completion_length": 60})).trainer()
    trainer.model.train()
    inputs = trainer._generate_and_score_completions([{"prompt": trainer.bank.prompt(0)} for _ in range(8)])
    complete = torch.tensor(
        [
            read_rollout(ids[mask.bool()].tolist(), trainer.bank.class_id, WORDS) is not None
            for ids, mask in zip(inputs["completion_ids"], inputs["completion_mask"], strict=True)
        ]
    )
    assert 0 < complete.sum() < 8
    for group in (slice(0, 4), slice(4, 8)):
        part, done = inputs["advantages"][group], complete[group]
        if done.any() and not done.all():
            assert part[~done].max() < part[done].min()
    assert trainer._metrics["train"]["rig/valid"] == [pytest.approx(complete.float().mean().item())]


@pytest.mark.parametrize("batches", [1, 3])
def test_batches_that_nobody_can_score_stop_the_run(make_recipe, batches, capsys):
    recipe = make_recipe({"train.max_steps": 9, "workers.max_failed_batches": batches})
    run = Run(recipe, FakeService(lambda row: None))
    with pytest.raises(RunFailedError, match=rf"{batches} batches in a row .*the worker died"):
        run.optimise()
    # Without a score nothing is learnt from a step, and the log says so.
    lines = run.metrics()
    assert [line["step"] for line in lines] == list(range(1, batches))
    assert all(line["rewards/coverage/std"] is None or line["rig/unscored"] for line in lines)

    def fail(_: object) -> None:
        run.optimise()

    assert run_command("", lambda path, overrides: recipe, fail, ["recipe.yaml"]) == 1
    shown = capsys.readouterr().err.strip().splitlines()
    assert shown[-1].startswith("failed: ")
    assert "run the same command again to resume from the last checkpoint" in shown[-1]
    assert any("rigs have no score and are excluded: the worker died" in line for line in shown)


def test_one_scored_rig_starts_the_count_anew(make_recipe):
    """Batches 1, 2 and 4, 5 are lost, batch 3 is not: never three in a row."""
    batch_of = iter(range(100))
    service = FakeService(lambda row: None)
    original = service.submit

    def submit(mesh, rigs, seed):
        number = next(batch_of) // 2  # two groups a batch
        service.value_of = (lambda row: 0.5) if number == 2 else (lambda row: None)
        return original(mesh, rigs, seed)

    service.submit = submit
    run = Run(make_recipe({"train.max_steps": 5, "workers.max_failed_batches": 3}), service)
    run.optimise()
    assert len(run.metrics()) == 5


# ------------------------------------------------------------------ the mesh schedule


def test_one_mesh_is_enough_for_several_groups(make_recipe):
    """Two groups of four a step, both of the only mesh: each is compared within itself."""
    service = FakeService(lambda row: row / 8)
    Run(make_recipe({"data.train_count": 1, "train.max_steps": 3}), service).optimise()
    assert [(mesh, rows) for mesh, rows, _ in service.submitted] == [(0, 8)] * 3


@pytest.mark.parametrize(
    ("changes", "groups"),
    [
        ({}, 2 * 5),  # 8 rows a step, groups of 4
        ({"train.gradient_accumulation_steps": 3}, 6 * 5),
        ({"train.num_iterations": 2}, 2 * 3),  # five updates take three batches
        ({"train.steps_per_generation": 2}, 4 * 3),  # sixteen rows every other step
    ],
)
def test_a_run_samples_as_many_groups_as_its_schedule_has(make_recipe, changes, groups):
    service = FakeService(lambda row: row / 24)
    run = Run(make_recipe({"train.max_steps": 5, "data.train_count": 7, **changes}), service)
    trainer = run.trainer()
    assert len(trainer.train_dataset) == groups == schedule_length(run.args)
    trainer.train()
    assert trainer.state.global_step == 5
    assert sum(rows for _, rows, _ in service.submitted) == 4 * groups
    expected = mesh_schedule(run.train_meshes, groups, seed=42)
    served = [mesh for mesh, rows, _ in service.submitted for _ in range(rows // 4)]
    assert sorted(served) == sorted(expected)
