"""Ray dies under a run: the command ends in seconds with one sentence, and its checkpoints stay."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rl.checkpoints import CHECKPOINTS_FOLDER, checkpoint_folders
from tests.rl import tiny
from tests.rl.commands import BIN, ROOT, TIMEOUT


def kill(parent: int, name: str) -> int:
    """Kill the process of this name among the descendants of `parent`; returns its id."""
    (found,) = [p for p in psutil.Process(parent).children(recursive=True) if p.name() == name]
    found.kill()
    return found.pid


def wait_for(ready, process: subprocess.Popen) -> None:
    limit = time.monotonic() + TIMEOUT
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.1)


@pytest.fixture
def external_head(tmp_path: Path):
    """A Ray head as its owner starts one: (process, address)."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    options = ("--include-dashboard=false", "--num-cpus=2", "--disable-usage-stats", "--block")
    head = subprocess.Popen(
        [BIN / "ray", "start", "--head", f"--port={port}", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    names: set[str] = set()

    def started() -> bool:
        names.update(p.name() for p in psutil.Process(head.pid).children(recursive=True))
        return {"gcs_server", "raylet"} <= names

    try:
        wait_for(started, head)
        yield head, f"127.0.0.1:{port}"
    finally:
        for process in (*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)):
            if process.is_running():
                process.kill()
        head.wait()


def run_until_killed(
    recipe: Path, output: Path, overrides: list[str], victim, environment
) -> tuple[str, float]:
    """Train until there is a checkpoint, then call `victim(pid of the run)`; returns stderr and seconds."""
    run = subprocess.Popen(
        [sys.executable, ROOT / "rl/train_grpo.py", recipe, *overrides],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: checkpoint_folders(output / CHECKPOINTS_FOLDER), run)
        victim(run.pid)
        began = time.monotonic()
        stderr = run.communicate(timeout=TIMEOUT)[1]
    finally:
        run.kill()
    assert run.returncode == 1, stderr
    return stderr, time.monotonic() - began


@pytest.mark.parametrize("cluster", ["local", pytest.param("external", marks=pytest.mark.slow)])
def test_ray_dies(policy_path, tmp_path, cluster, request):
    output = tmp_path / "run"
    recipe = tiny.write_recipe_file(
        tmp_path / "recipe.yaml",
        policy_path,
        output,
        {
            "workers": {"backend": "ray", "count": 1},
            "train.max_steps": 10_000,
            "eval.before_and_after": False,
        },
    )
    if cluster == "local":
        stderr, seconds = run_until_killed(recipe, output, [], lambda run: kill(run, "raylet"), {})
        said = "failed: Ray's node process (raylet, pid "
    else:
        head, address = request.getfixturevalue("external_head")
        stderr, seconds = run_until_killed(
            recipe,
            output,
            [f"ray.address={address}"],
            lambda run: kill(head.pid, "gcs_server"),
            {"RAY_AUTH_MODE": "token"},
        )
        # Whoever is missed first: the raylet ends with its head.
        said = "failed: "
        assert "the Ray head at" in stderr or "Ray's node process" in stderr
    last = stderr.strip().splitlines()[-1]
    assert last.startswith(said)
    assert last.endswith("run the same command again to resume from the last checkpoint")
    assert "Traceback" not in stderr
    assert seconds < 120  # a busy machine; Ray itself waits for minutes, or ends the process without a word
    assert checkpoint_folders(output / CHECKPOINTS_FOLDER)
