"""Evaluation during training: when, what it logs, the best policy, and that training is the same."""

import json
import random
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

import rl.during_training
from data.typed_recipe import RecipeError
from policy.bundle import load
from rl.best_policy import BestPolicy, read_best
from rl.during_training import spread
from rl.evaluation import evaluate
from rl.random_states import same_random_states
from tests.rl import tiny
from tests.rl.commands import metrics
from tests.rl.training_runs import Run, weights

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

QUICK = {
    **{"eval.before_and_after": False, "train.max_completion_length": 60, "train.save_steps": 2},
    **{"data.train_count": 2, "data.eval_count": 2},
}
EVERY_TWO = {**QUICK, "eval.every": 2, "train.max_steps": 5}


def split(output: Path) -> tuple[list[dict], list[dict]]:
    """The lines of steps and those of evaluations, without times."""
    lines = metrics(output)
    return (
        [line for line in lines if "loss" in line],
        [line for line in lines if "eval/total" in line],
    )


def random_states() -> list[object]:
    numpy = np.random.get_state()  # noqa: NPY002
    return [random.getstate(), numpy[1].tolist(), numpy[2], torch.get_rng_state().tolist()]


def test_random_states_are_restored_also_after_an_error():
    before = random_states()

    def draw() -> None:
        with same_random_states():
            random.random()
            np.random.rand()  # noqa: NPY002
            torch.rand(1)
            assert random_states() != before
            raise KeyError

    with pytest.raises(KeyError):
        draw()
    assert random_states() == before


@pytest.mark.parametrize("engine", ["fast", "plain"])
def test_training_is_the_same_with_evaluations_and_without(policy_path, tmp_path, monkeypatch, engine):
    """Also if an evaluation drew random numbers, as TRL's shuffling does."""

    def drawing(*arguments):
        torch.rand(3)
        np.random.rand()  # noqa: NPY002
        return evaluate(*arguments)

    monkeypatch.setattr(rl.during_training, "evaluate", drawing)
    common = {**QUICK, "train.max_steps": 3, "rollout.engine": engine}
    runs = []
    for name, changes in (("with", {"eval.every": 1}), ("without", {})):
        run = Run(tiny.make_recipe(policy_path, tmp_path / name, {**common, **changes}))
        runs.append((weights(run.optimise()), split(tmp_path / name)))
    (with_weights, (with_steps, evaluations)), (without_weights, (without_steps, none)) = runs
    assert [line["step"] for line in evaluations] == [0, 1, 2, 3]
    assert none == []
    assert with_steps == without_steps
    assert len(with_steps) == 3
    assert all(torch.equal(with_weights[name], weight) for name, weight in without_weights.items())


def test_the_means_go_to_the_file_the_console_and_the_integrations(here, tmp_path, capsys):
    seen: list[dict] = []
    changes = {**EVERY_TWO, "eval.every_samples": 2, "train.report_to": "none"}
    from rl.reporting import MetricsLog

    log = MetricsLog.on_log

    def on_log(self, args, state, control, logs=None, **parts):
        seen.append(dict(logs))
        log(self, args, state, control, logs, **parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MetricsLog, "on_log", on_log)
        assert here(changes) == 0
    errors, output = capsys.readouterr().err, tmp_path / "run"
    steps, evaluations = split(output)
    assert [line["step"] for line in evaluations] == [0, 2, 4, 5]  # the last step, too
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5]
    for line in evaluations:
        assert {"eval/coverage", "eval/containment", "eval/sparsity", "eval/smoothness"} <= line.keys()
        assert {"eval/valid", "eval/joints", "eval/unirig_j2j", "eval/unirig_j2b"} <= line.keys()
        assert {"eval/unirig_b2b", "eval/skin_iou", "eval/motion_loss", "eval/se/total"} <= line.keys()
        assert line["eval/meshes"] == 2
        assert f"step {line['step']}  evaluation: total {line['eval/total']:.3f} ± " in errors
    logged = [logs for logs in seen if "eval_total" in logs]
    assert [logs["eval_total"] for logs in logged] == [line["eval/total"] for line in evaluations]
    assert "eval_seconds" in logged[0]


