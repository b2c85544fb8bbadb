"""Volume preservation: values by hand, its reference on random rigs, and errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import RewardError, RewardSettings, RigRewardError, prepare_scoring_mesh, score_rig
from rewards import volume_preservation as preservation
from rewards.poses import rotation_matrices
from rewards.references import volume_preservation_reference
from tests.rewards.shapes import box, random_rig


def turns(*degrees):
    """One pose: each joint turned about x by so many degrees."""
    return rotation_matrices(np.radians(degrees)[:, None] * np.array([1.0, 0, 0]))[None]


# Of two bones that differ by the angle t, a blend with the weight w has the determinant
# 1 - 2 w (1 - w) (1 - cos t): its axis keeps its length, and |1 - w + w e^(it)|² is left of the plane.
@pytest.mark.parametrize(
    ("rows", "degrees", "expected"),
    [
        ([[1, 0], [0, 1]], 90, 1.0),  # every vertex moves rigidly
        ([[0.5, 0.5]], 90, 0.5),  # 1 - 2 · 1/4 · 1
        ([[0.5, 0.5]], 60, 0.75),  # 1 - 2 · 1/4 · 1/2
        ([[0.5, 0.5]], 180, 0.0),  # the candy wrapper
        ([[0.75, 0.25]], 180, 0.25),  # 1 - 2 · 3/16 · 2
        ([[3.0, 1.0]], 180, 0.25),  # raw weights are normalised
        ([[0.5, 0.5], [1, 0]], 90, 0.75),  # (0.5 + 1) / 2
        ([[0, 0], [0.5, 0.5]], 180, 0.5),  # a vertex without weight stays: (1 + 0) / 2
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_by_hand(dtype, rows, degrees, expected):
    joints, parents = np.zeros((2, 3)), np.array([-1, 0])
    value = preservation(joints, parents, np.array(rows, dtype=dtype), turns(0, degrees))
    assert value == pytest.approx(expected, abs=1e-12)


def test_a_mirrored_blend_counts_as_nothing_left():
    # Thirds of half turns about x, y and z: each axis keeps (1 - 1 - 1) / 3, the determinant is -1/27.
    half = rotation_matrices(np.pi * np.eye(3))[None]
    assert preservation(np.zeros((3, 3)), np.array([-1, -1, -1]), [[1, 1, 1]], half) == 0.0


def test_a_turn_of_the_whole_rig_keeps_the_volume_and_poses_are_averaged():
    joints, parents = np.zeros((2, 3)), np.array([-1, 0])
    whole, bent = turns(120, 0), turns(120, 90)
    assert preservation(joints, parents, [[0.5, 0.5]], whole) == pytest.approx(1.0)
    both = np.concatenate([whole, bent])
    assert preservation(joints, parents, [[0.5, 0.5]], both) == pytest.approx(0.75)  # (1 + 0.5) / 2


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 30), st.integers(1, 4))
def test_equals_reference(seed, joint_count, vertices, poses):
    rng = np.random.default_rng(seed)
    joints, parents, weights = random_rig(rng, joint_count, vertices)
    rotations = RewardSettings(poses=poses, max_angle_deg=180).rotations(joint_count, seed)
    arguments = joints, parents, weights, rotations
    value = preservation(*arguments)
    assert 0 <= value <= 1
    assert value == pytest.approx(volume_preservation_reference(*arguments), abs=1e-12)


def test_blurring_weights_shrinks_a_bent_tube():
    """The guard's purpose: the wider two bones blend, the more volume is gone."""
    along = np.linspace(-1, 1, 41)
    values = []
    for width in (0.05, 0.2, 0.5):
        second = np.clip(along / (2 * width) + 0.5, 0, 1)
        weights = np.stack([1 - second, second], axis=1)
        values.append(preservation([[0, -1, 0], [0, 0, 0]], [-1, 0], weights, turns(0, 90)))
    assert values[0] > values[1] + 0.05 > values[2] + 0.1


def test_scored_as_a_guard_only_when_enabled():
    plain = RewardSettings(resolution=8, wide_poses=1)
    mesh = prepare_scoring_mesh(*box(), plain)
    weights = np.full((8, 3), 0.5)
    rig = (np.full((3, 3), 0.5), np.array([-1, 0, 1]), weights, plain.rotations(3, 0))
    assert "volume_preservation" not in score_rig(mesh, *rig, plain).rewards
    guarded = RewardSettings(resolution=8, guards=("volume_preservation",))
    assert score_rig(mesh, *rig, guarded).rewards["volume_preservation"] == preservation(*rig)


def test_errors():
    with pytest.raises(RigRewardError, match="not finite"):
        preservation([[0, 0, 0]], [-1], [[np.nan]], np.eye(3)[None, None])
    with pytest.raises(RewardError, match="need"):
        preservation([[0, 0, 0]], [-1], [[1, 0]], np.eye(3)[None, None])
    with pytest.raises(RewardError, match="rotations have shape"):
        preservation([[0, 0, 0]], [-1], [[1]], np.eye(3)[None])
