"""The W&B id of a run: where it comes from, when it is kept, and trials that would share a directory."""

import re
from pathlib import Path

import pytest

from data.typed_recipe import RecipeError
from data.wandb_id import refuse_shared_directory, wandb_arguments


@pytest.fixture(autouse=True)
def _no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_DIR", "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_SWEEP_ID"):
        monkeypatch.delenv(name, raising=False)


def test_a_new_run_gets_an_id_and_a_resumed_one_keeps_it(tmp_path):
    output = tmp_path / "run"
    first = wandb_arguments(output, resumed=False)
    assert re.fullmatch("[0-9a-f]{8}", first["id"])
    assert first == {"id": first["id"], "resume": None, "dir": str(output)}
    assert (output / "wandb_id.txt").read_text() == f"{first['id']}\n"
    assert wandb_arguments(output, resumed=True) == {**first, "resume": "allow"}
    assert wandb_arguments(output, resumed=False)["id"] != first["id"]


def test_a_run_that_reports_after_a_resume_only_gets_a_new_id(tmp_path):
    assert wandb_arguments(tmp_path, resumed=True)["resume"] is None


def test_variables_of_wandb_decide(tmp_path, monkeypatch):
    wandb_arguments(tmp_path, resumed=False)
    monkeypatch.setenv("WANDB_RUN_ID", "trial7")
    monkeypatch.setenv("WANDB_DIR", "/elsewhere")
    expected = {"id": "trial7", "resume": "allow", "dir": "/elsewhere"}
    for resumed in (False, True):
        assert wandb_arguments(tmp_path, resumed) == expected
    monkeypatch.delenv("WANDB_RUN_ID")
    monkeypatch.setenv("WANDB_RESUME", "must")
    assert wandb_arguments(tmp_path, resumed=True) == {**expected, "resume": "must"}


@pytest.mark.parametrize("content", ["", "two words", "../x", "a/b"])
def test_a_damaged_id_is_refused(tmp_path, content):
    (tmp_path / "wandb_id.txt").write_text(content)
    with pytest.raises(
        RecipeError, match=re.escape(f"{tmp_path / 'wandb_id.txt'} is damaged; write the run's")
    ):
        wandb_arguments(tmp_path, resumed=True)


def test_trials_of_an_agent_must_not_share_a_directory(monkeypatch):
    refuse_shared_directory(Path("out"))
    monkeypatch.setenv("WANDB_RUN_ID", "t7")
    refuse_shared_directory(Path("out"))  # no sweep: the user's own id
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    for own in ("out/t7", "out/trial-t7/run"):
        refuse_shared_directory(Path(own))
    with pytest.raises(RecipeError) as refused:
        refuse_shared_directory(Path("out"), "loop.output_dir")
    assert str(refused.value) == (
        "'loop.output_dir' out would be that of every trial of sweep s1; put "
        "'loop.output_dir=out/$WANDB_RUN_ID' into the sweep's 'command'"
    )