def test_the_best_policy_is_kept_with_its_step_and_value(here, tmp_path, capsys):
    assert here({**EVERY_TWO, "train.learning_rate": 0.03}) == 0
    output = tmp_path / "run"
    evaluations = split(output)[1]
    totals = {line["step"]: line["eval/total"] for line in evaluations}
    best = json.loads((output / "policy_best" / "best.json").read_text())
    step = max(totals, key=totals.__getitem__)  # of equals the first
    assert (best["step"], best["by"], best["value"]) == (step, "total", totals[step])
    assert best["mean"]["total"] == totals[step]
    policy = load(output / "policy_best")
    assert policy.vocabulary == load(output / "policy").vocabulary
    shown = capsys.readouterr()
    assert f"best policy: {output / 'policy_best'} (step {step}, total {totals[step]:.4g})" in shown.out
    last = evaluations[-1]["step"]
    assert ("(best so far)" if step == last else f"(best: step {step})") in shown.err.rpartition("evalua")[2]


@pytest.mark.parametrize(
    "changes",
    [{}, {"policy.lora": {"rank": 2}}, {"policy.lora": {"rank": 2}, "policy.train_mesh_encoder": True}],
    ids=["full", "lora", "lora and encoder"],
)
def test_the_policy_kept_after_the_last_step_is_the_exported_one(here, tmp_path, monkeypatch, changes):
    """With adapters it is a merged copy; without, the model itself."""
    monkeypatch.setattr(BestPolicy, "is_better_than", lambda self, other: True)
    assert here({**QUICK, **changes, "eval.every": 2, "train.learning_rate": 0.01}) == 0
    kept, exported = (load(tmp_path / "run" / name) for name in ("policy_best", "policy"))
    start = load(tmp_path / "run" / "policy_best").model.state_dict()
    others = exported.model.state_dict()
    assert start.keys() == others.keys()
    assert all(torch.equal(start[name], others[name]) for name in others)
    before = tiny.make_policy().model.state_dict()
    assert not all(torch.equal(start[name], before[name]) for name in before)
    vae = exported.skin_vae.state_dict()
    assert all(torch.equal(value, vae[name]) for name, value in kept.skin_vae.state_dict().items())


def test_a_resumed_run_neither_forgets_nor_repeats(here, tmp_path, monkeypatch):
    """Killed in step 4, after the evaluation and the checkpoint of step 2."""
    output, unbroken = tmp_path / "run", tmp_path / "unbroken"
    assert here(EVERY_TWO, f"output_dir={unbroken}") == 0
    evaluated: list[str] = []

    def noting(*arguments):
        if arguments[5] == "step 4" and "step 4" not in evaluated:
            evaluated.append("step 4")
            raise KeyboardInterrupt
        evaluated.append(arguments[5])
        return evaluate(*arguments)

    monkeypatch.setattr(rl.during_training, "evaluate", noting)
    assert here(EVERY_TWO) != 0
    assert evaluated == ["step 0", "step 2", "step 4"]
    assert here(EVERY_TWO) == 0
    assert evaluated == ["step 0", "step 2", "step 4", "step 4", "step 5"]
    assert metrics(output) == metrics(unbroken)
    for name in ("policy_best/best.json", "policy_best/model.safetensors"):
        assert (output / name).read_bytes() == (unbroken / name).read_bytes()
    # A run that starts over owes nothing to the earlier one.
    assert here(EVERY_TWO, "resume=false") == 0
    assert (output / "previous-1" / "policy_best" / "best.json").is_file()
    assert metrics(output) == metrics(unbroken)


def test_a_start_without_a_checkpoint_is_forgotten(here, tmp_path, monkeypatch):
    changes = {**EVERY_TWO, "train.save_steps": 100, "train.max_steps": 2}

    def interrupted(*arguments):
        if arguments[5] == "step 2":
            raise KeyboardInterrupt
        return evaluate(*arguments)

    monkeypatch.setattr(rl.during_training, "evaluate", interrupted)
    assert here(changes) != 0
    assert [line["step"] for line in split(tmp_path / "run")[1]] == [0]
    monkeypatch.undo()
    assert here(changes) == 0
    assert [line["step"] for line in split(tmp_path / "run")[1]] == [0, 2]


def test_a_stopped_run_leaves_the_evaluation_to_the_resumed_one(here, tmp_path, monkeypatch):
    """A signal in step 2: it is saved at once, and evaluated before step 3."""
    from rl.trainer import RigRollout

    rollout, calls = RigRollout.__call__, []

    def signalled(self, prompts, trainer):
        calls.append(prompts)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return rollout(self, prompts, trainer)

    monkeypatch.setattr(RigRollout, "__call__", signalled)
    assert here(EVERY_TWO) == 143
    steps, evaluations = split(tmp_path / "run")
    assert [line["step"] for line in steps] == [1, 2]
    assert [line["step"] for line in evaluations] == [0]
    assert here(EVERY_TWO) == 0
    unbroken = tmp_path / "unbroken"
    assert here(EVERY_TWO, f"output_dir={unbroken}") == 0
    assert split(tmp_path / "run") == split(unbroken)


