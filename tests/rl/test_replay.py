"""Scoring kept rollouts again: the real command, every form of ROW, and one sentence for each mistake."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import trimesh

from data import make_creature
from data.typed_recipe import write_recipe
from policy.bundle import load
from rl import replay
from rl.rollout_store import read_rows
from tests.rl import tiny
from tests.rl.commands import ROOT, TIMEOUT
from tests.rl.training_runs import Run

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

KEEPING = {
    **{"report.every": 1, "train.max_steps": 1, "data.eval_count": 1},
    **{"train.max_completion_length": 60, "rewards.bone_influence": {"weight": 0.5}},
}


def keep(policy: Path, output: Path, changes: dict[str, object]) -> Path:
    """A run of one step that keeps its rollouts; its rows."""
    recipe = tiny.make_recipe(policy, output, {**KEEPING, **changes})
    output.mkdir(exist_ok=True)
    write_recipe(recipe, output / "recipe.yaml")
    Run(recipe).optimise()
    return output / "rollouts" / "rollouts.jsonl"


@pytest.fixture(scope="module")
def rows_of_files(policy_path, tmp_path_factory) -> Path:
    """Rows of a run on two mesh files; tests copy what they change."""
    folder = tmp_path_factory.mktemp("replay")
    for seed in (1, 2):
        mesh = make_creature(seed).mesh
        trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).export(folder / f"mesh{seed}.obj")
    return keep(policy_path, folder / "run", {"data.meshes": str(folder / "*.obj"), "data.eval_count": 1})


@pytest.fixture
def changed(rows_of_files, tmp_path):
    """A copy of the first row as a JSON file, with changes; the recipe is beside its folder."""

    def write(**changes: object) -> Path:
        row = replace(read_rows(rows_of_files)[0], **changes)
        folder = tmp_path / "rollouts"
        folder.mkdir(exist_ok=True)
        shutil.copy(rows_of_files.parents[1] / "recipe.yaml", tmp_path)
        (folder / "row.json").write_text(row.line())
        return folder / "row.json"

    return write


def test_the_command_prints_kept_and_new_rewards(rows_of_files, tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "rl.replay", rows_of_files.parent],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert result.returncode == 0, result.stderr
    rows = read_rows(rows_of_files)
    assert {row.why for row in rows} >= {"best", "failure"}
    assert result.stdout.splitlines()[-1] == f"{len(rows)} rows: the rewards agree within 0.0001"
    first = rows[0]
    assert f"{rows_of_files}:1: step 1, best, {first.mesh}" in result.stdout
    for name in ("coverage", "containment", "sparsity", "smoothness", "bone_influence"):
        value = f"{first.rewards[name]:.6f}"
        assert any(line.split() == [name, value, value] for line in result.stdout.splitlines())
    total = f"{first.total:.6f}"
    assert any(line.split() == ["total", total, total] for line in result.stdout.splitlines())


def test_one_row_and_a_json_file(rows_of_files, changed, capsys):
    assert replay.main([f"{rows_of_files}:2", "--tolerance", "1e-6"]) == 0
    assert "1 row: the rewards agree within 1e-06" in capsys.readouterr().out
    assert replay.main([str(changed())]) == 0


def test_other_rewards_exit_with_1(changed, capsys, rows_of_files):
    rewards = dict(read_rows(rows_of_files)[0].rewards)
    rewards["coverage"] += 0.01
    assert replay.main([str(changed(rewards=rewards))]) == 1
    assert "1 of 1 row differ by more than 0.0001" in capsys.readouterr().out
    assert replay.main([str(changed(total=1.0))]) == 1
    assert replay.main([str(changed(rewards=rewards)), "--tolerance", "0.02"]) == 0
    # Other poses are other rewards; a row that had no score has nothing to compare with.
    assert replay.main([str(changed()), "rewards.resolution=12"]) == 1
    assert replay.main([str(changed(rewards=None, total=None, failure="the worker died"))]) == 0
    assert "not scored" in capsys.readouterr().out


def test_creatures_and_given_skeletons_replay(policy_path, tmp_path, capsys):
    changes = {"data.train_count": 2, "data.skeleton": "given", "train.max_completion_length": 160}
    rows = keep(policy_path, tmp_path / "run", changes)
    (first, *_) = read_rows(rows)
    assert first.given_skeleton
    assert first.mesh_file is None
    assert replay.main([str(rows), "--tolerance", "1e-6"]) == 0


def refused(capsys, *arguments: object) -> str:
    assert replay.main([str(argument) for argument in arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


def test_a_missing_mesh_is_named_and_found_elsewhere(changed, capsys, tmp_path, rows_of_files):
    row = read_rows(rows_of_files)[0]
    gone = tmp_path / "gone" / Path(row.mesh_file).name
    file = changed(mesh_file=str(gone))
    error = refused(capsys, file)
    assert f"the file of the mesh '{row.mesh}' is missing: {gone}; restore it, or pass --meshes" in error
    assert replay.main([str(file), "--meshes", str(Path(row.mesh_file).parent)]) == 0
    assert "is missing" in refused(capsys, file, "--meshes", tmp_path)
    gone.parent.mkdir()
    gone.write_text(Path(row.mesh_file).read_text().replace("v ", "v 1", 1))
    assert f"the mesh '{row.mesh}' is not the one that was scored" in refused(capsys, file)
    assert "is none of the recipe's creatures" in refused(capsys, changed(mesh_file=None))


def test_another_policy_is_refused(changed, policy_path, tmp_path, capsys):
    other = load(policy_path)
    with torch.no_grad():
        next(iter(other.skin_vae.parameters())).view(-1)[0] += 1
    other.save(tmp_path / "other")
    error = refused(capsys, changed(), f"policy.path={tmp_path / 'other'}")
    assert "is a rollout of another policy: the skin VAE or vocabulary" in error
    assert "'policy.path': " in refused(capsys, changed(), f"policy.path={tmp_path / 'nothing'}")


def test_damaged_rows_and_wrong_places(changed, rows_of_files, tmp_path, capsys):
    file = changed()
    file.write_text(file.read_text()[:100])
    assert f"{file} is not the row of a kept rollout" in refused(capsys, file)
    file.write_text(json.dumps({"format": 1}))
    assert "it has no 'why'" in refused(capsys, file)
    assert "is damaged: prompt 'fox' is malformed" in refused(capsys, changed(prompt="fox"))
    with pytest.raises(SystemExit, match="2"):
        replay.main([str(file), "--tolerance", "-1"])
    assert "argument --tolerance: invalid" in capsys.readouterr().err
    count = len(read_rows(rows_of_files))
    assert f"has rows 1 to {count}; choose one" in refused(capsys, f"{rows_of_files}:{count + 1}")
    assert "no such file" in refused(capsys, tmp_path / "nowhere.jsonl")
    (tmp_path / "recipe.yaml").unlink()
    error = refused(capsys, changed().rename(tmp_path / "alone.json"))
    assert "the recipe of the run; pass it with --recipe" in error
    recipe = rows_of_files.parents[1] / "recipe.yaml"
    assert replay.main([str(tmp_path / "alone.json"), "--recipe", str(recipe)]) == 0


def test_an_own_reward_that_fails_is_named(changed, tmp_path, monkeypatch, capsys):
    (tmp_path / "own_replayed.py").write_text(
        "def picky(rig):\n    return 1 / (not rig.mesh.startswith('mesh'))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    error = refused(capsys, changed(), "rewards.custom=own_replayed:picky")
    assert "the reward own_replayed:picky failed for a rig of" in error
