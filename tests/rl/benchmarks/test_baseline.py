"""Ratios against a baseline: within the tolerance, below it, missing."""

import json

import pytest

from rl.benchmarks.baseline import RATIOS, read_baseline, shortfalls

BASELINE = {
    "rollout_ratio": {"value": 4.0, "tolerance": 0.25},
    "step_ratio": {"value": 2.0, "tolerance": 0.5},
}


@pytest.mark.parametrize(
    ("rollout", "step", "fell"),
    [
        (4.0, 2.0, []),
        (3.0, 1.0, []),  # exactly the tolerance
        (2.99, 2.0, ["rollout_ratio"]),
        (9.0, 0.5, ["step_ratio"]),
        (float("nan"), 2.0, ["rollout_ratio"]),
    ],
)
def test_ratios_below_the_tolerance_are_named(rollout, step, fell):
    problems = shortfalls({"rollout_ratio": rollout, "step_ratio": step}, BASELINE)
    assert [problem.split()[0] for problem in problems] == fell


def test_the_sentence_has_the_numbers():
    (problem,) = shortfalls({"rollout_ratio": 2.0, "step_ratio": 2.0}, BASELINE)
    assert problem == "rollout_ratio is 2.00, below 3.00 (baseline 4.00 less 25%)"


def test_a_baseline_without_ratios_is_refused():
    with pytest.raises(ValueError, match="none of the ratios"):
        shortfalls({}, {})


def test_a_size_without_a_baseline_is_refused(tmp_path):
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps({"small": BASELINE}))
    assert read_baseline(path, "small") == BASELINE
    with pytest.raises(ValueError, match="no baseline for size 'released'; it has small"):
        read_baseline(path, "released")


def test_the_committed_baseline_has_every_ratio_of_the_small_size():
    from tests.rl.benchmarks.test_benchmark import BASELINE_FILE

    baseline = read_baseline(BASELINE_FILE, "small")
    assert set(baseline) == set(RATIOS)
    targets = {"rollout_ratio": 3.0, "logprob_ratio": 2.0, "decoder_ratio": 1.5, "step_ratio": 2.5}
    for name, target in targets.items():
        assert baseline[name]["value"] * (1 - baseline[name]["tolerance"]) >= target
