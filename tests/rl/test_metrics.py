"""Metrics by hand, against plain references and against the numbers of an independent program."""

import math
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.rig import Rig, reorder
from rewards import random_rotations
from rewards.poses import rotation_matrices
from rewards.references import linear_blend_skinning_reference, skinning_matrices_reference
from rl import metrics
from rl.metrics import (
    BOX_SIDE,
    FAILED_MOTION,
    FAILED_SKELETON,
    FAILED_SKIN,
    MetricError,
    align_weights,
    motion_loss,
    pair_joints,
    point_segment_distances,
    point_segment_distances_reference,
    skeleton_distances,
    skeleton_distances_reference,
    skin_scores,
)
from tests.rewards import cases

CONVENTIONS = ("unirig", "rignet")
EACH = pytest.mark.parametrize("convention", CONVENTIONS)
BOTH = pytest.mark.parametrize(
    "distances", [skeleton_distances, skeleton_distances_reference], ids=["fast", "reference"]
)
MOVED = [
    (name, variant)
    for name in cases.NAMES
    for variant, numbers in cases.expected(name)["variants"].items()
    if "J2J" in numbers.get("metrics_vs_gt", {})
]
REWEIGHTED = [
    (name, variant)
    for name in cases.NAMES
    for variant, numbers in cases.expected(name)["variants"].items()
    if "IoU" in numbers.get("metrics_vs_gt", {})
]

