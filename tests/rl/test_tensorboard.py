"""TensorBoard through `train.report_to`: its event files hold the run's steps and evaluations."""

from pathlib import Path

import pytest

from tests.rl.commands import metrics

pytest.importorskip("tensorboard", reason="the dev environment has it; this one does not")


def values(file: Path, tag: str) -> dict[int, float]:
    """A scalar of one event file by step."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found = {}
    for event in EventFileLoader(str(file)).Load():
        for value in event.summary.value:
            if value.tag == tag:
                assert len(value.tensor.float_val) == 1
                found[event.step] = value.tensor.float_val[0]
    return found


def test_event_files_have_the_steps_and_evaluations_also_after_a_resume(here, tmp_path):
    changes = {"train.report_to": "tensorboard", "eval.every": 1, "eval.before_and_after": False}
    assert here({**changes, "train.max_steps": 1}) == 0
    assert here({**changes, "train.max_steps": 2}) == 0
    output = tmp_path / "run"
    files = sorted(output.glob("trainer/runs/*/events.out.tfevents.*"))
    assert len(files) == 2
    lines = metrics(output)
    for tag, own in (
        ("eval/total", "eval/total"),
        ("train/reward", "reward"),
        ("train/rig/valid", "rig/valid"),
    ):
        written = {line["step"]: line[own] for line in lines if own in line}
        first, second = (values(file, tag) for file in files)
        assert not set(first) & set(second)
        assert first | second == pytest.approx(written)
