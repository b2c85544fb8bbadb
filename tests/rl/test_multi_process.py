"""Training in two processes on the CPU against one: DDP with Ray, two nodes, ZeRO-2, ZeRO-3, FSDP2."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from policy.bundle import load
from rl import replay
from rl.rollout_store import read_rows
from tests.rl import tiny
from tests.rl.commands import metrics
from tests.rl.launches import DDP, DEEPSPEED_ON_CPU, ON_CPU, configuration, finish, needs_compiler, start
from tests.wandb_files import offline_runs

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

HALF = {"train.per_device_train_batch_size": 4}
RUN = {"train.max_steps": 3, "eval.before_and_after": False}
WATCH = {"eval.every": 2, "report.every": 2}
LORA = {**RUN, "policy.lora": {"rank": 4}, "train.learning_rate": 0.01}


def assert_same_numbers(output: Path, one: Path) -> None:
    """Losses and all other metrics of one process, up to the order of float32 sums."""
    lines = [line for line in metrics(output) if "loss" in line]
    for own, other in zip(lines, metrics(one), strict=True):
        own = {key: value for key, value in own.items() if not key.startswith("workers/")}
        assert own.keys() == other.keys()
        for key, value in other.items():
            if value is not None:
                assert own[key] == pytest.approx(value, rel=1e-4, abs=1e-4), key
        # The rollout engine had the weights that were trained.
        assert own["sampling/logp_difference_max"] < 1e-4
    weights, others = (load(folder / "policy").model.state_dict() for folder in (output, one))
    for name, weight in others.items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-4)


def assert_watched(output: Path) -> None:
    """Three steps that were evaluated, and rollouts and a best policy that were kept; for `WATCH`."""
    lines = [line for line in metrics(output) if "eval/total" in line]
    assert [line["step"] for line in lines] == [0, 2, 3]
    rows = read_rows(output / "rollouts" / "rollouts.jsonl")
    assert {row.step for row in rows if row.why != "failure"} == {1, 2, 3}
    assert all((output / "rollouts" / row.glb).is_file() for row in rows if row.glb is not None)
    best = json.loads((output / "policy_best" / "best.json").read_text())
    assert best["value"] == max(line["eval/total"] for line in lines)
    assert load(output / "policy_best")


def assert_identical(output: Path, other: Path) -> None:
    assert metrics(output) == metrics(other)
    assert_same_weights(output, other)


def assert_same_weights(output: Path, other: Path) -> None:
    weights, others = (load(folder / "policy").model.state_dict() for folder in (output, other))
    assert all(torch.equal(weights[name], others[name]) for name in others)


def rewind(output: Path, to: Path) -> None:
    """Copy a run as it was after its second step."""
    shutil.copytree(output, to)
    shutil.rmtree(to / "checkpoints" / "checkpoint-3")
    shutil.rmtree(to / "policy")


def test_two_processes_share_one_reward_service(policy_path, tmp_path, here):
    """With evaluations, kept rollouts and W&B; one process without them trains the same."""
    own = {"train.save_steps": 3, "train.report_to": "wandb", "workers": {"backend": "ray", "count": 1}}
    recipe = tiny.write_recipe_file(
        tmp_path / "r.yaml", policy_path, tmp_path / "two", {**RUN, **HALF, **WATCH, **own}
    )
    errors = finish(start(recipe, DDP, {**ON_CPU, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}))
    assert errors.count("GRPO: 100%") >= 1
    assert_watched(tmp_path / "two")
    (reported,) = offline_runs(tmp_path / "two")
    assert list(reported.values("train/reward")) == [1, 2, 3]
    checkpoint = tmp_path / "two" / "checkpoints" / "checkpoint-3"
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in checkpoint.iterdir()}
    lines = [line for line in metrics(tmp_path / "two") if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        # Eight rollouts, four from either process: validity is counted in eighths.
        assert (line["rig/valid"] * 8) % 1 == 0
        assert line["rig/unscored"] == 0
        assert line["reward"] > 0
    # Scored by Ray's workers; again in this process.
    assert replay.main([str(tmp_path / "two" / "rollouts"), "--tolerance", "1e-6"]) == 0
    assert here(RUN) == 0
    assert_same_numbers(tmp_path / "two", tmp_path / "run")


@pytest.mark.slow
def test_watching_changes_nothing_in_two_processes(policy_path, tmp_path):
    """Bit for bit, also where TRL's shuffle decides which rows a step trains on: two steps share a batch."""
    own = {**RUN, **HALF, "train.steps_per_generation": 2, "train.max_steps": 4}
    alone, watched = tmp_path / "alone", tmp_path / "watched"
    for output, more in ((alone, {}), (watched, {"eval.every": 1, "report.every": 1})):
        finish(
            start(
                tiny.write_recipe_file(tmp_path / "r.yaml", policy_path, output, {**own, **more}), DDP, ON_CPU
            )
        )
    assert [line for line in metrics(watched) if "loss" in line] == metrics(alone)
    assert sum("eval/total" in line for line in metrics(watched)) == 5
    assert_same_weights(watched, alone)


