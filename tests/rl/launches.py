"""Launches commands in two processes on the CPU, as `accelerate launch` does on several GPUs."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.rl.commands import BIN, ROOT, TIMEOUT

DDP = (
    *("--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"),
    *("--mixed_precision", "no", "--dynamo_backend", "no"),
)
ON_CPU = {"ACCELERATE_USE_CPU": "true"}
DEEPSPEED_ON_CPU = {"DS_ACCELERATOR": "cpu"}
needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="DeepSpeed compiles its communication with g++"
)


def start(
    recipe: Path,
    arguments: tuple[object, ...],
    environment: dict[str, str],
    script: str = "rl/train_grpo.py",
    *script_arguments: object,
) -> subprocess.Popen[str]:
    """Launch a script on a recipe, with the recipe's folder as working directory."""
    return subprocess.Popen(
        [
            *(BIN / "accelerate", "launch", *map(str, arguments)),
            *(ROOT / script, recipe, *map(str, script_arguments)),
        ],
        cwd=recipe.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for its success; its standard error."""
    errors = process.communicate(timeout=TIMEOUT)[1]
    assert process.returncode == 0, errors
    return errors


def configuration(name: str, folder: Path, **changes: str) -> tuple[str, Path, str, str]:
    """Launcher options for a file of recipes/accelerate, changed to two processes."""
    text = (ROOT / "recipes/accelerate" / f"{name}.yaml").read_text()
    for key, value in {"num_processes": "2", **changes}.items():
        text, count = re.subn(rf"^{key}: .*", f"{key}: {value}", text, flags=re.MULTILINE)
        assert count == 1, key
    file = folder / f"{name}.yaml"
    file.write_text(text)
    return ("--config_file", file, "--main_process_port", changes.get("main_process_port", "0"))
