"""Plots of an ablation: what they draw, from numbers worked by hand."""

import json

import numpy as np
import pytest

from rl.ablation.plots import draw_against_truth, draw_changes, draw_curves, mean_curve, write_plots
from rl.ablation.table import variant_result
from rl.ablation.table_files import AblationResults
from tests.rl.ablation.test_table import evaluation


def row(total: float, distance: float | None = None) -> dict[str, float]:
    row = {"coverage": total / 5, "total": total, "valid": 1.0, "joints": 20.0}
    return row if distance is None else {**row, "unirig_j2j_valid": distance}


def results(truth: bool = True) -> AblationResults:
    """The base gains 1 and comes 0.01 nearer; `no_kl` gains 2 and 4 on its meshes, and is 0.02 farther."""
    distance = 0.05 if truth else None
    before = evaluation(a=row(1.0, distance), b=row(2.0, distance))
    nearer, farther = (0.04, 0.07) if truth else (None, None)
    base = evaluation(a=row(2.0, nearer), b=row(3.0, nearer))
    no_kl = evaluation(a=row(3.0, farther), b=row(6.0, farther))
    return AblationResults(
        before,
        [
            variant_result("base", [], {1: before}, {1: base}, {}),
            variant_result("no_kl", ["train.beta=0"], {1: before}, {1: no_kl}, {1: base}),
        ],
        {},
    )


def points(panel) -> list[tuple[float, float]]:
    """Where a panel's points with errors are."""
    lines = [container.lines[0] for container in panel.containers]
    return [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in lines]


def test_changes_are_drawn_in_the_units_of_the_tables():
    panels = {panel.get_title(): panel for panel in draw_changes(results()).axes if panel.get_visible()}
    assert list(panels) == ["total ↑", "coverage ↑", "valid, % ↑", "joints", "J2J unirig, % of box ↓"]
    assert points(panels["total ↑"]) == [(1.0, 0.0), (3.0, 1.0)]
    assert points(panels["J2J unirig, % of box ↓"]) == [
        (pytest.approx(-1.0), 0.0),
        (pytest.approx(2.0), 1.0),
    ]
    # 2 and 4: standard error 1.
    bars = panels["total ↑"].containers[1].lines[2][0].get_segments()[0]
    assert bars[:, 0].tolist() == pytest.approx([2.0, 4.0])
    assert [label.get_text() for label in panels["total ↑"].get_yticklabels()] == ["base", "no_kl"]


def test_the_total_is_drawn_against_the_ground_truth():
    panel, *_ = draw_against_truth(results()).axes
    assert points(panel) == [(1.0, pytest.approx(-1.0)), (3.0, pytest.approx(2.0))]
    assert [text.get_text() for text in panel.texts] == ["base", "no_kl"]
    assert draw_against_truth(results(truth=False)) is None


def test_a_curve_is_the_mean_of_the_seeds_at_the_steps_they_share():
    runs = [
        [{"step": 1, "kl": 1.0}, {"step": 2, "kl": 2.0}, {"step": 3, "kl": None}],
        [{"step": 1, "kl": 3.0}, {"step": 2, "kl": 6.0}, {"step": 3, "kl": 1.0}, {"step": 4, "kl": 1.0}],
    ]
    steps, values = mean_curve(runs, "kl")
    assert (steps.tolist(), values.tolist()) == ([1, 2], [2, 4])
    assert mean_curve(runs, "entropy") is None
    assert mean_curve([], "kl") is None


def test_a_long_curve_is_smoothed():
    """30 steps: a window of three, and of two at the ends."""
    run = [{"step": step, "kl": float(step % 2)} for step in range(30)]
    _, values = mean_curve([run], "kl")
    assert values[0] == 0.5
    np.testing.assert_allclose(values[1:-1], [(1 if place % 2 else 2) / 3 for place in range(1, 29)])


def test_the_files(tmp_path):
    folders = {}
    for name in ("base", "no_kl"):
        folders[name] = [tmp_path / name]
        folders[name][0].mkdir()
        lines = [{"step": step, "loss": 0.0, "rewards/coverage/mean": 0.1, "kl": 0.2} for step in (1, 2)]
        text = "".join(json.dumps(line) + "\n" for line in [*lines, {"step": 2, "eval/total": 3.0}])
        (folders[name][0] / "metrics.jsonl").write_text(text)
    write_plots(results(), folders, tmp_path)
    found = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert found == ["changes.png", "curves.png", "reward_and_truth.png"]
    for name in found:
        assert (tmp_path / "plots" / name).read_bytes().startswith(b"\x89PNG")
    panels = {panel.get_title(): panel for panel in draw_curves(folders).axes if panel.get_visible()}
    assert list(panels) == ["coverage", "KL"]
    assert [line.get_label() for line in panels["KL"].lines] == ["base", "no_kl"]
    assert panels["KL"].lines[0].get_xdata().tolist() == [1, 2]