POINT = ([[0, 0, 0]], [-1])
ALONG_X = ([[0, 0, 0], [1, 0, 0]], [-1, 0])
ALONG_Y = ([[0, 0, 0], [0, 1, 0]], [-1, 0])
LIFTED = ([[0, 0.5, 0], [1, 0.5, 0]], [-1, 0])
HOOKED = ([[0, 0, 0], [1, 0, 0], [1, 0.1, 0]], [-1, 0, 1])
FORKED = ([[0, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0.1, 0]], [-1, 0, 0, 1])  # the hook, one bone twice
DOUBLED = ([[0, 0, 0], [1, 0, 0], [1, 0, 0]], [-1, 0, 1])
TWO_ROOTS = ([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [-1, 0, -1])


@BOTH
@pytest.mark.parametrize(
    ("convention", "a", "b", "expected"),
    [
        # Parallel bones, 0.5 apart in the mesh frame: every distance is 0.5, a quarter of the box side.
        ("unirig", ALONG_X, LIFTED, (0.25, 0.25, 0.25)),
        ("rignet", ALONG_X, LIFTED, (0.25, 0.25, 0.25)),
        # Joints: the shared one 0, the other 1 from the shared one; mean 0.5, halved.
        # Joint to bone, exact: 0 and 1 again. The midpoints of 100 pieces are 0.005, 0.015, … 0.995 from the
        # other bone's start: mean 0.5.
        ("rignet", ALONG_X, ALONG_Y, (0.25, 0.25, 0.25)),
        # J2B the same, since a bone's points begin at its parent. B2B's samples begin 0.01 further: from
        # sample k the nearest is the other's first, hypot(k, 1) / 100 away.
        (
            "unirig",
            ALONG_X,
            ALONG_Y,
            (0.25, 0.25, sum(math.hypot(k, 1) / 100 for k in range(1, 101)) / 100 / 2),
        ),
        # One joint is a bone of no length. J2J: there 0, back (0 + 1) / 2; (0 + 0.5) / 2 / 2 = 0.125.
        # Exact J2B: the same. B2B: there 0, back the midpoints' mean 0.5.
        ("rignet", POINT, ALONG_X, (0.125, 0.125, 0.125)),
        # The first sample is 0.01 away; back, the samples' mean is (0.01 + … + 1) / 100 = 0.505.
        ("unirig", POINT, ALONG_X, (0.125, 0.125, (0.01 + 0.505) / 2 / 2)),
        # A doubled joint counts twice: J2J and J2B back (0 + 1 + 1) / 3 = 2/3; 100 of the 200 samples are 1
        # away: (0.505 + 1) / 2 = 0.7525 …
        ("unirig", POINT, DOUBLED, (1 / 6, 1 / 6, (0.01 + 0.7525) / 4)),
        # … or once.
        ("rignet", POINT, DOUBLED, (0.125, 0.125, 0.125)),
        ("rignet", ALONG_X, DOUBLED, (0, 0, 0)),
        # The hook's joint is 0.1 away: back (0 + 0 + 0.1) / 3, there 0. Each bone has 100 samples: those of
        # the hook are 0.001 … 0.1 away, mean 0.0505, half of all.
        ("unirig", ALONG_X, HOOKED, (0.1 / 3 / 4, 0.1 / 3 / 4, 0.0505 / 2 / 4)),
        # Bones of 1 and 0.1 are 100 and 10 pieces of 0.01 (0.005 of the box side): 10 of 110 midpoints are
        # 0.05 away in the mean.
        ("rignet", ALONG_X, HOOKED, (0.1 / 3 / 4, 0.1 / 3 / 4, 0.05 * 10 / 110 / 4)),
        # A bone drawn twice weighs no more.
        ("rignet", ALONG_X, FORKED, (0.1 / 3 / 4, 0.1 / 3 / 4, 0.05 * 10 / 110 / 4)),
        # A second root without children is a bone of no length, 1 away from the first: 1 of 3 joints and 1 of
        # 101 midpoints …
        ("rignet", ALONG_X, TWO_ROOTS, (1 / 3 / 4, 1 / 3 / 4, 1 / 101 / 4)),
        # … or 100 of 200 samples, all nearest to the one at 0.01 along x.
        ("unirig", ALONG_X, TWO_ROOTS, (1 / 3 / 4, 1 / 3 / 4, math.hypot(1, 0.01) / 2 / 4)),
    ],
)
def test_distances_by_hand(distances, convention, a, b, expected):
    assert astuple(distances(*a, *b, convention)) == pytest.approx(expected, abs=1e-12)
    assert astuple(distances(*b, *a, convention)) == pytest.approx(expected, abs=1e-12)


@BOTH
def test_rignet_merges_joints_within_a_quarter_percent_of_the_box(distances):
    # Joints 0.004 and 0.006 apart in the mesh frame: the limit is 0.0025 * 2 = 0.005.
    def pair(gap):
        return [[0, 0, 0], [gap, 0, 0]], [-1, 0]

    # One joint at the mean, 0.002 from the point: / 2 = 0.001 of the box side.
    assert astuple(distances(*POINT, *pair(0.004), "rignet")) == pytest.approx((0.001,) * 3, abs=1e-12)
    # Two joints: J2J and J2B back (0 + 0.006) / 2, there 0. One piece: its midpoint is 0.003 away.
    assert astuple(distances(*POINT, *pair(0.006), "rignet")) == pytest.approx((0.003 / 4,) * 3, abs=1e-12)
    # A row of three, 0.004 apart, is one joint at 0.004, though its ends are 0.008 apart.
    row = [[0, 0, 0], [0.004, 0, 0], [0.008, 0, 0]], [-1, 0, 0]
    assert astuple(distances(*POINT, *row, "rignet")) == pytest.approx((0.002,) * 3, abs=1e-12)


def test_only_unirig_sees_which_end_is_the_parent():
    corner = [[1, 0, 0], [0, 0, 0], [0, 1, 0]]
    from_middle, from_end = [1, -1, 1], [-1, 0, 1]
    assert skeleton_distances(corner, from_middle, corner, from_end, "rignet").b2b == pytest.approx(
        0, abs=1e-12
    )
    assert skeleton_distances(corner, from_middle, corner, from_end, "unirig").b2b > 0


@pytest.mark.parametrize(("name", "variant"), MOVED)
def test_unirig_reproduces_the_reference_numbers(name, variant):
    data, numbers = cases.inputs(name), cases.expected(name)["variants"][variant]
    found = skeleton_distances(
        data[numbers["joints"]], data["parents"], data["joints"], data["parents"], "unirig"
    )
    expected = numbers["metrics_vs_gt"]
    assert astuple(found) == pytest.approx([expected[key] for key in ("J2J", "J2B", "B2B")], abs=1e-12)


@pytest.mark.parametrize(("name", "variant"), MOVED)
def test_exact_joint_to_bone_distances_reproduce_the_reference_numbers(name, variant):
    data, numbers = cases.inputs(name), cases.expected(name)["variants"][variant]
    expected = numbers["metrics_vs_gt"]["J2B_exact"]
    parents = data["parents"]
    child = np.flatnonzero(parents >= 0)
    there, back = data[numbers["joints"]].astype(np.float64), data["joints"].astype(np.float64)
    bones = [np.stack([joints[parents[child]], joints[child]], axis=1) for joints in (there, back)]
    one_way = point_segment_distances(there, bones[1]).min(axis=1).mean()
    other_way = point_segment_distances(back, bones[0]).min(axis=1).mean()
    assert (one_way + other_way) / 2 / BOX_SIDE == pytest.approx(expected, abs=1e-12)
    close = min(_smallest_gap(there), _smallest_gap(back))
    if close > 0.005:  # rignet's J2B is the same number where it merges nothing
        rignet = skeleton_distances(there, parents, back, parents, "rignet")
        assert rignet.j2b == pytest.approx(expected, abs=1e-12)


def test_reference_cases_include_rigs_with_and_without_joints_to_merge():
    gaps = [_smallest_gap(cases.inputs(name)["joints"]) for name in cases.NAMES]
    assert min(gaps) == 0
    assert max(gaps) > 0.005


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


@st.composite
def skeletons(draw, most=6):
    """Joints on a grid of eighths in [-1, 1], so that duplicates happen; any order; perhaps several roots."""
    count = draw(st.integers(1, most))
    coordinates = draw(st.lists(st.integers(-8, 8), min_size=3 * count, max_size=3 * count))
    if draw(st.booleans()):
        coordinates = [c % 2 for c in coordinates]
    parents = [-1] + [draw(st.integers(-1, i - 1)) for i in range(1, count)]
    return _permuted(
        (np.array(coordinates).reshape(count, 3) / 8, parents), draw(st.permutations(range(count)))
    )


def _permuted(skeleton, order):
    joints, parents = skeleton
    place = {old: new for new, old in enumerate(order)}
    return joints[list(order)], np.array([-1 if parents[i] < 0 else place[parents[i]] for i in order])


@EACH
@given(a=skeletons(4), b=skeletons(3))
@settings(deadline=None, max_examples=12)
def test_distances_match_the_loops(convention, a, b):
    fast = skeleton_distances(*a, *b, convention)
    assert astuple(fast) == pytest.approx(
        astuple(skeleton_distances_reference(*a, *b, convention)), abs=1e-12
    )


@EACH
@given(a=skeletons(), b=skeletons(), data=st.data())
@settings(deadline=None, max_examples=40)
def test_properties_of_distances(convention, a, b, data):
    found = astuple(skeleton_distances(*a, *b, convention))
    assert astuple(skeleton_distances(*a, *a, convention)) == pytest.approx((0, 0, 0), abs=1e-12)
    assert astuple(skeleton_distances(*b, *a, convention)) == pytest.approx(found, abs=1e-12)
    # No two skeletons in the mesh frame's cube are as far apart as a failed rig counts.
    assert all(0 <= value <= worst for value, worst in zip(found, astuple(FAILED_SKELETON), strict=True))
    shift = np.array(data.draw(st.tuples(*[st.integers(-8, 8)] * 3))) / 8
    moved = skeleton_distances(a[0] + shift, a[1], b[0] + shift, b[1], convention)
    assert astuple(moved) == pytest.approx(found, abs=1e-12)
    turned = skeleton_distances(a[0][:, [1, 2, 0]], a[1], b[0][:, [1, 2, 0]], b[1], convention)
    assert astuple(turned) == pytest.approx(found, abs=1e-12)
    order = data.draw(st.permutations(range(len(a[1]))))
    assert astuple(skeleton_distances(*_permuted(a, order), *b, convention)) == pytest.approx(
        found, abs=1e-12
    )


def test_many_points_are_measured_in_chunks(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = rng.uniform(-1, 1, (7, 3)), rng.uniform(-1, 1, (5, 3))
    parents = np.array([-1, 0, 1, 1, 3, 0, 5])
    whole = skeleton_distances(a, parents, b, parents[:5], "rignet")
    monkeypatch.setattr(metrics, "CHUNK", 13)
    chunked = skeleton_distances(a, parents, b, parents[:5], "rignet")
    assert astuple(chunked) == pytest.approx(astuple(whole), abs=1e-15)


@pytest.mark.parametrize(
    ("point", "segment", "expected"),
    [
        ((0.5, 2, 0), ((0, 0, 0), (1, 0, 0)), 2),  # the foot is inside
        ((4, 4, 0), ((0, 0, 0), (1, 0, 0)), 5),  # past the end: 3-4-5
        ((-3, 0, 4), ((0, 0, 0), (1, 0, 0)), 5),  # before the start
        ((0.3, 0, 0), ((0, 0, 0), (1, 0, 0)), 0),  # on it
        ((1, 2, 2), ((0, 0, 0), (0, 0, 0)), 3),  # no length: sqrt(1 + 4 + 4)
        ((0, 0, 1), ((0, 0, 0), (1e-170, 0, 0)), 1),  # a length whose square is 0
    ],
)
@pytest.mark.parametrize("distances", [point_segment_distances, point_segment_distances_reference])
def test_point_segment_by_hand(distances, point, segment, expected):
    assert distances([point], [segment]).tolist() == [[pytest.approx(expected, abs=1e-12)]]
    assert distances([point], [segment[::-1]]).tolist() == [[pytest.approx(expected, abs=1e-12)]]


def test_point_segment_distances_match_the_loop():
    rng = np.random.default_rng(1)
    points, segments = rng.normal(size=(17, 3)), rng.normal(size=(11, 2, 3))
    segments[3, 1] = segments[3, 0]
    found = point_segment_distances(points, segments)
    assert found.shape == (17, 11)
    np.testing.assert_allclose(found, point_segment_distances_reference(points, segments), atol=1e-13)


@BOTH
@pytest.mark.parametrize(
    ("joints", "parents", "convention", "message"),
    [
        (np.empty((0, 3)), [], "unirig", r"skeleton b: joints have shape \(0, 3\)"),
        ([[0, 0]], [-1], "unirig", r"skeleton b: joints have shape \(1, 2\)"),
        ([[0, 0, math.nan]], [-1], "rignet", "skeleton b: joint 0 has a coordinate that is not finite"),
        ([[0, 0, 75.0]], [-1], "rignet", r"skeleton b: joint 0 is at \[0.0, 0.0, 75.0\], far outside"),
        ([[0, 0, 0]], [-1, 0], "unirig", r"skeleton b: parents have shape \(2,\)"),
        ([[0, 0, 0], [1, 0, 0]], [1, 0], "rignet", "skeleton b: joint 0 never reaches a root"),
        ([[0, 0, 0]], [-1], "UniRig", "convention is 'UniRig'; give one of unirig, rignet"),
    ],
)
def test_unusable_skeletons_are_refused(distances, joints, parents, convention, message):
    with pytest.raises(MetricError, match=message):
        distances(*POINT, joints, parents, convention)


def test_the_unusable_skeleton_is_named():
    with pytest.raises(MetricError, match="skeleton a: "):
        skeleton_distances(np.empty((0, 3)), [], *POINT, "unirig")


@pytest.mark.parametrize(
    ("points", "segments", "message"),
    [
        (np.empty((0, 3)), np.zeros((1, 2, 3)), r"points have shape \(0, 3\); give \(N, 3\)"),
        (np.zeros((1, 3)), np.zeros((2, 3)), r"segments have shape \(2, 3\); give \(N, 2, 3\)"),
        (np.full((1, 3), np.inf), np.zeros((1, 2, 3)), "points are not all finite"),
    ],
)
def test_unusable_points_are_refused(points, segments, message):
    with pytest.raises(MetricError, match=message):
        point_segment_distances(points, segments)


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
            r"predicted weights have shape \(2, 3\) and true ones \(2, 4\)",
        ),
        (np.ones((2, 3)), np.ones((3, 3)), 0.01, r"shape \(2, 3\) and true ones \(3, 3\)"),
        (np.ones((0, 3)), np.ones((0, 3)), 0.01, r"predicted weights: weights have shape \(0, 3\)"),
        (np.ones((2, 3)), np.full((2, 3), np.nan), 0.01, "true weights: vertex 0"),
        (-np.ones((2, 3)), np.ones((2, 3)), 0.01, "predicted weights: vertex 0"),
        (np.ones(3), np.ones(3), 0.01, r"predicted weights: weights have shape \(3,\)"),
        (np.ones((2, 3)), np.ones((2, 3)), -0.5, "threshold is -0.5"),
        (np.ones((2, 3)), np.ones((2, 3)), math.nan, "threshold is nan"),
    ],
)
def test_unusable_weights_are_refused(predicted, truth, threshold, message):
    with pytest.raises(MetricError, match=message):
        skin_scores(predicted, truth, threshold)


