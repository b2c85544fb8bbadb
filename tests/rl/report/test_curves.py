"""Training curves: bands, running means, and held-out evaluations."""

import json

import numpy as np
import pytest

from rl.report.curves import MOST_POINTS, curve, curve_groups
from rl.report.read_run import read_run
from tests.rl.report.pages import metrics_line, write_run


def chart(groups, title):
    return next(chart for group in groups for chart in group["charts"] if chart["title"] == title)


def test_a_band_of_its_own_is_smoothed_with_the_curve():
    # Of three points the running mean covers one: too few to smooth.
    found = curve(np.array([1.0, 2, 3]), np.array([5.0, 6, 9]), np.array([4.0, 4, 8]), np.array([6.0, 8, 10]))
    assert found.smooth == found.values == [5, 6, 9]
    assert (found.low, found.high) == ([4, 4, 8], [6, 8, 10])


def test_many_steps_become_means_of_neighbours():
    steps = np.arange(1.0, 1001)
    found = curve(steps, steps * 2)
    assert len(found.steps) == 200 <= MOST_POINTS  # five steps each
    assert found.steps[:2] == [3, 8]
    assert found.values[:2] == [6, 16]
    # 200 points: windows of 13, fewer at the ends; a straight line stays one.
    assert found.smooth == pytest.approx(found.values)
    assert found.low[100] == 2 * (steps[94 * 5])  # the lowest of 13 points of five steps
    assert found.high[100] == 2 * (steps[106 * 5 + 4])
    assert (found.low[0], found.high[0]) == (2, 10)


def test_charts_of_a_run(tmp_path):
    write_run(tmp_path / "a")
    groups = curve_groups([read_run(tmp_path / "a", "a")])
    total = chart(groups, "total reward")["series"][0]
    assert total["values"] == [1, 2, 3, 4]
    assert total["low"] == [0.5, 1.5, 2.5, 3.5]
    # Held out, means of 8 (0.1 k + 0.05 r): 8 · 0.125 before, 8 · 0.25 more after.
    assert [(point["step"], pytest.approx(point["mean"])) for point in total["heldOut"]] == [(0, 1), (4, 3)]
    lengths = chart(groups, "tokens per rollout")["series"][0]
    assert (lengths["low"][0], lengths["high"][0]) == (80, 130)
    titles = {own["title"] for group in groups for own in group["charts"]}
    assert {"coverage", "KL to the starting policy", "rollout, seconds", "unscored"} <= titles
    assert "gradient norm" not in titles  # not logged


def test_evaluations_during_training_are_points_and_no_steps(tmp_path):
    """They stand alone: the evaluations before and after may have other meshes."""
    write_run(tmp_path / "a")
    with (tmp_path / "a" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "eval/total": 1.5, "eval/se/total": 0.25, "eval/coverage": 0.5}\n')
    run = read_run(tmp_path / "a", "a")
    assert run.last_step == 4
    points = chart(curve_groups([run]), "total reward")["series"][0]["heldOut"]
    assert points == [{"step": 2, "mean": 1.5, "error": 0.25}]


def test_totals_of_other_weights_are_no_points_and_noted(tmp_path):
    """As in an ablation, which evaluates every variant with the weights of the base."""
    write_run(tmp_path / "a", {"rewards.coverage.weight": 0.0})
    run = read_run(tmp_path / "a", "a")
    groups = curve_groups([run])
    assert chart(groups, "total reward")["series"][0]["heldOut"] == []
    assert len(chart(groups, "coverage")["series"][0]["heldOut"]) == 2
    assert "It was evaluated with other reward weights than trained" in run.notes[-1]
    write_run(tmp_path / "b", {"rewards.volume_preservation.weight": 1.0})  # not in the evaluation
    assert not read_run(tmp_path / "b", "b").weighs_alike


def test_values_that_are_missing_or_not_finite_leave_a_gap(tmp_path):
    write_run(tmp_path / "a", steps=0)
    lines = [metrics_line(step, 1.0) for step in (1, 2, 3)]
    lines[1]["reward"] = None
    text = "".join(f"{line}\n" for line in map(json.dumps, lines)).replace("0.03", "NaN")
    (tmp_path / "a" / "metrics.jsonl").write_text(text)
    groups = curve_groups([read_run(tmp_path / "a", "a")])
    assert chart(groups, "total reward")["series"][0]["steps"] == [1, 3]
    assert chart(groups, "KL to the starting policy")["series"][0]["steps"] == [1, 2]


def test_a_run_without_a_step_has_no_curve(tmp_path):
    write_run(tmp_path / "a", steps=0)
    assert curve_groups([read_run(tmp_path / "a", "a")]) == []
