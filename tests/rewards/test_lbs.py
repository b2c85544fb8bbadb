"""Linear blend skinning: poses worked by hand, comparison with the reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import RewardError, RigRewardError, linear_blend_skinning, random_rotations, skinning_matrices
from rewards.references import linear_blend_skinning_reference, skinning_matrices_reference
from tests.rewards.shapes import random_rig

TURN_Z = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # 90 degrees: x to y, y to -x
STILL = np.eye(3)

BOTH = pytest.mark.parametrize(
    ("matrices", "skinning"),
    [
        (skinning_matrices, linear_blend_skinning),
        (skinning_matrices_reference, linear_blend_skinning_reference),
    ],
    ids=["fast", "reference"],
)


def arm(child_turn, root_turn=STILL):
    """Root at the origin, child at (1, 0, 0), one pose."""
    return np.array([[0.0, 0, 0], [1, 0, 0]]), np.array([-1, 0]), np.array([[root_turn, child_turn]])


@BOTH
@pytest.mark.parametrize(
    ("rig", "weights", "vertex", "expected"),
    [
        # The child turns about (1, 0, 0): (2, 0, 0) is 1 along x from it, then 1 along y.
        (arm(TURN_Z), [0, 1], [2, 0, 0], [1, 1, 0]),
        # Half and half: the mean of (2, 0, 0) and (1, 1, 0).
        (arm(TURN_Z), [0.5, 0.5], [2, 0, 0], [1.5, 0.5, 0]),
        # Raw weights are normalised: 0.2 and 0.6 are 1/4 and 3/4.
        (arm(TURN_Z), [0.2, 0.6], [2, 0, 0], [1.25, 0.75, 0]),
        # No weight at all: at rest.
        (arm(TURN_Z), [0, 0], [2, 0, 0], [2, 0, 0]),
        # Both turn: about the child (2, 0, 0) -> (1, 1, 0), then about the root (x, y) -> (-y, x).
        (arm(TURN_Z, TURN_Z), [0, 1], [2, 0, 0], [-1, 1, 0]),
        # The root's rotation also moves what is bound to the child: (2, 0, 0) -> (0, 2, 0).
        (arm(STILL, TURN_Z), [0, 1], [2, 0, 0], [0, 2, 0]),
        # A joint does not move its own position.
        (arm(TURN_Z), [0, 1], [1, 0, 0], [1, 0, 0]),
    ],
)
def test_by_hand(matrices, skinning, rig, weights, vertex, expected):
    moved = skinning(np.array([vertex]), np.array([weights], dtype=np.float64), matrices(*rig))
    assert moved.tolist() == [[pytest.approx(expected, abs=1e-12)]]


def test_parents_may_follow_their_children():
    joints, parents, turns = arm(TURN_Z, TURN_Z)
    expected = skinning_matrices(joints, parents, turns)
    flipped = skinning_matrices(joints[::-1], np.array([1, -1]), turns[:, ::-1])
    assert (flipped[:, ::-1] == expected).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 13), st.integers(1, 9), st.integers(1, 4))
def test_fast_is_the_reference(seed, joints, vertices, poses):
    rng = np.random.default_rng(seed)
    rest, parents, weights = random_rig(rng, joints, vertices)
    if seed % 3 == 0:
        parents[rng.integers(0, joints)] = -1  # several roots
    matrices = skinning_matrices(rest, parents, random_rotations(poses, joints, 180, seed))
    expected = skinning_matrices_reference(rest, parents, random_rotations(poses, joints, 180, seed))
    assert np.allclose(matrices, expected, rtol=0, atol=1e-12)
    points = rng.uniform(-1, 1, (vertices, 3))
    for dtype in (np.float32, np.float64):
        fast = linear_blend_skinning(points, weights.astype(dtype), matrices)
        slow = linear_blend_skinning_reference(points, weights.astype(dtype), matrices)
        assert fast.shape == (poses, vertices, 3)
        assert np.allclose(fast, slow, rtol=0, atol=1e-12)


def test_moving_the_scene_moves_the_result():
    rng = np.random.default_rng(0)
    joints, parents, weights = random_rig(rng, 7, 20)
    weights[:, 0] += 0.1  # a vertex without weight would not move with the scene
    points, turns = rng.uniform(-1, 1, (20, 3)), random_rotations(3, 7, 60, 1)
    shift = np.array([5.0, -3, 2])
    moved = linear_blend_skinning(points, weights, skinning_matrices(joints, parents, turns))
    also = linear_blend_skinning(points + shift, weights, skinning_matrices(joints + shift, parents, turns))
    assert np.allclose(also, moved + shift, rtol=0, atol=1e-12)


def test_tiny_weights_do_not_overflow():
    # 1e-310 has no finite inverse and counts as no weight; 1e-290 has one and is normalised.
    joints, parents, turns = arm(TURN_Z)
    for skinning in (linear_blend_skinning, linear_blend_skinning_reference):
        moved = skinning(
            [[2, 0, 0]] * 2, [[0, 1e-310], [0, 1e-290]], skinning_matrices(joints, parents, turns)
        )
        assert moved[0].tolist() == [[2, 0, 0], pytest.approx([1, 1, 0])]


def test_errors():
    joints, parents, turns = arm(TURN_Z)
    with pytest.raises(RigRewardError, match="cycle"):
        skinning_matrices(joints, np.array([1, 0]), turns)
    for wrong in (turns[0], turns[:, :1], turns[:0], np.full_like(turns, np.nan)):
        with pytest.raises(RewardError, match="rotation"):
            skinning_matrices(joints, parents, wrong)
    with pytest.raises(RewardError, match=r"need \(3, 2\)"):
        linear_blend_skinning(np.zeros((3, 3)), np.ones((2, 2)), skinning_matrices(joints, parents, turns))
