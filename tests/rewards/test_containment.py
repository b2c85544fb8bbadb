"""Bone containment: values by hand, comparison with the reference, properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import OccupancyGrid, RigRewardError, bone_containment
from rewards.containment import bone_points
from rewards.references import bone_containment_reference

# Cells [0, 1) and [2, 3) along x are occupied, [1, 2) and [3, 4] are not; y and z have the one cell [0, 1].
GAPPED = OccupancyGrid(np.array([True, False, True, False]).reshape(4, 1, 1), np.zeros(3), 1.0)

BOTH = pytest.mark.parametrize("containment", [bone_containment, bone_containment_reference])


def along_x(*positions):
    return np.array([[x, 0.5, 0.5] for x in positions])


@BOTH
@pytest.mark.parametrize(
    ("joints", "parents", "samples", "expected"),
    [
        # Points at 0.5, 1.5, 2.5: in, out, in.
        (along_x(0.5, 2.5), [-1, 0], 2, 2 / 3),
        # s = 10 from 0.05 to 1.05: 0.05, 0.15, …, 0.95 are in, 1.05 is not.
        (along_x(0.05, 1.05), [-1, 0], 10, 10 / 11),
        # Both bones of a chain count their ends: 0.5, 1, 1.5 (in, out, out: x = 1 is the next cell's) and
        # 1.5, 2, 2.5.
        (along_x(0.5, 1.5, 2.5), [-1, 0, 1], 2, (1 + 2) / 6),
        # The order of joints does not matter: the same chain with its root last.
        (along_x(2.5, 1.5, 0.5), [1, 2, -1], 2, (1 + 2) / 6),
        # The far face x = 4 belongs to the last cell (free); beyond it is outside.
        (along_x(2.5, 4.5), [-1, 0], 2, 1 / 3),
        # All samples of a zero-length bone are the same point.
        (along_x(0.5, 0.5), [-1, 0], 10, 1.0),
        # Without bones the roots are scored.
        (along_x(0.5), [-1], 10, 1.0),
        (along_x(1.5), [-1], 10, 0.0),
        (along_x(0.5, 1.5), [-1, -1], 10, 1 / 2),
        # Two roots, one bone: only the bone counts, from 2.1 to 2.9.
        (along_x(1.5, 2.1, 2.9), [-1, -1, 1], 10, 1.0),
        # Outside the grid.
        (along_x(-3, -2), [-1, 0], 10, 0.0),
    ],
)
def test_by_hand(containment, joints, parents, samples, expected):
    assert containment(GAPPED, joints, np.array(parents), samples) == pytest.approx(expected, abs=1e-12)


def test_default_is_eleven_points():
    # 0, 0.4, …, 4: 0, 0.4, 0.8 and 2.0, 2.4, 2.8 are in: 6 of 11.
    assert bone_containment(GAPPED, along_x(0, 4), [-1, 0]) == pytest.approx(6 / 11, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12))
def test_fast_is_the_reference_and_stays_in_bounds(seed, joint_count, samples):
    rng = np.random.default_rng(seed)
    grid = OccupancyGrid(rng.random((5, 6, 7)) < 0.5, rng.normal(size=3), 0.3)
    joints = grid.origin + rng.uniform(-0.5, 2.5, (joint_count, 3))
    parents = np.array([-1] + [rng.integers(-1, i) for i in range(1, joint_count)])
    value = bone_containment(grid, joints, parents, samples)
    assert 0 <= value <= 1
    assert value == pytest.approx(bone_containment_reference(grid, joints, parents, samples), abs=1e-12)
    # reordering the joints changes nothing
    order = rng.permutation(joint_count)
    position = np.argsort(order)
    renamed = np.where(parents[order] < 0, -1, position[parents[order]])
    assert bone_containment(grid, joints[order], renamed, samples) == pytest.approx(value, abs=1e-12)


def test_points_are_ordered_by_child_joint():
    points = bone_points(along_x(0.0, 1.0, 4.0), np.array([-1, 0, 0]), 2)
    assert points[:, :, 0].tolist() == [[0, 0.5, 1], [0, 2, 4]]


@pytest.mark.parametrize(
    ("parents", "reason"),
    [
        ([1, 0], "joint 0 never reaches a root"),
        ([-1, 1], "joint 1 never reaches a root"),
        ([-1, 2], "joint 1 has parent 2"),
        ([-2, 0], "joint 0 has parent -2"),
        ([-1], r"need \(2,\)"),
        ([-1.0, 0.0], "pass integers"),
    ],
)
def test_bad_parents(parents, reason):
    for containment in (bone_containment, bone_containment_reference):
        with pytest.raises(RigRewardError, match=reason):
            containment(GAPPED, along_x(0, 1), np.array(parents))


def test_bad_samples():
    with pytest.raises(ValueError, match="samples_per_bone is 0"):
        bone_containment(GAPPED, along_x(0, 1), [-1, 0], 0)
