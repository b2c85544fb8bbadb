"""Skin scores by hand, against plain loops and against an independent program's numbers."""

import math
from dataclasses import astuple, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.metrics import MetricError, failed_skin, puppeteer_skin_scores, skin_scores
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
    assert found.l1_per_entry == pytest.approx(expected["L1_per_entry_mean"], abs=1e-9)
    assert found.precision == pytest.approx(expected["precision"], abs=1e-12)
    assert found.recall == pytest.approx(expected["recall"], abs=1e-12)
    assert found.iou == pytest.approx(expected["IoU"], abs=1e-12)


def test_skin_scores_by_hand():
    truth = [[1.0, 0.0], [1.0, 0.0], [0.5, 0.5]]
    predicted = [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    # Per vertex 0, 1, 1: mean 2/3, over two columns 1/3, variance (4/9 + 1/9 + 1/9) / 3 = 2/9. Influences
    # predicted: 1 + 2 + 1 = 4, true: 1 + 1 + 2 = 4, both: 1 + 1 + 1 = 3, either: 4 + 4 - 3 = 5.
    found = skin_scores(predicted, truth)
    assert astuple(found) == pytest.approx((2 / 3, 1 / 3, 2 / 9, 0.75, 0.75, 0.6))
    # Above 0.5 only the ones: said (0, 0), (2, 1); true (0, 0), (1, 0); both 1, either 3.
    found = skin_scores(predicted, truth, threshold=0.5)
    assert astuple(found) == pytest.approx((2 / 3, 1 / 3, 2 / 9, 0.5, 0.5, 1 / 3))


def test_a_weight_at_the_threshold_is_no_influence():
    # Said: 0.5 and not 0.25; true: both. Precision 1/1, recall 1/2, IoU 1/2.
    found = skin_scores([[0.5, 0.25]], [[0.5, 0.5]], threshold=0.25)
    assert (found.precision, found.recall, found.iou) == (1, 0.5, 0.5)


def test_shares_of_nothing():
    nothing, something = np.zeros((2, 3)), np.full((2, 3), 0.5)
    assert astuple(skin_scores(nothing, nothing)) == (0, 0, 0, 1, 1, 1)
    for pair in ((nothing, something), (something, nothing)):
        found = skin_scores(*pair)
        assert (found.precision, found.recall, found.iou) == (0, 0, 0)


def test_the_worst_skin_is_a_failed_one():
    # Rows that share no joint: L1 is 1 + 1. Its variance is largest, 1, where half of the vertices are right.
    wrong, right = skin_scores([[1.0, 0.0]], [[0.0, 1.0]]), skin_scores([[1.0, 0.0]], [[1.0, 0.0]])
    assert wrong == replace(failed_skin(2), l1_variance=0)
    assert astuple(right) == (0, 0, 0, 1, 1, 1)
    assert skin_scores(np.eye(2), [[1.0, 0.0], [1.0, 0.0]]).l1_variance == failed_skin(2).l1_variance
    # Of many joints two are wrong per row. A truth of one joint and a rig of another: two columns.
    assert (failed_skin(50).l1, failed_skin(50).l1_per_entry) == (2, 0.04)
    assert failed_skin(1).l1_per_entry == skin_scores([[0, 1]], [[1, 0]]).l1_per_entry == 1


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
    return mean, mean / predicted.shape[1], variance, both / said, both / is_so, both / either


@given(seed=st.integers(0, 2**32), vertices=st.integers(1, 9), joints=st.integers(1, 7))
@settings(deadline=None, max_examples=40)
def test_properties_of_skin_scores(seed, vertices, joints):
    rng = np.random.default_rng(seed)
    # float32 like a rig's, with zeros; the first entry of both is an influence: no share is of nothing.
    a, b = (rng.random((2, vertices, joints)) * rng.integers(0, 2, (2, vertices, joints))).astype(np.float32)
    a[0, 0] = b[0, 0] = 0.75
    found = skin_scores(a, b, 0.3)
    assert astuple(found) == pytest.approx(skin_scores_reference(a, b, 0.3), abs=1e-12)
    assert astuple(skin_scores(a, a, 0.3)) == (0, 0, 0, 1, 1, 1)
    swapped = skin_scores(b, a, 0.3)
    assert astuple(swapped) == pytest.approx(
        (found.l1, found.l1_per_entry, found.l1_variance, found.recall, found.precision, found.iou), abs=1e-12
    )
    rows, columns = rng.permutation(vertices), rng.permutation(joints)
    mixed = skin_scores(a[rows][:, columns], b[rows][:, columns], 0.3)
    assert astuple(mixed) == pytest.approx(astuple(found), abs=1e-12)


# ------------------------------------------------------------------ Puppeteer's evaluation


def test_puppeteer_by_hand():
    truth = [
        [0.5, 0.5, 0.0, 0.0],
        [1.0, 0.0, 0.0, 0.0],
        [0.0, 0.3, 0.3, 0.4],
        [0.4, 0.4, 0.0, 0.0],  # sums to 0.8: does not count
        [0.0, 0.0, 0.0, 0.0],  # nor does a vertex without weights
    ]
    predicted = [
        [0.8, 0.1, 0.1, 0.0],  # 0.1 < 0.15 * 0.8 = 0.12: to 1, 0, 0, 0
        [0.75, 0.15, 0.1, 0.0],  # 0.1125 cuts 0.1, not 0.15: to 5/6, 1/6, 0, 0
        [0.0, 0.0, 0.0, 1.0],
        [1.0, 0.0, 0.0, 0.0],
        [1.0, 0.0, 0.0, 0.0],
    ]
    # L1: 0.5 + 0.5 = 1; 1/6 + 1/6 = 1/3; 0.3 + 0.3 + 0.6 = 1.2. Sum 38/15: over 3 vertices 38/45, over 12
    # entries 19/90. Non-zero: predicted 1 + 2 + 1 = 4, true 2 + 1 + 3 = 6, both 1 + 1 + 1 = 3, either
    # 4 + 6 - 3 = 7.
    found = puppeteer_skin_scores(predicted, truth, 0.15)
    assert (found.l1, found.l1_per_entry) == pytest.approx((38 / 45, 19 / 90))
    assert (found.precision, found.recall, found.iou) == pytest.approx((3 / 4, 3 / 6, 3 / 7))
    # ModelsResource: 0.35 * 0.75 cuts 0.15 as well. The second row is right: L1 2.2, predicted 3, both 3.
    found = puppeteer_skin_scores(predicted, truth, 0.35)
    assert (found.l1, found.l1_per_entry) == pytest.approx((2.2 / 3, 2.2 / 12))
    assert (found.precision, found.recall, found.iou) == pytest.approx((1, 3 / 6, 3 / 6))


def test_puppeteer_keeps_what_is_at_a_limit():
    def influences(row, cut=0.15):
        """Which weights are left of a predicted row, from the recall of one joint at a time."""
        return [
            puppeteer_skin_scores([row], [np.eye(len(row))[joint]], cut).recall == 1
            for joint in range(len(row))
        ]

    assert influences([0.5, 0.25, 0.25], cut=0.5) == [True, True, True]  # half of the largest is not below it
    assert influences([0.5, 0.25, 0.125, 0.125], cut=0.5) == [True, True, False, False]
    # Weights below 0.001 are cut first, then the largest is taken: of weights below 0.001 none is left.
    assert influences([1e-3, 9e-4, 5e-4], cut=0.15) == [True, False, False]
    assert influences([9e-4, 9e-4], cut=0.15) == [False, False]


def test_puppeteer_counts_vertices_whose_true_weights_sum_to_one():
    row = [0.5, 0.5]
    assert puppeteer_skin_scores([row], [[0.5, 0.505]], 0.15).l1 == pytest.approx(0.005)
    assert puppeteer_skin_scores([row], [[0.5, 0.495]], 0.15).l1 == pytest.approx(0.005)
    for other in ([0.5, 0.52], [0.5, 0.48], [0, 0]):
        assert puppeteer_skin_scores([row], [other], 0.15) is None
        both = puppeteer_skin_scores([row, row], [row, other], 0.15)
        assert astuple(both) == (0, 0, 0, 1, 1, 1)


def puppeteer_reference(predicted, truth, cut):
    """(L1 per vertex, L1 per entry, precision, recall), a loop over rows and entries."""
    total, vertices, said, is_so, both = 0.0, 0, 0, 0, 0
    for p_row, t_row in zip(predicted.tolist(), truth.tolist(), strict=True):
        if abs(sum(t_row) - 1) > 0.01:
            continue
        vertices += 1
        p_row = [0 if p < 1e-3 else p for p in p_row]
        largest = max(p_row)
        p_row = [0 if p < cut * largest else p for p in p_row]
        whole = sum(p_row)
        for p, t in zip(p_row, t_row, strict=True):
            own = p / whole if whole else 0
            total += abs(own - t)
            said += own != 0
            is_so += t != 0
            both += own != 0 and t != 0
    return total / vertices, total / vertices / predicted.shape[1], both / said, both / is_so


@given(
    seed=st.integers(0, 2**32),
    vertices=st.integers(1, 9),
    joints=st.integers(1, 7),
    cut=st.sampled_from([0.15, 0.35]),
)
@settings(deadline=None, max_examples=40)
def test_puppeteer_matches_the_loops(seed, vertices, joints, cut):
    rng = np.random.default_rng(seed)
    p, t = rng.random((2, vertices, joints)) ** 4 * rng.integers(0, 2, (2, vertices, joints))
    p[0, 0] = t[0, 0] = 0.75  # no share is of nothing
    p, t = (weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-9) for weights in (p, t))
    t[1::3] *= 0.9
    found = puppeteer_skin_scores(p, t, cut)
    expected = puppeteer_reference(p, t, cut)
    assert (found.l1, found.l1_per_entry, found.precision, found.recall) == pytest.approx(expected, abs=1e-12)
    # The arguments stay as they are, and equal weights score 1.
    assert puppeteer_skin_scores(p, t, cut) == found
    kept = np.where(t > 0, 1.0, 0.0)
    kept /= np.maximum(kept.sum(axis=1, keepdims=True), 1)
    assert astuple(puppeteer_skin_scores(kept, kept, cut)) == pytest.approx((0, 0, 0, 1, 1, 1), abs=1e-12)


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
    if "threshold" not in message:
        with pytest.raises(MetricError, match=message):
            puppeteer_skin_scores(predicted, truth, 0.15)
