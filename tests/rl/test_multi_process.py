"""Training with two processes on the CPU: plain data parallel with Ray, and DeepSpeed ZeRO-2."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from data.typed_recipe import to_mapping
from policy.bundle import load
from rl.recipe import load_recipe
from tests.rl import tiny
from tests.rl.commands import BIN, ROOT, TIMEOUT, metrics, steps

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def launch_two(recipe: Path, cwd: Path, *arguments: object, **environment: str) -> str:
    """Two processes on the CPU; their standard error."""
    result = subprocess.run(
        [
            BIN / "accelerate",
            "launch",
            "--main_process_port",
            "0",
            *arguments,
            ROOT / "rl/train_grpo.py",
            recipe,
        ],
        cwd=cwd,
        env={**os.environ, **environment},
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
