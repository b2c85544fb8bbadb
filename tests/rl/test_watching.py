"""Runs that evaluate while they train and keep rollouts: what they write, and that training is the same."""

import io
import json
import random
import signal
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch

import rl.during_training
from data.gltf.skinned import read_skinned_glb
from data.stop_signals import STOP_SIGNALS
from policy.bundle import load
from rl import train_grpo
from rl.evaluation import evaluate
from rl.keep_rollouts import KeepRollouts
from rl.rollout_store import KeptRollout, read_rows
from rl.run_directory import open_run
from rl.trainer import RigRollout
from tests.rl import tiny
from tests.rl.commands import metrics

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

TRAIN = {
    **{"eval.before_and_after": False, "train.max_completion_length": 60, "train.save_steps": 2},
    **{"data.train_count": 2, "data.eval_count": 2, "train.max_steps": 3, "train.learning_rate": 0.01},
}
WATCH = {**TRAIN, "eval.every": 2, "report.every": 2}


def step_lines(output: Path) -> list[dict]:
    return [line for line in metrics(output) if "loss" in line]


def evaluations(output: Path) -> list[dict]:
    return [line for line in metrics(output) if "eval/total" in line]


def kept(output: Path) -> list[KeptRollout]:
    return read_rows(output / "rollouts" / "rollouts.jsonl")


def draw_random_numbers() -> None:
    random.random()
    torch.rand(3)
    np.random.rand()  # noqa: NPY002


@pytest.fixture(scope="module")
def watched(policy_path, tmp_path_factory) -> Iterator[tuple[Path, str, str]]:
    """A run of three steps: its folder and what it printed. Watching it draws random numbers."""
    output = tmp_path_factory.mktemp("watched") / "run"
    recipe = tiny.write_recipe_file(output.with_name("r.yaml"), policy_path, output, WATCH)
    handlers = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
    keep, shown, errors = KeepRollouts._keep, io.StringIO(), io.StringIO()

    def drawing_evaluate(*arguments):
        draw_random_numbers()
        return evaluate(*arguments)

    def drawing_keep(*arguments):
        draw_random_numbers()
        keep(*arguments)

    with pytest.MonkeyPatch.context() as patch, redirect_stdout(shown), redirect_stderr(errors):
        patch.setattr(rl.during_training, "evaluate", drawing_evaluate)
        patch.setattr(KeepRollouts, "_keep", drawing_keep)
        assert train_grpo.main([str(recipe)]) == 0
    for signum, handler in handlers.items():
        signal.signal(signum, handler)
    return output, shown.getvalue(), errors.getvalue()


def assert_same_training(output: Path, other: Path) -> None:
    assert step_lines(output) == step_lines(other)
    weights, others = (load(run / "policy").model.state_dict() for run in (output, other))
    assert all(torch.equal(weights[name], others[name]) for name in others)


def test_training_is_the_same_with_and_without(here, tmp_path, watched):
    """Metrics and weights; TRL shuffles with torch's random numbers."""
    assert here(TRAIN) == 0
    assert len(step_lines(watched[0])) == 3
    assert_same_training(watched[0], tmp_path / "run")
    assert not (tmp_path / "run" / "rollouts").exists()
    assert not (tmp_path / "run" / "policy_best").exists()


def test_it_is_the_same_with_the_plain_engine(here, tmp_path):
    plain = {"rollout.engine": "plain", "train.max_steps": 2, "train.save_steps": 9}
    plain["train.max_completion_length"] = 30
    assert here({**TRAIN, **plain}) == 0
    watched = {"eval.every": 1, "eval.every_meshes": 1, "report.every": 1}
    assert here({**TRAIN, **plain, **watched}, f"output_dir={tmp_path / 'watched'}") == 0
    assert [line["step"] for line in evaluations(tmp_path / "watched")] == [0, 1, 2]
    assert_same_training(tmp_path / "watched", tmp_path / "run")


def test_the_means_go_to_the_file_and_the_console(watched):
    output, _, errors = watched
    assert [line["step"] for line in evaluations(output)] == [0, 2, 3]  # the last step, too
    assert [line["step"] for line in step_lines(output)] == [1, 2, 3]
    for line in evaluations(output):
        assert {"eval/coverage", "eval/containment", "eval/sparsity", "eval/smoothness"} <= line.keys()
        assert {"eval/valid", "eval/joints", "eval/unirig_j2j", "eval/unirig_j2b"} <= line.keys()
        assert {"eval/unirig_b2b", "eval/skin_iou", "eval/motion_loss", "eval/se/total"} <= line.keys()
        assert line["eval/meshes"] == 2
        assert f"step {line['step']}  evaluation: total {line['eval/total']:.3f} ± " in errors


