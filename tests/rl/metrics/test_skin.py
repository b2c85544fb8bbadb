"""Skin scores by hand, against plain loops and against an independent program's numbers."""

import math
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.metrics import FAILED_SKIN, MetricError, skin_scores
from tests.rewards import cases

REWEIGHTED = [
    (name, variant)
    for name in cases.NAMES
    for variant, numbers in cases.expected(name)["variants"].items()
    if "IoU" in numbers.get("metrics_vs_gt", {})
]


@pytest.mark.parametrize(("name", "variant"), REWEIGHTED)
def test_skin_scores_reproduce_the_reference_numbers(name, variant):
    data, numbers = cases.inputs(name), cases.expected(name)["variants"][variant]
    truth = data["weights_normalised"]  # what the other program compared with
    found = skin_scores(data[numbers["weights"]], truth)
    expected = numbers["metrics_vs_gt"]
    assert found.l1 == pytest.approx(expected["L1_per_vertex_sum"], abs=1e-9)
    assert found.l1 / truth.shape[1] == pytest.approx(expected["L1_per_entry_mean"], abs=1e-9)
    assert found.precision == pytest.approx(expected["precision"], abs=1e-12)
    assert found.recall == pytest.approx(expected["recall"], abs=1e-12)
    assert found.iou == pytest.approx(expected["IoU"], abs=1e-12)


def test_skin_scores_by_hand():
    truth = [[1.0, 0.0], [1.0, 0.0], [0.5, 0.5]]
    predicted = [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    # Per vertex 0, 1, 1: mean 2/3, variance (4/9 + 1/9 + 1/9) / 3 = 2/9. Influences said: 1 + 2 + 1 = 4,
    # true: 1 + 1 + 2 = 4, both: 1 + 1 + 1 = 3, either: 4 + 4 - 3 = 5.
    found = skin_scores(predicted, truth)
    assert astuple(found) == pytest.approx((2 / 3, 2 / 9, 0.75, 0.75, 0.6))
    # Above 0.5 only the ones: said (0, 0), (2, 1); true (0, 0), (1, 0); both 1, either 3.
    found = skin_scores(predicted, truth, threshold=0.5)
    assert astuple(found) == pytest.approx((2 / 3, 2 / 9, 0.5, 0.5, 1 / 3))


def test_a_weight_at_the_threshold_is_no_influence():
    # Said: 0.5 and not 0.25; true: both. Precision 1/1, recall 1/2, IoU 1/2.
    found = skin_scores([[0.5, 0.25]], [[0.5, 0.5]], threshold=0.25)
    assert (found.precision, found.recall, found.iou) == (1, 0.5, 0.5)


def test_shares_of_nothing():
    nothing, something = np.zeros((2, 3)), np.full((2, 3), 0.5)
    assert astuple(skin_scores(nothing, nothing)) == (0, 0, 1, 1, 1)
    for pair in ((nothing, something), (something, nothing)):
        found = skin_scores(*pair)
        assert (found.precision, found.recall, found.iou) == (0, 0, 0)


def test_the_worst_skin_is_a_failed_one():
    # Rows that share no joint: L1 is 1 + 1. Its variance is largest, 1, where half of the vertices are right.
    wrong, right = skin_scores([[1.0, 0.0]], [[0.0, 1.0]]), skin_scores([[1.0, 0.0]], [[1.0, 0.0]])
    assert (wrong.l1, wrong.precision, wrong.recall, wrong.iou) == (FAILED_SKIN.l1, 0, 0, 0)
    assert astuple(right) == (0, 0, 1, 1, 1)
    assert skin_scores(np.eye(2), [[1.0, 0.0], [1.0, 0.0]]).l1_variance == FAILED_SKIN.l1_variance


def skin_scores_reference(predicted, truth, threshold):
    per_vertex, said, is_so, both, either = [], 0, 0, 0, 0
    for p_row, t_row in zip(predicted.tolist(), truth.tolist(), strict=True):
        per_vertex.append(sum(abs(p - t) for p, t in zip(p_row, t_row, strict=True)))
        for p, t in zip(p_row, t_row, strict=True):
            said += p > threshold
            is_so += t > threshold
            both += p > threshold and t > threshold
            either += p > threshold or t > threshold
    mean = sum(per_vertex) / len(per_vertex)
    variance = sum((x - mean) ** 2 for x in per_vertex) / len(per_vertex)
    return mean, variance, both / said, both / is_so, both / either


@given(seed=st.integers(0, 2**32), vertices=st.integers(1, 9), joints=st.integers(1, 7))
@settings(deadline=None, max_examples=40)
def test_properties_of_skin_scores(seed, vertices, joints):
    rng = np.random.default_rng(seed)
    # float32 like a rig's, with zeros; the first entry of both is an influence: no share is of nothing.
    a, b = (rng.random((2, vertices, joints)) * rng.integers(0, 2, (2, vertices, joints))).astype(np.float32)
    a[0, 0] = b[0, 0] = 0.75
    found = skin_scores(a, b, 0.3)
    assert astuple(found) == pytest.approx(skin_scores_reference(a, b, 0.3), abs=1e-12)
    assert astuple(skin_scores(a, a, 0.3)) == (0, 0, 1, 1, 1)
    swapped = skin_scores(b, a, 0.3)
    assert astuple(swapped) == pytest.approx(
        (found.l1, found.l1_variance, found.recall, found.precision, found.iou), abs=1e-12
    )
    rows, columns = rng.permutation(vertices), rng.permutation(joints)
    mixed = skin_scores(a[rows][:, columns], b[rows][:, columns], 0.3)
    assert astuple(mixed) == pytest.approx(astuple(found), abs=1e-12)


@pytest.mark.parametrize(
    ("predicted", "truth", "threshold", "message"),
    [
        (
            np.ones((2, 3)),
            np.ones((2, 4)),
            0.01,
            r"predicted weights have shape \(2, 3\) and ground-truth weights \(2, 4\)",
        ),
        (np.ones((2, 3)), np.ones((3, 3)), 0.01, r"shape \(2, 3\) and ground-truth weights \(3, 3\)"),
        (np.ones((0, 3)), np.ones((0, 3)), 0.01, r"predicted weights: weights have shape \(0, 3\)"),
        (np.ones((2, 3)), np.full((2, 3), np.nan), 0.01, "ground-truth weights: vertex 0"),
        (-np.ones((2, 3)), np.ones((2, 3)), 0.01, "predicted weights: vertex 0"),
        (np.ones(3), np.ones(3), 0.01, r"predicted weights: weights have shape \(3,\)"),
        (np.ones((2, 3)), np.ones((2, 3)), -0.5, "threshold is -0.5"),
        (np.ones((2, 3)), np.ones((2, 3)), math.nan, "threshold is nan"),
    ],
)
def test_unusable_weights_are_refused(predicted, truth, threshold, message):
    with pytest.raises(MetricError, match=message):
        skin_scores(predicted, truth, threshold)