TURN_Z = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # 90 degrees: x to y, y to -x
STILL = np.eye(3)


def rig(joints, parents, bound):
    """A rig whose vertex v hangs on joint bound[v] alone."""
    return Rig(np.array(joints, dtype=np.float32), np.array(parents), np.eye(len(joints))[bound])


def test_motion_loss_by_hand():
    vertices = [[1, 0, 0], [0, 0, 0]]
    truth = rig([[0, 0, 0], [0.5, 0, 0]], [-1, 0], [1, 0])
    early = rig([[0, 0, 0], [0.25, 0, 0]], [-1, 0], [1, 0])
    # The elbow turns by 90 degrees. True: (1, 0, 0) is 0.5 past the elbow, so it goes to (0.5, 0.5, 0).
    # Predicted: 0.75 past it, to (0.25, 0.75, 0). They are hypot(0.25, 0.25) apart; the other vertex rests.
    turn = np.array([[STILL, TURN_Z]])
    assert motion_loss(vertices, early, truth, turn) == pytest.approx(math.hypot(0.25, 0.25) / 2)
    # A second pose, at rest, halves the mean.
    rest = np.array([[STILL, STILL]])
    both = np.concatenate([turn, rest])
    assert motion_loss(vertices, early, truth, both) == pytest.approx(math.hypot(0.25, 0.25) / 4)
    assert motion_loss(vertices, early, truth, rest) == 0
    # The root turns: all weights and joints agree about it.
    assert motion_loss(vertices, early, truth, np.array([[TURN_Z, STILL]])) == 0


