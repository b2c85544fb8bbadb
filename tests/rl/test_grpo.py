"""Training from Python: the numbers of the command, what is returned, and stopping without leaving traces."""

import json
import signal
from dataclasses import replace

import pytest
import torch

import rl.training
from data.stop_signals import STOP_SIGNALS, StopRun
from policy.bundle import load
from rl.evaluation_results import read_evaluation
from rl.grpo import train
from tests.rl.commands import evaluation, metrics

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

QUICK = {"train.max_completion_length": 60, "data.train_count": 2, "data.eval_count": 2, "eval.samples": 1}


def test_python_and_the_command_train_alike(here, make_recipe, tmp_path, capsys):
    changes = {**QUICK, "eval.every": 2}
    assert here(changes) == 0
    printed = capsys.readouterr().out
    recipe = replace(make_recipe(changes), output_dir=str(tmp_path / "python"))
    run = train(recipe)
    assert capsys.readouterr().out == ""  # what was made is returned, not printed
    assert metrics(run.output) == metrics(tmp_path / "run")
    for name in ("before.json", "after.json"):
        assert evaluation(run.output / name) == evaluation(tmp_path / "run" / name)
    for name in ("policy", "policy_best"):
        mine, theirs = (load(output / name).model.state_dict() for output in (run.output, tmp_path / "run"))
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)

    assert run.output == tmp_path / "python"
    assert run.policy == run.output / "policy"
    assert run.best_policy == run.output / "policy_best"
    assert (run.before, run.after) == tuple(
        read_evaluation(run.output / name) for name in ("before.json", "after.json")
    )
    best = json.loads((run.output / "policy_best" / "best.json").read_text())
    assert (run.best.step, run.best.value) == (best["step"], best["value"])
    assert (run.rig is None) == (run.no_rig != "")
    assert "refined policy: " in printed
    assert f"best policy: {tmp_path / 'run' / 'policy_best'} (step {run.best.step}, total " in printed


def test_a_stopped_run_leaves_the_process_as_it_was_and_resumes(make_recipe, monkeypatch, capsys):
    """A notebook goes on after a stop, has been open for long, and may have handlers of its own."""

    def forbidden(*arguments: object) -> float:
        raise AssertionError("the age of the process says nothing about a run from Python")

    monkeypatch.setattr(rl.training, "command_start", forbidden)
    recipe = make_recipe({**QUICK, "eval.before_and_after": False, "train_guard.stop_after_minutes": 1e-9})
    handlers = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
    own = signal.signal(signal.SIGTERM, mine := lambda *arguments: None)
    try:
        with pytest.raises(StopRun) as stop:
            train(recipe)
        assert stop.value.signum == 0
        assert "stopped after step 1 of 2, which is saved" in stop.value.message
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, own)
    assert {signum: signal.getsignal(signum) for signum in STOP_SIGNALS} == handlers

    run = train(make_recipe({**QUICK, "eval.before_and_after": False}))
    assert [line["step"] for line in metrics(run.output)] == [1, 2]
    assert (run.before, run.after, run.best, run.best_policy) == (None, None, None, None)
    first, second = (json.loads(line) for line in (run.output / "metrics.jsonl").read_text().splitlines())
    assert first["seconds/startup"] > 0
    assert second["seconds/startup"] > 0  # of the second call


def test_a_finished_run_is_returned_again(make_recipe, capsys):
    recipe = make_recipe({**QUICK, "train.max_steps": 1})
    first = train(recipe)
    weights = load(first.policy).model.state_dict()
    again = train(recipe)
    assert "nothing to train" in capsys.readouterr().err
    assert again.before == first.before
    assert again.after == first.after
    assert all(
        torch.equal(value, weights[key]) for key, value in load(again.policy).model.state_dict().items()
    )
