"""Reward functions: returned values, logs, waiting, and unscored, invalid and failed rollouts."""

from types import SimpleNamespace

import pytest
import torch

from data.command_line import RunFailedError, run_command
from rewards.worker import INVALID, UNSCORED, GroupScore, RolloutScore, ServiceHealth
from rl.reward_functions import RigRewards, RolloutBatch, ScoredRollout
from rl.scoring import PendingScore, read_rollout
from tests.rl import tiny
from tests.rl.training_runs import FakeService, Run

WORDS = tiny.VOCABULARY

# Deprecations of transformers, which TRL has to fix.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


class Scored:
    """Scores that are there already."""

    def __init__(self, group: GroupScore) -> None:
        self.group = group

    def result(self) -> GroupScore:
        return self.group


def test_each_function_returns_its_reward_and_the_first_logs_the_batch(capsys):
    """Five rows of two meshes: three valid rigs, an invalid one, and one that could not be scored."""
    diagnostics = [{"unused_bones": 1.0}, {"unused_bones": 2.0}, {"unused_bones": 6.0}]
    good = [
        RolloutScore({"coverage": value, "sparsity": value / 2}, True, found)
        for value, found in zip((0.25, 0.5, 0.75), diagnostics, strict=True)
    ]
    first = Scored(GroupScore([good[0], good[1], INVALID], 0.25, 0.5))
    second = Scored(GroupScore([good[2], UNSCORED], 1.0, 2.0, failure="the worker died"))
    batch = RolloutBatch(rollout_seconds=2.0, submit_seconds=100.0, tokens=60)
    rollouts = [
        ScoredRollout(PendingScore(pending, row), joints, batch)
        for pending, row, joints in (
            (first, 0, 4),
            (second, 0, 8),
            (first, 1, 6),
            (first, 2, None),
            (second, 1, 2),
        )
    ]
    coverage, sparsity = RigRewards(["coverage", "sparsity"], max_failed_batches=1).functions()
    assert (coverage.__name__, sparsity.__name__) == ("coverage", "sparsity")
    values: dict[str, list[float]] = {}  # TRL averages them over all processes

    def log_metric(name: str, value: float) -> None:
        values.setdefault(name, []).append(value)

    found = coverage(scored_rollout=rollouts, log_metric=log_metric, prompts=[], trainer_state=None)
    # One number per rig, so that processes with different numbers of rigs weigh alike.
    assert (values["rig/joints"], values["rig/unused_bones"]) == ([4, 8, 6, 2], [1, 6, 2])
    logged = {name: sum(numbers) / len(numbers) for name, numbers in values.items()}
    assert found == [0.25, 0.75, 0.5, 0.0, None]
    waited = logged.pop("seconds/wait_for_rewards")
    assert waited >= 100  # includes submitting, during which the inline backend scores
    assert logged == {
        "seconds/rollout": 2.0,
        "tokens_per_second": 30.0,
        "seconds/decode": 1.25,  # once per mesh
        "seconds/score": 2.5,
        "rig/unscored": 1.0,
        "rig/valid": 0.8,  # the unscored rig is valid too
        "rig/joints": 5.0,
        "rig/unused_bones": 3.0,
    }
    assert "1 of 5 rigs have no score and are excluded: the worker died" in capsys.readouterr().err
    values.clear()
    found = sparsity(scored_rollout=rollouts, log_metric=log_metric)
    assert found == [0.125, 0.375, 0.25, 0.0, None]
    assert values == {}


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
    assert any("of 8 rigs have no score and are excluded: the worker died" in line for line in shown)


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


class Supervised(FakeService):
    """A service that has replaced three workers, one of which hung, and quarantined two meshes."""

    step: int | None = None

    def health(self) -> ServiceHealth:
        return ServiceHealth(restarts=3, hung=1, quarantined=2)

    def at_step(self, step: int | None) -> None:
        self.step = step


def test_failures_of_workers_are_logged():
    service = Supervised(lambda row: 0.5)
    rewards, _ = RigRewards(["coverage", "sparsity"], 1, service).functions()
    scored = Scored(GroupScore([RolloutScore({"coverage": 0.5, "sparsity": 0.5}, True)], 0.0, 0.0))
    row = ScoredRollout(PendingScore(scored, 0), 4, RolloutBatch(1.0, 0.0, 10))
    logged: dict[str, float] = {}
    rewards(scored_rollout=[row], log_metric=logged.__setitem__, trainer_state=SimpleNamespace(global_step=6))
    counts = {name: value for name, value in logged.items() if name.startswith("workers/")}
    assert counts == {"workers/restarts": 3.0, "workers/hung": 1.0, "workers/quarantined": 2.0}
    assert service.step == 7  # the step that is being trained


def test_batches_of_quarantined_meshes_are_no_failures_of_the_workers():
    """Nobody scores them, and they count neither as failed batches nor as scored ones."""
    (coverage,) = RigRewards(["coverage"], max_failed_batches=2).functions()

    def batch(quarantined: bool) -> list[float | None]:
        group = GroupScore([UNSCORED], 0.0, 0.0, failure="no score", quarantined=quarantined)
        row = ScoredRollout(PendingScore(Scored(group), 0), 4, RolloutBatch(1.0, 0.0, 10))
        return coverage(scored_rollout=[row], log_metric=lambda name, value: None)

    for _ in range(5):
        assert batch(quarantined=True) == [None]
    assert batch(quarantined=False) == [None]
    assert batch(quarantined=True) == [None]
    with pytest.raises(RunFailedError, match=r"2 batches in a row .*workers\.max_failed_batches"):
        batch(quarantined=False)
