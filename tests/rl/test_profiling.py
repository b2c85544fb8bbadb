"""`profile.steps`: traces of some steps, per process, with the phases of a step; numbers stay the same."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from data.typed_recipe import RecipeError
from rl.profiling import Event, operator_table, own_times
from tests.rl.commands import metrics
from tests.rl.training_runs import Run, weights

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


# Short completions: a trace has an event per operator.
SHORT = {"train.max_completion_length": 40}


def trace(path: Path) -> list[dict]:
    with gzip.open(path, "rt") as file:
        return json.load(file)["traceEvents"]


def annotations(path: Path) -> list[dict]:
    found = [event for event in trace(path) if event.get("cat") == "user_annotation"]
    return sorted(found, key=lambda event: event["ts"])


def inside(inner: dict, outer: dict) -> bool:
    return outer["ts"] <= inner["ts"] and inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"]


def profiled(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "profile").iterdir())


def test_a_profile_names_the_phases_of_its_steps_and_changes_no_number(make_recipe, tmp_path):
    plain = Run(make_recipe({**SHORT, "output_dir": str(tmp_path / "plain"), "train.max_steps": 4}))
    expected = weights(plain.optimise())
    run = Run(make_recipe({**SHORT, "train.max_steps": 4, "profile": {"steps": [2, 3]}}))
    trained = run.optimise()

    assert metrics(tmp_path / "run") == metrics(tmp_path / "plain")
    for name, tensor in trained.named_parameters():
        assert torch.equal(tensor, expected[name]), name
    folder = tmp_path / "run" / "profile"
    assert profiled(tmp_path / "run") == ["steps_2-3_rank0.json.gz", "steps_2-3_rank0.txt"]
    found = annotations(folder / "steps_2-3_rank0.json.gz")
    by_name = {
        name: [event for event in found if event["name"] == name] for name in {e["name"] for e in found}
    }
    assert [len(by_name[name]) for name in ("rollout", "reward wait", "update")] == [2, 2, 2]
    # Per step: the reference policy's, before the update, and those of the loss, inside it.
    outside = [
        event
        for event in by_name["log-probs"]
        if not any(inside(event, update) for update in by_name["update"])
    ]
    assert (len(by_name["log-probs"]), len(outside)) == (4, 2)
    for rollout, update in zip(by_name["rollout"], by_name["update"], strict=True):
        assert rollout["ts"] + rollout["dur"] <= update["ts"]
    operators = {event["name"] for event in trace(folder / "steps_2-3_rank0.json.gz")}
    assert "aten::mm" in operators or "aten::addmm" in operators
    table = (folder / "steps_2-3_rank0.txt").read_text()
    assert "aten::" in table
    assert "GPU kernel" not in table


def test_own_time_leaves_out_the_calls_inside():
    """A holds B and C, C holds D, E follows A in its thread; F runs in another thread; K on a GPU.

    A: 100 - (20 + 30); C: 30 - 10.
    """
    events = [
        Event("C", 50, 80, 1),
        Event("A", 0, 100, 1),
        Event("B", 10, 30, 1),
        Event("D", 60, 70, 1),
        Event("E", 100, 105, 1),
        Event("F", 0, 100, 2),
        Event("K", 0, 7, None),
        Event("K", 8, 9, None),
    ]
    own = own_times([[event for event in events if event.track == thread] for thread in (1, 2)])
    assert own == {"A": [50], "B": [20], "C": [20], "D": [10], "E": [5], "F": [100]}
    operators, kernels = operator_table(events).split("\n\n")
    assert [line.split()[0] for line in operators.splitlines()[1:3]] == ["F", "A"]
    assert "K" not in operators
    assert kernels.splitlines()[1].split()[3] == "2"  # calls


@pytest.mark.parametrize(
    ("before", "steps", "expected"),
    [
        (3, [1, 2], None),  # all of them are past
        (2, [2, 3], "steps_3-3_rank0"),  # the run resumes among them
    ],
)
def test_a_resumed_run_profiles_what_is_left_of_the_steps(here, tmp_path, before, steps, expected):
    changes = {**SHORT, "eval.before_and_after": False}
    assert here({**changes, "train.max_steps": before}) == 0
    assert here({**changes, "train.max_steps": 4}, f"profile.steps={steps}") == 0
    if expected is None:
        assert not (tmp_path / "run" / "profile").exists()
    else:
        assert profiled(tmp_path / "run") == [f"{expected}.json.gz", f"{expected}.txt"]


def test_a_run_that_stops_among_the_steps_writes_what_it_has(make_recipe, tmp_path):
    run = Run(make_recipe({**SHORT, "train.max_steps": 3, "profile": {"steps": [2, 3]}}))
    trainer = run.trainer()

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 2

    trainer.add_callback(Stop())
    trainer.train()
    assert profiled(tmp_path / "run") == ["steps_2-2_rank0.json.gz", "steps_2-2_rank0.txt"]


def test_steps_behind_the_last_one_are_refused(make_recipe):
    with pytest.raises(RecipeError, match=r"'profile.steps' \[2, 3\] ends after .* 'train.max_steps' 2"):
        make_recipe({"profile": {"steps": [2, 3]}})
    assert make_recipe({"profile": {"steps": [2, 2]}}).profile.steps == (2, 2)
