"""Deformation smoothness: values by hand, comparison with the reference, properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import MeshRewardError, RigRewardError, deformation_smoothness, mesh_edges, random_rotations
from rewards.references import deformation_smoothness_reference
from rewards.smoothness import edge_stretch
from tests.rewards.shapes import random_rig

TURN_Z = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
ARM = (np.array([[0.0, 0, 0], [1, 0, 0]]), np.array([-1, 0]))
ONE_TURN = np.array([[np.eye(3), TURN_Z]])
TURN_AND_REST = np.array([[np.eye(3), TURN_Z], [np.eye(3), np.eye(3)]])
# (-1, 0, 0) is bound to the root and stays; (1, -1, 0) and (2, 0, 0) are bound to the child, whose rotation
# about (1, 0, 0) takes them to (2, 0, 0) and (1, 1, 0).
POINTS = np.array([[-1.0, 0, 0], [1, -1, 0], [2, 0, 0]])
WEIGHTS = np.array([[1.0, 0], [0, 1], [0, 1]])
LONGER = 3 / (5**0.5 + 1e-6)  # edge 0-1: sqrt(4 + 1) at rest, 3 posed
RIGID = 1.0  # edge 1-2 turns as a whole: sqrt(2) both times
# edge 0-2: 3 at rest, from (-1, 0, 0) to (1, 1, 0) sqrt(5) posed: shorter counts as 1

BOTH = pytest.mark.parametrize("smoothness", [deformation_smoothness, deformation_smoothness_reference])


@BOTH
@pytest.mark.parametrize(
    ("edges", "rotations", "options", "expected"),
    [
        ([[0, 1]], ONE_TURN, {}, 1 / (1 + LONGER)),
        ([[1, 2]], ONE_TURN, {}, 1 / (1 + RIGID)),
        ([[0, 2]], ONE_TURN, {}, 1 / 2),
        ([[0, 1], [1, 2], [0, 2]], ONE_TURN, {}, 1 / (1 + LONGER)),
        ([[0, 1], [1, 2], [0, 2]], ONE_TURN, {"reduce": "mean"}, 1 / (1 + (LONGER + 1 + 1) / 3)),
        # two poses, of which one rests: mean of the largest stretches
        ([[0, 1], [1, 2]], TURN_AND_REST, {}, 1 / (1 + (LONGER + 1) / 2)),
        ([[0, 1]], ONE_TURN, {"scale": 0.5}, 1 / (1 + 0.5 * LONGER)),
        ([[0, 1]], ONE_TURN, {"scale": 0.0}, 1.0),
        # nothing to stretch
        (np.zeros((0, 2), dtype=int), ONE_TURN, {}, 1 / 2),
    ],
)
def test_by_hand(smoothness, edges, rotations, options, expected):
    value = smoothness(POINTS, edges, *ARM, WEIGHTS, rotations, **options)
    assert value == pytest.approx(expected, abs=1e-12)


@BOTH
def test_an_edge_without_length_is_divided_by_the_formulas_epsilon(smoothness):
    # Two vertices at (2, 0, 0), one on each joint: posed they are sqrt(2) apart, divided by 0 + 1e-6.
    points = np.array([[2.0, 0, 0], [2, 0, 0]])
    value = smoothness(points, [[0, 1]], *ARM, np.eye(2), ONE_TURN)
    assert value == pytest.approx(1 / (1 + 2**0.5 / 1e-6), rel=1e-9)
    # On one joint they stay together: 0 / 1e-6 counts as 1.
    assert smoothness(points, [[0, 1]], *ARM, np.ones((2, 2)), ONE_TURN) == 0.5


@BOTH
def test_a_vertex_without_weight_stays_behind(smoothness):
    # (1, -1, 0) moves to (2, 0, 0), while (2, 0, 0) has no weight and stays: sqrt(2) shrinks to 0.
    weights = np.array([[1.0, 0], [0, 1], [0, 0]])
    assert smoothness(POINTS, [[1, 2]], *ARM, weights, ONE_TURN) == 0.5
    # from (-1, 0, 0) at rest: nothing stretches
    assert smoothness(POINTS, [[0, 2]], *ARM, weights, ONE_TURN) == 0.5


@BOTH
def test_one_vertex_mesh(smoothness):
    value = smoothness([[0.0, 0, 0]], np.zeros((0, 2), dtype=int), *ARM, [[0.5, 0.5]], ONE_TURN)
    assert value == 0.5


def test_everything_on_the_root_is_the_known_loophole():
    # A rigid turn stretches nothing: the largest possible value, 1/2.
    weights = np.array([[1.0, 0]] * 3)
    turns = random_rotations(5, 2, 30, 0)
    assert deformation_smoothness(POINTS, [[0, 1], [1, 2]], *ARM, weights, turns) == pytest.approx(
        0.5, abs=1e-6
    )


def test_the_edge_that_stretches_most_is_reported():
    largest, mean, worst = edge_stretch(POINTS, [[1, 2], [0, 2], [0, 1]], *ARM, WEIGHTS, TURN_AND_REST)
    assert largest.tolist() == pytest.approx([LONGER, 1])
    assert mean.tolist() == pytest.approx([(LONGER + 2) / 3, 1])
    assert worst[0] == 2
    assert edge_stretch(POINTS, [], *ARM, WEIGHTS, ONE_TURN)[2].tolist() == [-1]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(2, 30), st.integers(1, 4), st.floats(0, 3))
def test_fast_is_the_reference(seed, joints, vertices, poses, scale):
    rng = np.random.default_rng(seed)
    rest, parents, weights = random_rig(rng, joints, vertices)
    points = np.round(rng.uniform(-1, 1, (vertices, 3)), 1)  # some coincide
    edges = mesh_edges(rng.integers(0, vertices, (12, 3)))
    turns = random_rotations(poses, joints, 90, seed)
    for reduce in ("max", "mean"):
        arguments = (points, edges, rest, parents, weights, turns, scale, reduce)
        value = deformation_smoothness(*arguments)
        assert 0 < value <= 1 / (1 + scale) + 1e-12
        assert value == pytest.approx(deformation_smoothness_reference(*arguments), rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_invariances(seed, joints):
    rng = np.random.default_rng(seed)
    rest, parents, weights = random_rig(rng, joints, 20)
    weights[:, 0] += np.float32(0.1)  # vertices without weight stay behind when the scene moves
    points, edges = rng.uniform(-1, 1, (20, 3)), mesh_edges(rng.integers(0, 20, (12, 3)))
    turns = random_rotations(3, joints, 30, seed)
    value = deformation_smoothness(points, edges, rest, parents, weights, turns)

    shift = rng.normal(size=3)
    moved = deformation_smoothness(points + shift, edges, rest + shift, parents, weights, turns)
    assert moved == pytest.approx(value, abs=1e-9)
    # scale matters only through the formula's 1e-6
    scaled = deformation_smoothness(points * 50, edges, rest * 50, parents, weights, turns)
    assert scaled == pytest.approx(value, abs=1e-3)
    scaled_weights = deformation_smoothness(points, edges, rest, parents, weights * np.float32(0.25), turns)
    assert scaled_weights == pytest.approx(value, abs=1e-6)  # weights are normalised
    order = rng.permutation(joints)
    renamed = np.where(parents[order] < 0, -1, np.argsort(order)[parents[order]])
    permuted = deformation_smoothness(points, edges, rest[order], renamed, weights[:, order], turns[:, order])
    assert permuted == pytest.approx(value, abs=1e-9)


def test_errors():
    good = dict(zip(("joints", "parents"), ARM, strict=True)) | {
        "vertices": POINTS,
        "edges": [[0, 1]],
        "weights": WEIGHTS,
        "rotations": ONE_TURN,
    }
    for change, error, reason in (
        ({"vertices": POINTS[:, :2]}, MeshRewardError, "vertices have shape"),
        ({"vertices": POINTS * np.nan}, MeshRewardError, "not finite"),
        ({"edges": [[0, 3]]}, MeshRewardError, "0 to 3, but the mesh has 3 vertices"),
        ({"edges": [[-1, 0]]}, MeshRewardError, "-1 to 0"),
        ({"edges": [[0, 1, 2]]}, MeshRewardError, "edges have shape"),
        ({"weights": WEIGHTS * np.nan}, RigRewardError, "not finite"),
        ({"parents": np.array([1, 0])}, RigRewardError, "cycle"),
        ({"scale": -1.0}, ValueError, "scale is -1"),
        ({"reduce": "median"}, ValueError, "max or mean"),
    ):
        for smoothness in (deformation_smoothness, deformation_smoothness_reference):
            with pytest.raises(error, match=reason):
                smoothness(**(good | change))
