"""Training logs: metrics.jsonl, the console line and bar, step times."""

import json
import math
from types import SimpleNamespace

import pytest

from rl.reporting import MetricsLog, StepTimes, mean_metrics


def state(step: int = 0, main: bool = True) -> SimpleNamespace:
    return SimpleNamespace(is_world_process_zero=main, global_step=step, max_steps=5)


ARGUMENTS = SimpleNamespace(disable_tqdm=False)
STEP = {"loss": 0.5, "reward": 3.25, "kl": 0.001, "step_time": 2.0, "rig/valid": 1.0}


@pytest.fixture
def log(tmp_path) -> MetricsLog:
    return MetricsLog(tmp_path / "run" / "metrics.jsonl")


def lines(log: MetricsLog) -> list[dict]:
    return [json.loads(line) for line in log.path.read_text().splitlines()]


def test_a_step_is_a_line_of_json_and_a_line_on_the_console(log, capsys):
    log.on_train_begin(ARGUMENTS, state(), None)
    log.on_log(ARGUMENTS, state(1), None, logs=dict(STEP))
    log.on_step_end(ARGUMENTS, state(1), None)
    log.on_train_end(ARGUMENTS, state(1), None)
    assert lines(log) == [{"step": 1, **STEP}]
    shown = capsys.readouterr().err
    assert "step 1  reward 3.25  valid 1  kl 0.001" in shown
    assert "1/5" in shown


def test_what_has_no_value_is_null_and_a_nan_is_a_nan(log, capsys):
    logs = {**STEP, "reward": None, "kl": math.nan, "grad_norm": -math.inf, "note": "text", "epoch": 0.1}
    log.on_train_begin(ARGUMENTS, state(), None)
    log.on_log(ARGUMENTS, state(1), None, logs=logs)
    assert '"kl": NaN' in log.path.read_text()
    (line,) = lines(log)
    assert math.isnan(line.pop("kl"))
    expected = {"step": 1, **STEP, "reward": None, "grad_norm": -math.inf}
    del expected["kl"]
    assert line == expected
    assert "kl nan" in capsys.readouterr().err


def test_means_skip_what_has_no_value_and_keep_a_nan():
    means = mean_metrics(
        {"a": [1.0, None, 2.0], "b": [None, None], "c": [1.0, math.nan], "d": [math.inf, 1.0]}
    )
    assert means["a"] == 1.5
    assert means["b"] is None
    assert math.isnan(means["c"])
    assert means["d"] == math.inf


def test_the_console_shows_the_mean_of_every_reward(log, capsys):
    further = {"rewards/bone_influence/mean": 0.75, "rewards/bone_influence/std": 0.5}
    log.on_train_begin(ARGUMENTS, state(), None)
    log.on_log(ARGUMENTS, state(1), None, logs={**STEP, "rewards/coverage/mean": 0.25, **further})
    shown = capsys.readouterr().err
    assert "cov 0.25" in shown
    assert "bone_influence 0.75" in shown
    assert "0.5  " not in shown.partition("bone_influence")[2]  # no standard deviation


def test_the_closing_summary_is_no_step(log):
    log.on_train_begin(ARGUMENTS, state(), None)
    log.on_log(ARGUMENTS, state(1), None, logs={"train_runtime": 3.0, "train_loss": 0.1})
    log.on_log(ARGUMENTS, state(1), None, logs=None)
    assert lines(log) == []


def test_only_the_main_process_writes(log):
    log.on_train_begin(ARGUMENTS, state(main=False), None)
    log.on_log(ARGUMENTS, state(1, main=False), None, logs=dict(STEP))
    log.on_step_end(ARGUMENTS, state(1, main=False), None)
    log.on_train_end(ARGUMENTS, state(1, main=False), None)
    assert not log.path.exists()


@pytest.mark.parametrize("rest", ["", '{"step": 4, "los', "\n"])
def test_a_resume_keeps_the_lines_up_to_its_step(log, rest):
    log.path.parent.mkdir()
    log.path.write_text("".join(f'{{"step": {step}, "loss": 1.0}}\n' for step in (1, 2, 3)) + rest)
    log.on_train_begin(ARGUMENTS, state(2), None)
    log.on_log(ARGUMENTS, state(3), None, logs=dict(STEP))
    assert [line["step"] for line in lines(log)] == [1, 2, 3]
    assert lines(log)[2]["loss"] == 0.5
    assert [path.name for path in log.path.parent.iterdir()] == ["metrics.jsonl"]


def test_closing_twice_does_no_harm(log):
    log.on_train_begin(ARGUMENTS, state(), None)
    log.close()
    log.close()
    log.on_step_end(ARGUMENTS, state(1), None)


@pytest.mark.parametrize(
    ("logs", "expected"),
    [
        # 2.0 s a step, of which 1.2 s sampling and 0.3 s waiting
        ({"step_time": 2.0, "seconds/rollout": 1.2, "seconds/wait_for_rewards": 0.3}, 0.5),
        # rollouts of the step before are used again: nothing to take off
        ({"step_time": 2.0}, 2.0),
        ({"step_time": 2.0, "seconds/rollout": None, "seconds/wait_for_rewards": None}, 2.0),
        # clocks of the parts may add up to a little more
        ({"step_time": 1.0, "seconds/rollout": 1.1}, 0.0),
    ],
)
def test_training_time_is_what_is_left_of_a_step(logs, expected):
    StepTimes().on_log(ARGUMENTS, state(1), None, logs=logs)
    assert logs["seconds/train"] == pytest.approx(expected)


def test_logs_that_are_no_step_get_no_times():
    logs = {"train_runtime": 1.0}
    StepTimes().on_log(ARGUMENTS, state(1), None, logs=logs)
    StepTimes().on_log(ARGUMENTS, state(1), None, logs=None)
    assert logs == {"train_runtime": 1.0}
