"""Training with two processes on the CPU: plain data parallel with Ray, and DeepSpeed ZeRO-2."""

import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from data.typed_recipe import to_mapping
from policy.bundle import load
from rl.recipe import load_recipe
from tests.rl import tiny
from tests.rl.commands import BIN, ROOT, TIMEOUT, metrics, steps

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def launch_two(
    recipe: Path, cwd: Path, *arguments: object, script: Sequence[object] = (), **environment: str
) -> str:
    """Two processes on the CPU; their standard error. script: one that runs the recipe, and its arguments."""
    result = subprocess.run(
        [
            BIN / "accelerate",
            "launch",
            "--main_process_port",
            "0",
            *arguments,
            *([script[0], recipe, *script[1:]] if script else [ROOT / "rl/train_grpo.py", recipe]),
        ],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert result.returncode == 0, result.stderr
    return result.stderr


TWO_PROCESSES = {"train.per_device_train_batch_size": 4, "train.max_steps": 3, "train.save_steps": 3}


def test_two_processes_share_one_reward_service(policy_path, tmp_path):
    changes = {**TWO_PROCESSES, "workers": {"backend": "ray", "count": 1}}
    recipe = tiny.write_recipe_file(tmp_path / "r.yaml", policy_path, tmp_path / "run", changes)
    errors = launch_two(
        recipe,
        tmp_path,
        *("--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no"),
        ACCELERATE_USE_CPU="true",
    )
    assert errors.count("GRPO: 100%") >= 1
    assert steps(tmp_path / "run") == [1, 2, 3]
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-3"
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in checkpoint.iterdir()}
    for line in metrics(tmp_path / "run"):
        # Eight rollouts, four from either process: validity is counted in eighths.
        assert (line["rig/valid"] * 8) % 1 == 0
        assert line["rig/unscored"] == 0
        assert line["reward"] > 0
    assert load(tmp_path / "run" / "policy")


@pytest.mark.skipif(shutil.which("g++") is None, reason="DeepSpeed compiles its communication with g++")
def test_zero_2_trains_as_plain_data_parallel_does(policy_path, tmp_path, here):
    """DeepSpeed on two CPU processes; minutes the first time, when it compiles its communication."""
    configuration = (ROOT / "recipes/accelerate/zero2.yaml").read_text()
    configuration = re.sub(r"num_processes: \d+", "num_processes: 2", configuration)
    (tmp_path / "zero2.yaml").write_text(configuration)
    zero = tiny.write_recipe_file(
        tmp_path / "zero.yaml", policy_path, tmp_path / "zero", {**TWO_PROCESSES, "train.ddp_backend": "gloo"}
    )
    launch_two(zero, tmp_path, "--config_file", tmp_path / "zero2.yaml", DS_ACCELERATOR="cpu")
    assert (tmp_path / "zero" / "checkpoints" / "checkpoint-3" / "zero_to_fp32.py").is_file()

    plain = tiny.write_recipe_file(tmp_path / "plain.yaml", policy_path, tmp_path / "plain", TWO_PROCESSES)
    launch_two(
        plain,
        tmp_path,
        *("--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no"),
        ACCELERATE_USE_CPU="true",
    )
    for own, other in zip(metrics(tmp_path / "zero"), metrics(tmp_path / "plain"), strict=True):
        for key in ("reward", "kl", "entropy", "rig/valid", "rewards/coverage/mean"):
            assert own[key] == pytest.approx(other[key], rel=1e-3, abs=1e-6)
    assert to_mapping(load_recipe(tmp_path / "zero" / "recipe.yaml"))["train"]["ddp_backend"] == "gloo"
    assert load(tmp_path / "zero" / "policy")


FAULTY = {
    **TWO_PROCESSES,
    "train.max_steps": 7,
    "train.save_steps": 7,
    "train.max_completion_length": 40,
    "train.lr_scheduler_type": "linear",
    "eval.before_and_after": False,
}
PLAIN = ("--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no")


@pytest.mark.parametrize(
    "kind",
    [
        "ddp",
        pytest.param(
            "zero2",
            marks=pytest.mark.skipif(shutil.which("g++") is None, reason="DeepSpeed compiles with g++"),
        ),
    ],
)
def test_a_fault_on_one_rank_skips_the_step_on_both(policy_path, tmp_path, kind):
    """A NaN loss, an infinite gradient, and a step without scores: see two_ranks_with_faults."""
    changes = {**FAULTY, "train.ddp_backend": "gloo"} if kind == "zero2" else FAULTY
    recipe = tiny.write_recipe_file(tmp_path / "r.yaml", policy_path, tmp_path / "run", changes)
    script = (ROOT / "tests/rl/two_ranks_with_faults.py", tmp_path)
    if kind == "zero2":
        configuration = (ROOT / "recipes/accelerate/zero2.yaml").read_text()
        (tmp_path / "c.yaml").write_text(re.sub(r"num_processes: \d+", "num_processes: 2", configuration))
        launch_two(
            recipe, tmp_path, "--config_file", tmp_path / "c.yaml", script=script, DS_ACCELERATOR="cpu"
        )
    else:
        launch_two(
            recipe, tmp_path, *PLAIN, "--dynamo_backend", "no", script=script, ACCELERATE_USE_CPU="true"
        )
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    digests = ranks[0]["digests"]
    updates = [now != before for before, now in pairwise(digests)]
    assert updates == [False, True, False, True, False, True]
    assert ranks[0]["rates"] == pytest.approx([1e-3 * (7 - step) / 7 for step in range(1, 8)])
    lines = metrics(tmp_path / "run")
    assert [line["train_guard/bad_steps"] for line in lines] == [0, 1, 0, 1, 0, 0, 0]
    assert [line["train_guard/unscored_steps"] for line in lines] == [0, 0, 0, 0, 0, 1, 0]
    assert [math.isfinite(line["loss"]) for line in lines] == [True, False, *[True] * 5]
    records = {path.name: json.loads(path.read_text()) for path in (tmp_path / "run/bad_steps").iterdir()}
    assert sorted(records) == [f"step-{step}-rank-{rank}.json" for step in (2, 4) for rank in (0, 1)]
    assert records["step-2-rank-1.json"]["causes_here"][0] == "loss"
    assert "loss" not in records["step-2-rank-0.json"]["causes_here"]
    assert records["step-2-rank-0.json"]["causes"][0] == "loss"
    assert records["step-4-rank-0.json"]["causes"] == ["gradient"]
    assert len(records["step-4-rank-1.json"]["rows"]) == 4
    assert load(tmp_path / "run" / "policy")
