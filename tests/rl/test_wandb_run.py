"""W&B with the real package, offline: what a run sends, and that a resumed run goes on under its id."""

import json
from collections.abc import Iterator

import pytest

from tests.rl.commands import metrics
from tests.wandb_files import offline_runs

wandb = pytest.importorskip("wandb")

REPORTING = {"train.report_to": "wandb", "eval.every": 2, "eval.every_samples": 2}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("WANDB_DIR", "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_SWEEP_ID", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield
    wandb.teardown()


def test_a_run_sends_its_steps_evaluations_results_and_recipe(here, tmp_path):
    output = tmp_path / "run"
    assert here(REPORTING) == 0
    (run,) = offline_runs(output)
    assert (run.project, run.exit_code) == ("tokenrig-rl", 0)
    assert run.id == (output / "wandb_id.txt").read_text().strip()
    assert run.config["recipe"]["rewards"]["coverage"]["weight"] == 5
    lines = metrics(output)
    for name, own in (("eval/total", "eval/total"), ("train/reward", "reward"), ("train/kl", "kl")):
        assert run.values(name) == {line["step"]: line[own] for line in lines if own in line}
    assert set(run.values("eval/total")) == {0, 2}
    for name in ("before", "after"):
        mean = json.loads((output / f"{name}.json").read_text())["mean"]
        assert run.values(f"{name}/total") == {2: mean["total"]}
        assert run.values(f"{name}/unirig_j2j") == {2: mean["unirig_j2j"]}


def test_a_resumed_run_keeps_its_id_and_directory_and_one_that_starts_over_does_not(here, tmp_path):
    output = tmp_path / "run"
    assert here({**REPORTING, "train.max_steps": 1}) == 0
    assert here({**REPORTING, "train.max_steps": 2}) == 0
    first, second = offline_runs(output)
    assert first.id == second.id == (output / "wandb_id.txt").read_text().strip()
    assert list(first.values("train/reward")) == [1]
    assert list(second.values("train/reward")) == [2]
    assert here({**REPORTING, "train.max_steps": 1}, "resume=false") == 0
    assert (output / "previous-1" / "wandb_id.txt").read_text().strip() == first.id
    third = (output / "wandb_id.txt").read_text().strip()
    assert {run.id for run in offline_runs(output)} == {first.id, third}
    assert third != first.id


def test_a_program_keeps_the_run_that_it_has_opened(here, tmp_path):
    with wandb.init(project="mine", dir=tmp_path) as run:
        assert here({**REPORTING, "train.max_steps": 1}) == 0
        assert wandb.run is run
    (seen,) = offline_runs(tmp_path)
    assert seen.project == "mine"
    assert "after/total" in seen.history[-1]


def test_a_failed_run_is_marked_as_failed(here, tmp_path, monkeypatch):
    def stop(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("rl.training._run", stop)
    with pytest.raises(RuntimeError, match="a bug"):
        here(REPORTING)
    (run,) = offline_runs(tmp_path / "run")
    assert run.exit_code == 1


def test_without_a_login_nothing_is_evaluated(here, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert here(REPORTING) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: 'train.report_to' is wandb, but W&B refuses the run (")
    assert "WANDB_MODE=offline" in error
    assert not (tmp_path / "run" / "before.json").exists()


def test_the_trial_of_an_agent_needs_a_directory_of_its_own(here, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    monkeypatch.setenv("WANDB_RUN_ID", "trial7")
    assert here(REPORTING) == 2
    output = tmp_path / "run"
    assert capsys.readouterr().err == (
        f"error: 'output_dir' {output} would be that of every trial of sweep s1; put "
        f"'output_dir={output}/$WANDB_RUN_ID' into the sweep's 'command'\n"
    )
    assert not output.exists()