def test_a_missing_joint_costs_what_it_moves_and_a_superfluous_one_nothing():
    vertices = [[1, 0, 0], [0.25, 0, 0]]
    two = rig([[0, 0, 0], [0.5, 0, 0]], [-1, 0], [1, 0])
    one = rig([[0, 0, 0]], [-1], [0, 0])
    # (1, 0, 0) goes to (0.5, 0.5, 0) but the rig of one joint leaves it: hypot(0.5, 0.5) / 2 vertices.
    loss = motion_loss(vertices, one, two, np.array([[STILL, TURN_Z]]))
    assert loss == pytest.approx(math.hypot(0.5, 0.5) / 2)
    # A joint in the middle of the bone is nobody's: it follows the root, as the vertex on it should.
    three = rig([[0, 0, 0], [0.25, 0, 0], [0.5, 0, 0]], [-1, 0, 1], [2, 1])
    assert pair_joints(three, two).tolist() == [0, -1, 1]
    assert motion_loss(vertices, three, two, np.array([[TURN_Z, TURN_Z]])) == pytest.approx(0, abs=1e-12)
    assert motion_loss(vertices, one, one, np.array([[TURN_Z]])) == 0


@pytest.mark.parametrize(
    ("predicted", "truth", "expected"),
    [
        # Along a line, shifted by one: in order 1 + 1, crossed 2 squared + 0. (Plain distances tie, 2 each,
        # and the indices would then pair the joints that are both at 2.)
        ([[0, 0, 0], [2, 0, 0], [1, 0, 0]], [[0, 0, 0], [2, 0, 0], [3, 0, 0]], [0, 2, 1]),
        # The order in the file does not matter …
        ([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 0, 0], [0, 1, 0], [1, 0, 0]], [0, 2, 1]),
        # … but roots are roots, wherever they are.
        ([[1, 0, 0], [0, 0, 0], [0, 1, 0]], [[0, 0, 0], [1, 0, 0], [0, 1, 0]], [0, 1, 2]),
        # One too many, one too few.
        ([[0, 0, 0], [0.4, 0, 0], [1, 0, 0]], [[0, 0, 0], [1, 0, 0]], [0, -1, 1]),
        ([[0, 0, 0], [1, 0, 0]], [[0, 0, 0], [0.4, 0, 0], [1, 0, 0]], [0, 2]),
    ],
)
def test_pairs_by_hand(predicted, truth, expected):
    def star(joints):
        return rig(joints, [-1] + [0] * (len(joints) - 1), [0])

    assert pair_joints(star(predicted), star(truth)).tolist() == expected


