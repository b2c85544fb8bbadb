"""Skeleton distances by hand, against plain loops and against an independent program's numbers."""

import math
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.metrics import (
    BOX_SIDE,
    FAILED_MOTION,
    FAILED_SKELETON,
    MetricError,
    point_segment_distances,
    skeleton_distances,
    skeleton_distances_reference,
)
from tests.rewards import cases

CONVENTIONS = ("unirig", "rignet", "exact")
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

POINT = ([[0, 0, 0]], [-1])
ALONG_X = ([[0, 0, 0], [1, 0, 0]], [-1, 0])
ALONG_Y = ([[0, 0, 0], [0, 1, 0]], [-1, 0])
LIFTED = ([[0, 0.5, 0], [1, 0.5, 0]], [-1, 0])
HOOKED = ([[0, 0, 0], [1, 0, 0], [1, 0.1, 0]], [-1, 0, 1])
FORKED = ([[0, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0.1, 0]], [-1, 0, 0, 1])  # the hook, one bone twice
DOUBLED = ([[0, 0, 0], [1, 0, 0], [1, 0, 0]], [-1, 0, 1])
RETURNED = ([[0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 1, 0]], [-1, 0, 1, 2])  # along x, back, and up y
TWO_ROOTS = ([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [-1, 0, -1])


@BOTH
@pytest.mark.parametrize(
    ("convention", "a", "b", "expected"),
    [
        # Parallel bones, 0.5 apart in the mesh frame: every distance is 0.5, a quarter of the box side.
        ("rignet", ALONG_X, LIFTED, (0.25, 0.25, 0.25)),
        ("exact", ALONG_X, LIFTED, (0.25, 0.25, 0.25)),
        # unirig's samples begin 0.01 from the parent: the root is hypot(0.01, 0.5) from the nearest.
        ("unirig", ALONG_X, LIFTED, (0.25, (math.hypot(0.01, 0.5) + 0.5) / 4, 0.25)),
        # Joints: the shared one 0, the other 1 from the shared one; mean 0.5, halved.
        # Joint to bone, exact: 0 and 1 again. The midpoints of 100 pieces are 0.005, 0.015, … 0.995 from the
        # other bone's start: mean 0.5.
        ("exact", ALONG_X, ALONG_Y, (0.25, 0.25, 0.25)),
        # The same from rignet's 101 samples 0, 0.01, … 1 along the bone: mean 0.5.
        ("rignet", ALONG_X, ALONG_Y, (0.25, 0.25, 0.25)),
        # unirig: from the joints, the other's first sample is 0.01 and hypot(1, 0.01) away. It is also the
        # nearest to sample k, hypot(k, 1) / 100 away.
        (
            "unirig",
            ALONG_X,
            ALONG_Y,
            (
                0.25,
                (0.01 + math.hypot(1, 0.01)) / 4,
                sum(math.hypot(k, 1) / 100 for k in range(1, 101)) / 100 / 2,
            ),
        ),
        # One joint is a bone of no length. J2J: there 0, back (0 + 1) / 2; (0 + 0.5) / 2 / 2 = 0.125.
        # Exact J2B: the same. B2B: there 0, back the midpoints' mean 0.5.
        ("exact", POINT, ALONG_X, (0.125, 0.125, 0.125)),
        # A doubled joint is one joint …
        ("exact", POINT, DOUBLED, (0.125, 0.125, 0.125)),
        ("exact", ALONG_X, DOUBLED, (0, 0, 0)),
        ("rignet", ALONG_X, DOUBLED, (0, 0, 0)),
        # … or two: 0.01 is the root's distance from the first sample, of two joints there and of three back.
        ("unirig", ALONG_X, DOUBLED, (0, (0.01 / 2 + 0.01 / 3) / 4, 0)),
        # The hook's joint is 0.1 away: back (0 + 0 + 0.1) / 3, there 0. Each bone has 100 samples: those of
        # the hook are 0.001 … 0.1 away, mean 0.0505, half of all. J2B: there (0.01 + 0) / 2, back
        # (0.01 + 0 + 0.1) / 3.
        ("unirig", ALONG_X, HOOKED, (0.1 / 3 / 4, (0.005 + 0.11 / 3) / 4, 0.0505 / 2 / 4)),
        # Bones of 1 and 0.1 are 100 and 10 pieces of 0.01 (0.005 of the box side): 10 of 110 midpoints are
        # 0.05 away in the mean.
        ("exact", ALONG_X, HOOKED, (0.1 / 3 / 4, 0.1 / 3 / 4, 0.05 * 10 / 110 / 4)),
        # As samples with both ends, 101 and 11: 11 of 112 are 0.05 away in the mean.
        ("rignet", ALONG_X, HOOKED, (0.1 / 3 / 4, 0.1 / 3 / 4, 0.05 * 11 / 112 / 4)),
        # A bone drawn twice weighs no more …
        ("exact", ALONG_X, FORKED, (0.1 / 3 / 4, 0.1 / 3 / 4, 0.05 * 10 / 110 / 4)),
        ("rignet", ALONG_X, FORKED, (0.1 / 3 / 4, 0.1 / 3 / 4, 0.05 * 11 / 112 / 4)),
        # … except there and back, for rignet: 202 samples along x, and of 101 along y with mean 0.5.
        ("rignet", ALONG_X, RETURNED, (1 / 3 / 4, 1 / 3 / 4, 0.5 * 101 / 303 / 4)),
        ("exact", ALONG_X, RETURNED, (1 / 3 / 4, 1 / 3 / 4, 0.5 * 100 / 200 / 4)),
        # A second root without children is a bone of no length, 1 away from the first: 1 of 3 joints and 1 of
        # 101 midpoints …
        ("exact", ALONG_X, TWO_ROOTS, (1 / 3 / 4, 1 / 3 / 4, 1 / 101 / 4)),
        # … or a joint on no bone: rignet drops it, unirig keeps the joint but has no samples of it. J2B
        # there (0.01 + 0) / 2, back 0.01, 0 and hypot(1, 0.01) over 3.
        ("rignet", ALONG_X, TWO_ROOTS, (0, 0, 0)),
        ("unirig", ALONG_X, TWO_ROOTS, (1 / 3 / 4, (0.005 + (0.01 + math.hypot(1, 0.01)) / 3) / 4, 0)),
    ],
)
def test_distances_by_hand(distances, convention, a, b, expected):
    assert astuple(distances(*a, *b, convention)) == pytest.approx(expected, abs=1e-12)
    assert astuple(distances(*b, *a, convention)) == pytest.approx(expected, abs=1e-12)


@BOTH
def test_exact_merges_joints_within_a_quarter_percent_of_the_box(distances):
    # Joints 0.004 and 0.006 apart in the mesh frame: the limit is 0.0025 * 2 = 0.005.
    def pair(gap):
        return [[0, 0, 0], [gap, 0, 0]], [-1, 0]

    # One joint at the mean, 0.002 from the point: / 2 = 0.001 of the box side.
    assert astuple(distances(*POINT, *pair(0.004), "exact")) == pytest.approx((0.001,) * 3, abs=1e-12)
    # Two joints: J2J and J2B back (0 + 0.006) / 2, there 0. One piece: its midpoint is 0.003 away.
    assert astuple(distances(*POINT, *pair(0.006), "exact")) == pytest.approx((0.003 / 4,) * 3, abs=1e-12)
    # A row of three, 0.004 apart, is one joint at 0.004, though its ends are 0.008 apart.
    row = [[0, 0, 0], [0.004, 0, 0], [0.008, 0, 0]], [-1, 0, 0]
    assert astuple(distances(*POINT, *row, "exact")) == pytest.approx((0.002,) * 3, abs=1e-12)


@BOTH
@pytest.mark.parametrize("convention", ["unirig", "rignet"])
def test_a_skeleton_without_a_bone_has_no_published_distances(distances, convention):
    assert distances(*POINT, *ALONG_X, convention) is None
    assert distances(*ALONG_X, *POINT, convention) is None
    assert distances(*POINT, *POINT, convention) is None
    together = [[0, 0, 0], [0.002, 0, 0]], [-1, 0]  # one joint, for rignet
    assert (distances(*together, *ALONG_X, convention) is None) == (convention == "rignet")


def test_only_unirig_sees_which_end_is_the_parent():
    corner = [[1, 0, 0], [0, 0, 0], [0, 1, 0]]
    from_middle, from_end = [1, -1, 1], [-1, 0, 1]
    for convention in ("rignet", "exact"):
        assert skeleton_distances(corner, from_middle, corner, from_end, convention).b2b == pytest.approx(
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
    if close > 0.005:  # the convention's J2B is the same number where it merges nothing
        exact = skeleton_distances(there, parents, back, parents, "exact")
        assert exact.j2b == pytest.approx(expected, abs=1e-12)
        # Sampled at most 0.0025 of the box side off the segment's nearest point.
        rignet = skeleton_distances(there, parents, back, parents, "rignet")
        assert expected <= rignet.j2b <= expected + 0.0025


def test_reference_cases_include_rigs_with_and_without_joints_to_merge():
    gaps = [_smallest_gap(cases.inputs(name)["joints"]) for name in cases.NAMES]
    assert min(gaps) == 0
    assert max(gaps) > 0.005


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


@st.composite
def crowded(draw, most=7):
    """Like `skeletons`, with joints 0.00085 of the box side apart: many are within the merging distance."""
    joints, parents = draw(skeletons(most))
    offsets = draw(st.lists(st.integers(0, 4), min_size=joints.size, max_size=joints.size))
    return np.round(joints) * 0.25 + np.array(offsets).reshape(joints.shape) * 0.0017, parents


def _permuted(skeleton, order):
    joints, parents = skeleton
    place = {old: new for new, old in enumerate(order)}
    return joints[list(order)], np.array([-1 if parents[i] < 0 else place[parents[i]] for i in order])


@EACH
@given(a=skeletons(4) | crowded(), b=skeletons(3) | crowded(4))
@settings(deadline=None, max_examples=30)
def test_distances_match_the_loops(convention, a, b):
    fast = skeleton_distances(*a, *b, convention)
    plain = skeleton_distances_reference(*a, *b, convention)
    assert (fast is None) == (plain is None)
    if fast is not None and plain is not None:
        assert astuple(fast) == pytest.approx(astuple(plain), abs=1e-12)


@EACH
@given(a=skeletons(), b=skeletons(), data=st.data())
@settings(deadline=None, max_examples=40)
def test_properties_of_distances(convention, a, b, data):
    distances = skeleton_distances(*a, *b, convention)
    if distances is None:
        # Joints are an eighth apart or at one position: a bone is a pair of them.
        lengths = [
            [math.dist(joints[i], joints[p]) for i, p in enumerate(up) if p >= 0] for joints, up in (a, b)
        ]
        assert convention != "exact"
        assert any(not any(own) if convention == "rignet" else not own for own in lengths)
        return
    found = astuple(distances)
    itself = astuple(skeleton_distances(*a, *a, convention))
    assert (itself[0], itself[2]) == pytest.approx((0, 0), abs=1e-12)
    if convention != "unirig":  # its samples leave out the root
        assert itself[1] == pytest.approx(0, abs=1e-12)
    assert astuple(skeleton_distances(*b, *a, convention)) == pytest.approx(found, abs=1e-12)
    # No two skeletons in the mesh frame's cube are as far apart as a failed rig counts.
    assert all(0 <= value <= worst for value, worst in zip(found, astuple(FAILED_SKELETON), strict=True))
    shift = np.array(data.draw(st.tuples(*[st.integers(-8, 8)] * 3))) / 8
    moved = skeleton_distances(a[0] + shift, a[1], b[0] + shift, b[1], convention)
    assert astuple(moved) == pytest.approx(found, abs=1e-12)
    turned = skeleton_distances(a[0][:, [1, 2, 0]], a[1], b[0][:, [1, 2, 0]], b[1], convention)
    assert astuple(turned) == pytest.approx(found, abs=1e-12)
    # Joints are an eighth apart or at one position, so no order of them decides who merges.
    order = data.draw(st.permutations(range(len(a[1]))))
    assert astuple(skeleton_distances(*_permuted(a, order), *b, convention)) == pytest.approx(
        found, abs=1e-12
    )


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
        ([[0, 0, 0]], [-1], "UniRig", "convention is 'UniRig'; choose one of unirig, rignet, exact"),
    ],
)
def test_unusable_skeletons_are_refused(distances, joints, parents, convention, message):
    with pytest.raises(MetricError, match=message):
        distances(*POINT, joints, parents, convention)


def test_the_unusable_skeleton_is_named():
    with pytest.raises(MetricError, match="skeleton a: "):
        skeleton_distances(np.empty((0, 3)), [], *POINT, "unirig")


def test_failed_distances_are_the_diagonal_of_the_box():
    corners = [[-1, -1, -1]], [[1, 1, 1]]
    found = skeleton_distances(corners[0], [-1], corners[1], [-1], "exact")
    assert astuple(found) == pytest.approx(astuple(FAILED_SKELETON))
    assert math.dist([-1, -1, -1], [1, 1, 1]) == FAILED_MOTION.mean
    assert pytest.approx(FAILED_MOTION.squared) == FAILED_MOTION.mean**2


def _smallest_gap(joints):
    gaps = np.linalg.norm(joints[:, None].astype(np.float64) - joints, axis=-1)
    return gaps[~np.eye(len(joints), dtype=bool)].min()