def test_other_settings_start_a_new_choice(make_recipe, tmp_path, capsys):
    recipe = make_recipe({"eval.every": 1})
    folder = tmp_path / "run" / "policy_best"
    folder.mkdir(parents=True)
    own = rl.best_policy.settings_of(recipe)
    record = {"step": 3, "by": "total", "value": 1.5, "higher_is_better": True, "mean": {}, "settings": own}
    (folder / "best.json").write_text(json.dumps(record))
    assert read_best(tmp_path / "run", recipe).step == 3
    assert read_best(tmp_path / "run", make_recipe({"eval.every": 7, "eval.compare": ["a"]})).step == 3
    capsys.readouterr()
    for changes in ({"eval.best_by": "valid"}, {"eval.seed": 7}, {"eval.every_samples": 3}):
        assert read_best(tmp_path / "run", make_recipe(changes)) is None
        assert "was chosen by 'total' under other evaluation settings" in capsys.readouterr().err
    shutil.rmtree(folder)
    assert read_best(tmp_path / "run", recipe) is None


@pytest.mark.parametrize(
    ("value", "other", "higher", "expected"),
    [
        (2.0, 1.0, True, True),
        (1.0, 1.0, True, False),  # the earlier one stays
        (0.5, 1.0, True, False),
        (0.5, 1.0, False, True),
        (1.0, 1.0, False, False),
        (float("nan"), 1.0, True, False),
    ],
)
def test_better_by_the_measures_direction(value, other, higher, expected):
    now, before = (BestPolicy(step, "m", v, higher, {}, {}) for step, v in ((2, value), (1, other)))
    assert now.is_better_than(before) == expected
    assert now.is_better_than(None)


def test_the_direction_comes_from_the_measure(make_recipe):
    from rl.best_policy import candidate
    from rl.evaluation_results import Evaluation

    evaluation = Evaluation("p", 1, 0, {}, {"total": 4.0, "unirig_j2j_valid": 0.1}, {}, {})
    assert candidate(evaluation, 1, make_recipe()).higher_is_better
    by = make_recipe({"eval.best_by": "unirig_j2j_valid"})
    assert not candidate(evaluation, 1, by).higher_is_better
    assert candidate(evaluation, 1, make_recipe({"eval.best_by": "skin_iou_valid"})) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("totl", "'eval.best_by': no measure is named 'totl'; the nearest is 'total'"),
        ("joints", "'eval.best_by' is joints, of which neither more nor less is better"),
        ("valid_valid", "no measure is named 'valid_valid'"),
        ("bone_influence", "no measure is named 'bone_influence'"),  # a guard that is disabled
    ],
)
def test_measures_that_cannot_choose_are_refused(make_recipe, name, message):
    with pytest.raises(RecipeError) as caught:
        make_recipe({"eval.best_by": name})
    assert message in str(caught.value)
    assert make_recipe({"eval.best_by": "skin_iou_valid"})
    guarded = {"eval.best_by": "bone_influence", "rewards.bone_influence": {"weight": 1.0}}
    assert make_recipe(guarded)


def test_a_measure_without_ground_truth_is_refused_at_the_start(here, tmp_path, capsys):
    import trimesh

    trimesh.creation.icosphere(2).export(tmp_path / "ball.obj")
    bare = {**EVERY_TWO, "eval.best_by": "skin_iou", "data.eval_meshes": str(tmp_path / "ball.obj")}
    assert here(bare) == 2
    assert "no held-out mesh has a rig to compare with" in capsys.readouterr().err.splitlines()[-1]
    assert here({**EVERY_TWO, "eval.best_by": "skin_iou", "eval.metrics": False}) == 2
    assert "'eval.metrics' is false; set it to true" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [(4, None, [0, 1, 2, 3]), (4, 2, [0, 2]), (5, 3, [0, 1, 3]), (2, 5, [0, 1])],
)
def test_meshes_are_spread_evenly(count, most, expected):
    assert spread(range(count), most) == expected