def test_joints_at_one_place_are_told_apart_by_depth():
    place = [1, 0, 0]
    chain = rig([[0, 0, 0], place, place, [0, 1, 0]], [-1, 0, 1, 0], [0])
    # The same rig with its last joint before the chain.
    other = rig([[0, 0, 0], [0, 1, 0], place, place], [-1, 0, 0, 2], [0])
    assert pair_joints(chain, other).tolist() == [0, 2, 3, 1]
    assert pair_joints(other, chain).tolist() == [0, 3, 1, 2]


def test_aligned_weights_by_hand():
    truth = Rig(
        np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], dtype=np.float32),
        np.array([-1, 0, 0]),
        np.array([[1, 0, 0], [0, 2, 0], [0, 0, 0]]),
    )
    # Joint 1 is true joint 2, joint 2 is true joint 1; the third has no partner, for there are only two.
    predicted = Rig(
        np.array([[0, 0, 0], [0, 0.9, 0], [0.9, 0, 0], [0.4, 0.4, 0]], dtype=np.float32),
        np.array([-1, 0, 0, 0]),
        np.array([[0.5, 0, 0, 0], [0, 0.1, 0.2, 0.1], [0, 0, 0, 0.3]]),
    )
    said, is_so = align_weights(predicted, truth)
    # Rows sum to 1: 0.1, 0.2 and 0.1 are a quarter, a half and a quarter. A row of nothing stays so.
    assert said == pytest.approx(np.array([[1, 0, 0, 0], [0, 0.5, 0.25, 0.25], [0, 0, 0, 1]]), abs=1e-7)
    assert is_so.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    # The other way round: true joint 3 is nobody's, its column comes where it is in truth.
    said, is_so = align_weights(truth, predicted)
    assert said.tolist() == [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert is_so == pytest.approx(np.array([[1, 0, 0, 0], [0, 0.25, 0.5, 0.25], [0, 0, 0, 1]]), abs=1e-7)


@given(seed=st.integers(0, 2**32), counts=st.tuples(st.integers(1, 6), st.integers(1, 6)))
@settings(deadline=None, max_examples=30)
def test_properties_of_aligned_weights(seed, counts):
    rng = np.random.default_rng(seed)
    predicted, truth = (random_rig(rng, count, 5) for count in counts)
    said, is_so = align_weights(predicted, truth)
    assert said.shape == is_so.shape == (5, max(counts))
    assert said.sum(axis=1) == pytest.approx(1)
    assert is_so.sum(axis=1) == pytest.approx(1)
    assert skin_scores(said, is_so).l1 <= FAILED_SKIN.l1 + 1e-9
    same = align_weights(truth, truth)
    assert np.array_equal(*same)
    # The order of joints does not matter.
    order = np.lexsort((-np.arange(counts[0]), metrics._depths(predicted)))
    other = align_weights(reorder(predicted, order), truth)
    assert astuple(skin_scores(*other)) == pytest.approx(astuple(skin_scores(said, is_so)), abs=1e-6)


def test_weights_of_different_meshes_are_not_aligned():
    rng = np.random.default_rng(0)
    with pytest.raises(MetricError, match="the predicted rig weighs 4 vertices and the true one 5"):
        align_weights(random_rig(rng, 2, 4), random_rig(rng, 2, 5))


@pytest.mark.parametrize("name", cases.NAMES)
def test_real_rigs_move_like_themselves(name):
    data = cases.inputs(name)
    truth = Rig(data["joints"], data["parents"], data["weights"])
    rotations = rotation_matrices(data["poses"].astype(np.float64))
    assert motion_loss(data["vertices"], truth, truth, rotations) == 0
    moved = Rig(data["joints_shift_random"], data["parents"], data["weights"])
    assert 0 < motion_loss(data["vertices"], moved, truth, rotations) < FAILED_MOTION


def random_rig(rng, joints, vertices):
    parents = np.array([-1] + [rng.integers(0, i) for i in range(1, joints)])
    return Rig(rng.uniform(-1, 1, (joints, 3)).astype(np.float32), parents, rng.random((vertices, joints)))


@given(seed=st.integers(0, 2**32), counts=st.tuples(st.integers(1, 6), st.integers(1, 6)))
@settings(deadline=None, max_examples=30)
def test_properties_of_the_motion_loss(seed, counts):
    rng = np.random.default_rng(seed)
    predicted, truth = (random_rig(rng, count, 5) for count in counts)
    vertices = rng.uniform(-1, 1, (5, 3))
    rotations = random_rotations(3, counts[1], 30.0, seed)
    found = motion_loss(vertices, predicted, truth, rotations)

    pairing = pair_joints(predicted, truth)
    paired = pairing[pairing >= 0]
    assert len(set(paired.tolist())) == len(paired) == min(counts)
    # The plain way: a rotation per predicted joint, and the mean of every vertex's distance in every pose.
    taken = np.tile(np.eye(3), (3, counts[0], 1, 1))
    for joint, partner in enumerate(pairing):
        if partner >= 0:
            taken[:, joint] = rotations[:, partner]
    moved = [
        linear_blend_skinning_reference(
            vertices, each.weights, skinning_matrices_reference(each.joints, each.parents, turns)
        )
        for each, turns in ((predicted, taken), (truth, rotations))
    ]
    plain = [math.dist(moved[0][p, v], moved[1][p, v]) for p in range(3) for v in range(5)]
    assert found == pytest.approx(sum(plain) / 15, abs=1e-9)

    assert motion_loss(vertices, truth, truth, rotations) == 0
    if counts[0] == counts[1]:  # every joint is paired, so each rig can take the other's poses
        assert motion_loss(vertices, truth, predicted, taken) == pytest.approx(found, abs=1e-12)
    shift = np.array([0.25, -0.5, 0.125], dtype=np.float32)
    shifted = [Rig(each.joints + shift, each.parents, each.weights) for each in (predicted, truth)]
    assert motion_loss(vertices + shift, *shifted, rotations) == pytest.approx(found, abs=1e-5)
    # The joints of the prediction in another order that keeps parents first: breadth after depth.
    depths = metrics._depths(predicted)
    other = reorder(predicted, np.lexsort((-np.arange(counts[0]), depths)))
    assert motion_loss(vertices, other, truth, rotations) == pytest.approx(found, abs=1e-9)


@pytest.mark.parametrize(
    ("vertices", "poses", "message"),
    [
        (np.zeros((3, 3)), np.zeros((1, 2, 3, 3)), "the predicted rig weighs 2 vertices and the mesh has 3"),
        (np.zeros((0, 3)), np.zeros((1, 2, 3, 3)), r"vertices have shape \(0, 3\)"),
        (np.zeros((2, 2)), np.zeros((1, 2, 3, 3)), r"vertices have shape \(2, 2\)"),
        (np.full((2, 3), np.nan), np.zeros((1, 2, 3, 3)), "vertices are not all finite"),
        (np.zeros((2, 3)), np.zeros((1, 3, 3, 3)), r"rotations have shape \(1, 3, 3, 3\); 2 joints need"),
        (np.zeros((2, 3)), np.zeros((0, 2, 3, 3)), r"rotations have shape \(0, 2, 3, 3\)"),
        (np.zeros((2, 3)), np.full((1, 2, 3, 3), np.inf), "a rotation is not finite"),
    ],
)
def test_unusable_motions_are_refused(vertices, poses, message):
    arm = rig([[0, 0, 0], [0.5, 0, 0]], [-1, 0], [1, 0])
    with pytest.raises(MetricError, match=message):
        motion_loss(vertices, arm, arm, poses)


def test_rigs_of_different_meshes_are_refused():
    arm, other = (rig([[0, 0, 0], [0.5, 0, 0]], [-1, 0], bound) for bound in ([1, 0], [1, 0, 0]))
    with pytest.raises(MetricError, match="the true rig weighs 3 vertices and the mesh has 2"):
        motion_loss(np.zeros((2, 3)), arm, other, np.zeros((1, 2, 3, 3)))


def test_failed_distances_are_the_diagonal_of_the_box():
    corners = [[-1, -1, -1]], [[1, 1, 1]]
    for convention in CONVENTIONS:
        assert astuple(skeleton_distances(corners[0], [-1], corners[1], [-1], convention)) == pytest.approx(
            astuple(FAILED_SKELETON)
        )
    assert math.dist([-1, -1, -1], [1, 1, 1]) == FAILED_MOTION


def _smallest_gap(joints):
    gaps = np.linalg.norm(joints[:, None].astype(np.float64) - joints, axis=-1)
    return gaps[~np.eye(len(joints), dtype=bool)].min()