def test_the_best_policy_is_kept_with_its_step_and_value(watched):
    output, shown, errors = watched
    totals = {line["step"]: line["eval/total"] for line in evaluations(output)}
    best = json.loads((output / "policy_best" / "best.json").read_text())
    step = max(totals, key=totals.__getitem__)  # of equals the first
    assert (best["step"], best["by"], best["value"]) == (step, "total", totals[step])
    assert best["mean"]["total"] == totals[step]
    assert load(output / "policy_best").vocabulary == tiny.VOCABULARY
    assert f"best policy: {output / 'policy_best'} (step {step}, total {totals[step]:.4g})" in shown
    note = "(best so far)" if step == 3 else f"(best: step {step})"
    assert note in errors.rpartition("  evaluation: ")[2]


def test_rigs_and_failures_are_kept(watched):
    output, _, errors = watched
    rows = kept(output)
    rigs = [one for one in rows if one.why != "failure"]
    assert sorted({one.step for one in rigs}) == [1, 2, 3]  # the first and the last too
    for step in (1, 2, 3):
        best, *others = [one for one in rigs if one.step == step]
        assert best.why == "best"
        assert [one.why for one in others] in ([], ["worst"])
        assert all(one.mesh == best.mesh and one.total <= best.total for one in others)
    for one in rigs:
        assert one.valid
        assert one.failure is None
        mesh, rig = read_skinned_glb(output / "rollouts" / one.glb)
        assert len(rig.joints) == one.joints == one.diagnostics["joints"]
        assert rig.weights.shape == (len(mesh.vertices), one.joints)
        assert one.total == pytest.approx(sum(one.weights[name] * one.rewards[name] for name in one.weights))
    failures = [one for one in rows if one.why == "failure"]
    kinds = [one.kind for one in failures]
    assert "the rig is truncated: no skeleton eos among its N tokens" in kinds
    assert len(set(kinds)) == len(kinds)
    assert all(one.rewards == dict.fromkeys(one.weights, 0.0) and one.glb is None for one in failures)
    assert f"kept in {output / 'rollouts'}: best " in errors


def assert_same_run(output: Path, unbroken: Path) -> None:
    assert step_lines(output) == step_lines(unbroken)
    assert evaluations(output) == evaluations(unbroken)
    assert kept(output) == kept(unbroken)
    for folder in ("rollouts", "policy_best"):
        for path in (unbroken / folder).glob("*.*"):
            assert (output / folder / path.name).read_bytes() == path.read_bytes(), path


def test_a_resumed_run_neither_forgets_nor_repeats(here, tmp_path, monkeypatch, watched):
    """Killed in the evaluation of step 3, whose rollouts are kept; the last checkpoint is that of step 2."""
    evaluated: list[str] = []

    def noting(*arguments):
        evaluated.append(arguments[5])
        if evaluated == ["step 0", "step 2", "step 3"]:
            raise KeyboardInterrupt
        return evaluate(*arguments)

    monkeypatch.setattr(rl.during_training, "evaluate", noting)
    assert here(WATCH) == 130
    assert here(WATCH) == 0
    assert evaluated == ["step 0", "step 2", "step 3", "step 3"]
    assert_same_run(tmp_path / "run", watched[0])


def test_a_stopped_run_leaves_the_evaluation_to_the_resumed_one(here, tmp_path, monkeypatch, watched):
    """A signal in step 2, which is saved at once and evaluated before step 3."""
    rollout, calls = RigRollout.__call__, []

    def signalled(self, prompts, trainer):
        calls.append(prompts)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return rollout(self, prompts, trainer)

    monkeypatch.setattr(RigRollout, "__call__", signalled)
    assert here(WATCH) == 143
    assert [line["step"] for line in step_lines(tmp_path / "run")] == [1, 2]
    assert [line["step"] for line in evaluations(tmp_path / "run")] == [0]
    assert here(WATCH) == 0
    assert_same_run(tmp_path / "run", watched[0])


def test_a_run_that_starts_over_sets_both_aside(make_recipe, tmp_path):
    output = tmp_path / "run"
    for name in ("checkpoints/checkpoint-2", "policy_best", "rollouts"):
        (output / name).mkdir(parents=True)
    (output / "start.json").write_text("{}")
    assert open_run(make_recipe({"resume": False})) is None
    moved = {"policy_best", "rollouts", "start.json"}
    assert {path.name for path in (output / "previous-1").iterdir()} >= moved
    assert not moved & {path.name for path in output.iterdir()}