@pytest.mark.slow
def test_phase_credit_and_a_users_reward_are_those_of_one_process(policy_path, tmp_path, here):
    """Groups of eight, four rows on either process: advantages come from all rows."""
    own = {
        **LORA,
        "rewards.credit": "phase",
        "rewards.custom": "tests.rewards.own_rewards:joints_per_hundred",
        "train.num_generations": 8,
    }
    assert here(own) == 0
    recipe = tiny.write_recipe_file(tmp_path / "r.yaml", policy_path, tmp_path / "two", {**own, **HALF})
    finish(start(recipe, DDP, ON_CPU))
    assert_same_numbers(tmp_path / "two", tmp_path / "run")
    (first, *_) = metrics(tmp_path / "two")
    assert first["credit/skin_zero_std"] == 0
    assert first["rewards/joints_per_hundred/mean"] > 0


@pytest.mark.slow
def test_adapters_on_two_nodes_train_and_resume_as_in_one_process(policy_path, tmp_path, here):
    """Two launchers on this machine, as on two; the resumed run has one launcher and two processes."""
    assert here(LORA) == 0
    two, resumed = tmp_path / "two", tmp_path / "resumed"
    recipe = tiny.write_recipe_file(tmp_path / "r.yaml", policy_path, two, {**LORA, **HALF, **WATCH})
    port = str(20000 + os.getpid() % 10000)
    options = configuration("two_nodes", tmp_path, main_process_ip="127.0.0.1", main_process_port=port)
    nodes = [start(recipe, (*options, "--machine_rank", rank), ON_CPU) for rank in (0, 1)]
    for node in nodes:
        finish(node)
    assert_same_numbers(two, tmp_path / "run")
    assert_watched(two)

    rewind(two, resumed)
    recipe = tiny.write_recipe_file(tmp_path / "r.yaml", policy_path, resumed, {**LORA, **HALF, **WATCH})
    assert f"resuming from {resumed / 'checkpoints' / 'checkpoint-2'}" in finish(start(recipe, DDP, ON_CPU))
    assert_identical(resumed, two)


@pytest.mark.slow
def test_fsdp2_trains_and_resumes_as_one_process(policy_path, tmp_path, here):
    assert here(RUN) == 0
    two, resumed = tmp_path / "two", tmp_path / "resumed"
    options = configuration("fsdp2", tmp_path)
    script = "tests/rl/train_with_fsdp_on_cpu.py"
    recipe = tiny.write_recipe_file(tmp_path / "r.yaml", policy_path, two, {**RUN, **HALF, **WATCH})
    finish(start(recipe, options, ON_CPU, script))
    assert (two / "checkpoints" / "checkpoint-3" / "pytorch_model_fsdp.bin").is_file()
    assert_same_numbers(two, tmp_path / "run")
    assert_watched(two)

    rewind(two, resumed)
    recipe = tiny.write_recipe_file(tmp_path / "r.yaml", policy_path, resumed, {**RUN, **HALF, **WATCH})
    assert "resuming from" in finish(start(recipe, options, ON_CPU, script))
    assert_identical(resumed, two)


@needs_compiler
@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_deepspeed_trains_as_one_process(stage, policy_path, tmp_path, here):
    """Minutes the first time, when DeepSpeed compiles its communication."""
    changes = RUN if stage == 2 else LORA
    assert here(changes) == 0
    own = {**changes, **HALF, **WATCH, "train.ddp_backend": "gloo"}
    recipe = tiny.write_recipe_file(tmp_path / "r.yaml", policy_path, tmp_path / "two", own)
    finish(start(recipe, configuration(f"zero{stage}", tmp_path), DEEPSPEED_ON_CPU))
    assert (tmp_path / "two" / "checkpoints" / "checkpoint-3" / "zero_to_fp32.py").is_file()
    assert_same_numbers(tmp_path / "two", tmp_path / "run")
    assert_watched(tmp_path / "two")
