"""Numbers of an evaluation by hand: means over what there is, paired differences, JSON and CSV."""

import csv
import json

import pytest

from rl.evaluation_results import (
    MEASURES,
    Difference,
    Evaluation,
    compare,
    mean_of,
    measure_of,
    standard_error,
    summarise,
    write_csv,
    write_evaluation,
)
from rl.ground_truth import METRICS, failed_metrics


def evaluation(policy: str, per_mesh: dict[str, dict[str, float]]) -> Evaluation:
    columns = list(dict.fromkeys(column for row in per_mesh.values() for column in row))
    mean, error = summarise(per_mesh, columns)
    return Evaluation(policy, 2, 7, per_mesh, mean, error, {})


def of(policy: str = "x", **totals: float) -> Evaluation:
    return evaluation(policy, {mesh: {"total": value, "valid": 1.0} for mesh, value in totals.items()})


@pytest.mark.parametrize(
    ("values", "mean", "error"),
    [
        ([], 0.0, 0.0),
        ([3.0], 3.0, 0.0),
        ([1.0, 1.0, 1.0], 1.0, 0.0),
        # mean 2, squares 1 + 0 + 1 = 2, variance 2 / 2 = 1, error sqrt(1 / 3)
        ([1.0, 2.0, 3.0], 2.0, (1 / 3) ** 0.5),
    ],
)
def test_mean_and_standard_error(values, mean, error):
    assert mean_of(values) == mean
    assert standard_error(values) == pytest.approx(error)


def test_a_column_is_over_the_meshes_that_have_it():
    per_mesh = {"a": {"total": 1.0, "skin_iou": 0.5}, "b": {"total": 3.0}}
    mean, error = summarise(per_mesh, ["total", "skin_iou", "motion_loss"])
    assert mean == {"total": 2.0, "skin_iou": 0.5}
    # Of 1 and 3: variance (1 + 1) / 1 = 2, error sqrt(2 / 2).
    assert error == {"total": 1.0, "skin_iou": 0.0}


def test_the_difference_is_paired():
    """+1 and +3 on meshes that differ by 100: mean 2, standard error 1, whatever the spread of meshes."""
    before, after = of(a=1.0, b=101.0), of(a=2.0, b=104.0)
    # squares (1 - 2)^2 + (3 - 2)^2 = 2, variance 2, error sqrt(2 / 2)
    assert compare(before, after)["total"] == Difference(2.0, 1.0, 2)
    assert compare(before, after)["valid"] == Difference(0.0, 0.0, 2)
    # A mesh that only one of them has does not count.
    assert compare(of(a=1.0, b=101.0, c=5.0), after)["total"] == Difference(2.0, 1.0, 2)
    assert compare(before, of(c=1.0)) == {}


def test_a_difference_needs_the_column_in_both():
    """No rig of mesh b was valid after: over valid rigs there is a difference on mesh a alone."""
    before = evaluation("A", {name: {"total": 1.0, "total_valid": 1.0} for name in "ab"})
    after = evaluation("B", {"a": {"total": 1.5, "total_valid": 1.5}, "b": {"total": 0.0}})
    found = compare(before, after)
    assert found["total_valid"] == Difference(0.5, 0.0, 1)
    # +0.5 and -1: mean -0.25, squares 2 * 0.75^2 = 1.125, error sqrt(1.125 / 2) = 0.75.
    assert found["total"] == Difference(-0.25, pytest.approx(0.75), 2)


def test_json_holds_the_others_with_their_differences(tmp_path):
    path = tmp_path / "evaluation.json"
    write_evaluation(of("A", a=1.0, b=101.0), path, [of("B", a=2.0, b=104.0)])
    written = json.loads(path.read_text())
    assert written["policy"] == "A"
    assert written["mean"] == {"total": 51.0, "valid": 1.0}
    (other,) = written["compared"]
    assert other["policy"] == "B"
    assert other["per_mesh"]["b"]["total"] == 104.0
    assert other["difference"]["total"] == {"mean": 2.0, "standard_error": 1.0, "meshes": 2}
    assert list(tmp_path.iterdir()) == [path]


def test_csv_row_by_row(tmp_path):
    path = tmp_path / "evaluation.csv"
    first = evaluation("A, the first", {"a": {"total": 1.0, "skin_iou": 0.25}, "b": {"total": 101.0}})
    write_csv([first, of("B", a=2.0, b=104.0)], path)
    lines = path.read_text().splitlines()
    assert lines[0] == "row,policy,mesh,total,skin_iou,valid"
    with path.open(newline="") as file:
        rows = [list(row.values()) for row in csv.DictReader(file)]
    assert rows == [
        ["mesh", "A, the first", "a", "1.0", "0.25", ""],
        ["mesh", "A, the first", "b", "101.0", "", ""],
        ["mesh", "B", "a", "2.0", "", "1.0"],
        ["mesh", "B", "b", "104.0", "", "1.0"],
        ["mean", "A, the first", "", "51.0", "0.25", ""],
        # Of 1 and 101: variance 2 * 50^2 = 5000, error sqrt(5000 / 2) = 50.
        ["standard_error", "A, the first", "", "50.0", "0.0", ""],
        ["mean", "B", "", "53.0", "", "1.0"],
        ["standard_error", "B", "", "51.0", "", "0.0"],
        ["difference", "B", "", "2.0", "", ""],
        ["difference_standard_error", "B", "", "1.0", "", ""],
    ]
    assert list(tmp_path.iterdir()) == [path]


def test_every_metric_is_a_known_measure():
    assert set(METRICS) <= set(MEASURES)
    assert measure_of("unirig_j2j_valid") == measure_of("unirig_j2j")
    assert measure_of("bone_influence").label == "bone_influence"
    # The worst value is the worst: high where less is better, 0 where more is.
    for name, worst in failed_metrics(20).items():
        assert (worst > 0) == MEASURES[name].lower
