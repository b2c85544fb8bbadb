"""What the commands load: evaluation and rigging work without TRL's trainer, --help without torch."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trimesh

from data import make_creature
from rl.library_settings import importing
from tests.rl import tiny
from tests.rl.commands import ROOT, TIMEOUT

EVALUATE_AND_RIG = """
import sys

def loaded(name):
    return sorted(module for module in sys.modules if module == name or module.startswith(f"{name}."))

import rl.evaluate, rl.evaluation, rl.rig, rl.rigging
assert loaded("trl") == [], loaded("trl")

recipe, mesh, output = sys.argv[1:]
assert rl.evaluate.main([recipe]) == 0
assert rl.rig.main([recipe, f"rig.mesh={mesh}", f"rig.out={output}"]) == 0
assert "trl.trainer.grpo_trainer" not in sys.modules
print(*loaded("trl"))
"""

# Checking a recipe's `train` section takes trl.GRPOConfig, which loads these.
CONFIGURATION = """
import sys
from trl import GRPOConfig
print(*sorted(module for module in sys.modules if module == "trl" or module.startswith("trl.")))
"""


def python(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Python with this project on its path; it must succeed."""
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert result.returncode == 0, result.stderr
    return result


def test_evaluation_and_rigging_load_no_trainer(policy_path, tmp_path):
    creature = make_creature(1).mesh
    mesh = tmp_path / "mesh.obj"
    trimesh.Trimesh(creature.vertices, creature.faces, process=False).export(mesh)
    recipe = tiny.write_recipe_file(tmp_path / "r.yaml", policy_path, tmp_path / "run", {})
    shown = python("-c", EVALUATE_AND_RIG, recipe, mesh, tmp_path / "rigged.glb", cwd=tmp_path).stdout
    assert (tmp_path / "run" / "evaluation.json").is_file()
    assert (tmp_path / "rigged.glb").is_file()
    needed = python("-c", CONFIGURATION, cwd=tmp_path).stdout.split()
    assert needed
    assert set(shown.splitlines()[-1].split()) <= set(needed)


@pytest.mark.parametrize(
    ("launch", "usage"),
    [
        (["-m", "rl.train_grpo"], "accelerate launch rl/train_grpo.py RECIPE.yaml"),
        ([str(ROOT / "rl" / "train_grpo.py")], "accelerate launch rl/train_grpo.py RECIPE.yaml"),
        (["-m", "rl.evaluate"], "python -m rl.evaluate RECIPE.yaml"),
        (["-m", "rl.rig"], "python -m rl.rig RECIPE.yaml"),
    ],
)
def test_help_loads_neither_torch_nor_ray(tmp_path, launch, usage):
    shown = python("-X", "importtime", *launch, "--help", cwd=tmp_path)
    assert usage in " ".join(shown.stdout.split())
    loaded = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}
    assert "rl.recipe" in loaded
    assert not loaded & {"torch", "ray", "trl", "transformers", "matplotlib", "rl.training"}


def test_imports_are_not_garbage_collected_and_later_code_is():
    before = gc.get_freeze_count()
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > before
    gc.unfreeze()
