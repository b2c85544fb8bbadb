"""The command: rolls out the rigs of a run, stores them, and refuses what is no run with one sentence."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data.typed_recipe import write_recipe
from rewards.service import InlineRewardService
from rl.evaluation import evaluate
from rl.evaluation_results import write_evaluation
from rl.mesh_bank import MeshBank
from rl.meshes import load_meshes, prepare_meshes
from rl.recipe import reward_settings
from rl.report import run_rigs
from rl.report.__main__ import main
from rl.report.read_run import read_run
from rl.report.run_rigs import run_views
from rl.report.stored_rigs import read_rigs
from tests.rl import tiny
from tests.rl.report.pages import metrics_line, write_run


@pytest.fixture
def run(policy_path: Path, policy, tmp_path: Path) -> Path:
    """A run of the tiny policy whose refined policy is the same one, evaluated on two meshes."""
    folder = tmp_path / "run"
    recipe = tiny.make_recipe(policy_path, folder, {"eval.samples": 2})
    folder.mkdir()
    write_recipe(recipe, folder / "recipe.yaml")
    (folder / "metrics.jsonl").write_text(json.dumps(metrics_line(1, 1.0)) + "\n")
    service = InlineRewardService(policy.skin_vae, reward_settings(recipe))
    meshes = prepare_meshes(load_meshes(recipe, training=False), service, recipe)
    bank = MeshBank(meshes.samples, policy.vocabulary, recipe.data.class_name)
    write_evaluation(evaluate(policy, bank, meshes.held_out, service, recipe, "p"), folder / "before.json")
    return folder


def test_rigs_are_those_that_were_evaluated(run: Path, policy_path: Path) -> None:
    shutil.copytree(policy_path, run / "policy")
    files = read_run(run, "a")
    views = run_views(files, 0)
    before = files.before
    assert before is not None
    assert [view.stage for view in views if view.name == views[0].name] == ["ground truth", "before", "after"]
    for view in views:
        rows = before.per_rig[view.name]
        if view.stage == "ground truth":
            continue
        if view.rig is None:
            assert not rows[0]["valid"]
            assert view.note == "the rollout is no complete rig"
            continue
        assert view.numbers["total"] == pytest.approx(rows[0]["total"], abs=1e-6)
        assert view.numbers["coverage"] == pytest.approx(rows[0]["coverage"], abs=1e-6)
        assert len(view.rig.joints) == rows[0]["joints"]
        assert len(view.rig.weights) == len(view.mesh.vertices)
    assert any(view.rig is not None for view in views if view.stage != "ground truth")


def test_rigs_are_stored_and_used_again(run: Path, policy_path: Path, monkeypatch) -> None:
    first = run_views(read_run(run, "a"), 0)
    stored = read_rigs(run / "report" / "before.npz")
    assert stored is not None
    monkeypatch.setattr(run_rigs, "shown_rigs", None)  # a second rollout would fail
    again = run_views(read_run(run, "a"), 0)
    for old, new in zip(first, again, strict=True):
        assert (old.name, old.stage, old.numbers) == (new.name, new.stage, new.numbers)
        assert (old.rig is None) == (new.rig is None)
        if old.rig is not None and new.rig is not None:
            assert (old.rig.weights == new.rig.weights).all()
            assert old.poses is not None
            assert new.poses is not None
            assert np.array_equal(old.poses.vectors, new.poses.vectors)
    # Without its policy the run keeps its rigs; with another number of meshes they are not those asked for.
    gone = read_run(run, "a", ["policy.path=gone"])
    assert len(run_views(gone, 0)) == len(first)
    assert any("Rigs before training are those of an earlier page" in note for note in gone.notes)
    monkeypatch.undo()
    assert {view.name for view in run_views(read_run(run, "a", ["report.meshes=1"]), 0)} == {first[0].name}


def test_damaged_stored_rigs_are_rolled_out_again(run: Path) -> None:
    first = run_views(read_run(run, "a", ["report.meshes=1"]), 0)
    path = run / "report" / "before.npz"
    whole = path.read_bytes()
    for damaged in (b"", b"x" * 99, whole[:-99], whole[:99]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"before\.npz is damaged"):
            read_rigs(path)
    files = read_run(run, "a", ["report.meshes=1"])
    again = run_views(files, 0)
    assert [view.numbers for view in again] == [view.numbers for view in first]
    assert f"Stored rigs are not used: {path} is damaged." in files.notes


def test_the_page_of_a_run_without_policies(run: Path, capsys) -> None:
    assert main([str(run), "policy.path=gone"]) == 0
    page = (run / "report.html").read_text()
    assert "No rigs before training are shown: &#x27;policy.path&#x27;: gone" in page
    assert capsys.readouterr().out.startswith(f"{run / 'report.html'}: 0.")


def test_two_runs_on_one_page(run: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(run, tmp_path / "other")
    out = tmp_path / "deep" / "page.html"
    assert main([str(run), str(tmp_path / "other"), "--out", str(out), "report.meshes=0"]) == 0
    assert '"runs":["run","other"]' in out.read_text()
    assert main([str(run), str(tmp_path / "other"), "report.meshes=0"]) == 0
    assert (run / "compared.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{0}/nothing"], "nothing is not a folder; give the output_dir of a run"),
        (["{0}"], "holds no run: it has no recipe.yaml"),
        (["{0}/study"], "it has no recipe.yaml; name runs in it, such as {0}/study/base/seed-1"),
        (["{0}/run", "--out", "{0}"], "--out {0} is a folder; name a file in it"),
        (["report.meshes=2"], "no run is named"),
        (["{0}/run", "{0}/run/"], "is named twice"),
        (["{0}/run", "report.meshes=-1"], "'report.meshes' must"),
    ],
)
def test_arguments_that_cannot_be_used(arguments, message, tmp_path: Path, capsys) -> None:
    write_run(tmp_path / "run")
    write_run(tmp_path / "study" / "base" / "seed-1")
    assert main([argument.format(tmp_path) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message.format(tmp_path) in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run" / "report.html").exists()
