"""Reading an output directory: what is there, what is missing, and what is no run."""

from pathlib import Path

import pytest

from data.typed_recipe import RecipeError
from rl.report.read_run import read_run, run_names
from tests.rl.kept_rows import kept_row
from tests.rl.report.pages import write_run


def test_a_finished_run(tmp_path):
    write_run(tmp_path / "a")
    run = read_run(tmp_path / "a", "a")
    assert (run.last_step, run.most_steps, run.finished) == (4, 4, True)
    assert run.notes == []
    assert run.recipe is not None
    assert run.values["train.max_steps"] == 4


def test_a_run_that_has_just_begun(tmp_path):
    write_run(tmp_path / "a", steps=0, before=False, after=False)
    (tmp_path / "a" / "metrics.jsonl").unlink()
    run = read_run(tmp_path / "a", "a")
    assert not run.finished
    assert run.notes == [
        "No step has been logged yet.",
        "It has no evaluation before training (before.json).",
        "It has no evaluation after training (after.json).",
    ]


def test_damaged_lines_and_files_are_noted(tmp_path):
    folder = tmp_path / "a"
    write_run(folder)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines[1] = lines[1][:20]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 5, "lo']))  # being written
    (folder / "after.json").write_text("{}")
    (folder / "quarantine.json").write_text("[]")
    run = read_run(folder, "a")
    assert [row["step"] for row in run.steps] == [1, 3, 4]
    assert run.notes[0] == "Line 2 of metrics.jsonl is damaged and left out."
    assert "after.json is damaged" in run.notes[1]
    assert "is not a list of quarantined meshes" in run.notes[2]


def test_damaged_kept_rollouts_are_noted(tmp_path):
    folder = tmp_path / "a"
    write_run(folder)
    (folder / "rollouts").mkdir()
    (folder / "rollouts" / "rollouts.jsonl").write_text(kept_row(2).line())
    assert read_run(folder, "a").rollouts == [kept_row(2)]
    (folder / "rollouts" / "rollouts.jsonl").write_text(kept_row(2).line() + "{")
    run = read_run(folder, "a")
    assert run.rollouts == []
    (note,) = run.notes
    assert "rollouts.jsonl:2 is not the row of a kept rollout" in note


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "is not a folder"),
        (lambda folder: folder.mkdir(), "holds no run: it has no recipe.yaml"),
        (
            lambda folder: (folder.mkdir(), (folder / "recipe.yaml").write_text("loop: {max_steps: 3}")),
            "holds no GRPO run",
        ),
    ],
)
def test_directories_that_are_no_run(tmp_path, make, message):
    make(tmp_path / "a")
    with pytest.raises(RecipeError, match=message):
        read_run(tmp_path / "a", "a")


def test_a_recipe_of_another_version_costs_the_rigs_only(tmp_path):
    write_run(tmp_path / "a")
    path = tmp_path / "a" / "recipe.yaml"
    path.write_text(path.read_text() + "gone: 3\n")
    run = read_run(tmp_path / "a", "a")
    assert run.recipe is None
    assert "gone" in run.notes[0]
    assert run.before is not None


def test_an_override_changes_the_recipe_and_must_be_right(tmp_path):
    write_run(tmp_path / "a")
    changed = read_run(tmp_path / "a", "a", ["report.meshes=2"]).recipe
    assert changed is not None
    assert changed.report.meshes == 2
    with pytest.raises(RecipeError, match="nothere"):
        read_run(tmp_path / "a", "a", ["report.nothere=1"])


def test_names_are_as_short_as_they_can_be():
    paths = [Path("/x/lr/a"), Path("/x/kl/a"), Path("/x/b")]
    assert run_names(paths) == ["lr/a", "kl/a", "b"]
