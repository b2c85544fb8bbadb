"""What makes a checkpoint whole, with and without a manifest."""

import json
import shutil
from pathlib import Path

import pytest

from data.manifest import write_manifest
from rl.checkpoints import checkpoint_folders, checkpoint_problem, last_whole_checkpoint

STORED = Path(__file__).parent / "reference" / "checkpoint_without_manifest" / "checkpoints" / "checkpoint-2"


@pytest.fixture(params=["manifest", "no_manifest"])
def checkpoint(tmp_path, request):
    folder = tmp_path / "checkpoint-2"
    shutil.copytree(STORED, folder)
    if request.param == "manifest":
        write_manifest(folder, {"step": 2})
    return folder


def test_a_whole_checkpoint(checkpoint):
    assert checkpoint_problem(checkpoint) is None
    assert last_whole_checkpoint(checkpoint.parent) == (checkpoint, [])


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"])
def test_missing_state_is_never_fresh(checkpoint, name):
    (checkpoint / name).unlink()
    problem = checkpoint_problem(checkpoint)
    assert name in problem
    assert last_whole_checkpoint(checkpoint.parent) == (None, [f"checkpoint-2: {problem}"])
    # A manifest that does not list it, as of a run that saved the model only.
    write_manifest(checkpoint, {"step": 2})
    assert name in checkpoint_problem(checkpoint)


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "adapter_model.safetensors"])
def test_truncated_files(checkpoint, name):
    content = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(content[:-10])
    assert checkpoint_problem(checkpoint).startswith(f"{name} ")
    (checkpoint / name).write_bytes(b"")
    assert checkpoint_problem(checkpoint).startswith(f"{name} ")


@pytest.mark.parametrize("name", ["trainer_state.json", "adapter_model.safetensors", "optimizer.pt"])
def test_git_lfs_pointers(checkpoint, name):
    (checkpoint / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "this is a Git LFS pointer" in checkpoint_problem(checkpoint)


def test_a_random_state_of_each_process(checkpoint):
    (checkpoint / "manifest.json").unlink(missing_ok=True)
    for rank in (0, 2):
        shutil.copy(checkpoint / "rng_state.pth", checkpoint / f"rng_state_{rank}.pth")
    assert checkpoint_problem(checkpoint) == "rng_state_1.pth is missing"


def test_a_damaged_manifest(checkpoint):
    write_manifest(checkpoint, {"step": 2})
    text = (checkpoint / "manifest.json").read_text()
    (checkpoint / "manifest.json").write_text(text[: len(text) // 2])
    assert checkpoint_problem(checkpoint).startswith("manifest.json cannot be read")


def test_folders_are_in_the_order_of_their_steps(tmp_path):
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-old", "state-1"):
        (tmp_path / name).mkdir()
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["checkpoint-9", "checkpoint-10"]
    assert json.loads((STORED / "trainer_state.json").read_text())["global_step"] == 2
