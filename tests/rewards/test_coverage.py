"""Volumetric joint coverage: values by hand, comparison with the reference, properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import OccupancyGrid, RigRewardError, build_occupancy, joint_coverage
from rewards.references import joint_coverage_reference
from tests.rewards import cases
from tests.rewards.shapes import blob


def row_of_three(cell=1.0):
    """Three occupied cells along x from the origin."""
    return OccupancyGrid(np.ones((3, 1, 1), dtype=bool), np.zeros(3), cell)


def random_grid(seed, shape=(19, 8, 23), density=0.3):
    occupied = np.random.default_rng(seed).random(shape) < density
    occupied[0, 0, 0] = True
    return OccupancyGrid(occupied, np.array([-1.0, 0.5, 2.0]), 0.37)


BOTH = pytest.mark.parametrize("coverage", [joint_coverage, joint_coverage_reference])


@BOTH
@pytest.mark.parametrize(
    ("cell", "alpha", "unit", "joints", "expected"),
    [
        # Centres at 0.5, 1.5, 2.5; a joint on the first: distances 0, 1, 2 cells; exp(-ln 2 · d) = 1, 1/2,
        # 1/4.
        (1.0, np.log(2), "cells", [[0.5, 0.5, 0.5]], (1 + 1 / 2 + 1 / 4) / 3),
        # The same at half the size: distances in cells do not change …
        (0.5, np.log(2), "cells", [[0.25, 0.25, 0.25]], (1 + 1 / 2 + 1 / 4) / 3),
        # … but in the mesh's unit they are 0, 1/2, 1: with alpha = 2 ln 2 again 1, 1/2, 1/4.
        (0.5, 2 * np.log(2), "mesh", [[0.25, 0.25, 0.25]], (1 + 1 / 2 + 1 / 4) / 3),
        # The nearest of two joints counts: distances 0, 1, 0.
        (1.0, np.log(2), "cells", [[0.5, 0.5, 0.5], [2.5, 0.5, 0.5]], (1 + 1 / 2 + 1) / 3),
        # 3-4-5 triangle: from (1.5 + 3, 0.5 + 4, 0.5) to the middle cell 5, to the others sqrt(16 + 16),
        # sqrt(4 + 16).
        (1.0, 0.1, "cells", [[4.5, 4.5, 0.5]], np.exp([-0.5, -(32**0.5) / 10, -(20**0.5) / 10]).mean()),
        # No decay: distance does not matter.
        (1.0, 0.0, "cells", [[50.0, 0.0, 0.0]], 1.0),
    ],
)
def test_by_hand(coverage, cell, alpha, unit, joints, expected):
    assert coverage(row_of_three(cell), joints, alpha, unit) == pytest.approx(expected, abs=1e-12)


def test_defaults_are_the_papers():
    # exp(-0.05 · d) at d = 0, 1, 2 cells.
    expected = (1 + 0.951229424500714 + 0.9048374180359595) / 3
    assert joint_coverage(row_of_three(), [[0.5, 0.5, 0.5]]) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(*[st.integers(1, 21)] * 3),
    st.integers(1, 60),
    st.sampled_from([0.0, 0.001, 0.05, 2.0]),
    st.floats(0.3, 30),
)
def test_pruned_search_is_exact(seed, shape, joint_count, alpha, spread):
    grid = random_grid(seed, shape)
    joints = grid.origin + np.random.default_rng(seed + 1).normal(0, spread, (joint_count, 3))
    joints[-1] = joints[0]  # duplicates are ties
    for unit in ("cells", "mesh"):
        expected = joint_coverage_reference(grid, joints, alpha, unit)
        assert joint_coverage(grid, joints, alpha, unit) == pytest.approx(expected, rel=1e-12, abs=1e-300)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.floats(0, 1))
def test_properties(seed, joint_count, alpha):
    rng = np.random.default_rng(seed)
    grid = random_grid(seed)
    joints = rng.uniform(-10, 10, (joint_count, 3))
    value = joint_coverage(grid, joints, alpha)
    assert 0 <= value <= 1
    # adding any joint never lowers it
    more = np.vstack([joints, rng.uniform(-10, 10, (1, 3))])
    assert joint_coverage(grid, more, alpha) >= value - 1e-12
    assert joint_coverage(grid, joints[rng.permutation(joint_count)], alpha) == pytest.approx(
        value, rel=1e-12
    )
    assert joint_coverage(grid, np.vstack([joints, joints]), alpha) == pytest.approx(value, rel=1e-12)


def test_invariant_under_moving_and_scaling_the_whole_scene():
    vertices, faces = blob(np.random.default_rng(0))
    joints = vertices[::9]
    expected = joint_coverage(build_occupancy(vertices, faces, 50), joints)
    for scale, shift in ((3.7, 0.0), (1.0, 100.0), (0.01, -5.0)):
        grid = build_occupancy(vertices * scale + shift, faces, 50)
        assert joint_coverage(grid, joints * scale + shift) == pytest.approx(expected, abs=1e-9)


def test_joints_on_every_cell_reach_one_and_far_joints_zero():
    grid = random_grid(5)
    assert joint_coverage(grid, grid.centres()) == pytest.approx(1.0, abs=1e-12)
    assert joint_coverage(grid, [[1e6, 0, 0]]) < 1e-200
    assert 0 <= joint_coverage(grid, [[1e30, -1e30, 1e30]]) < 1e-200  # squares must not overflow


@pytest.mark.parametrize(
    ("joints", "reason"),
    [
        (np.zeros((0, 3)), "J at least 1"),
        (np.zeros((4, 2)), r"\(J, 3\)"),
        (np.zeros(3), r"\(J, 3\)"),
        ([[0, 0, np.nan]], "joint 0 .* not finite"),
        ([[0, 0, 0], [np.inf, 0, 0]], "joint 1 .* not finite"),
    ],
)
def test_bad_joints(joints, reason):
    for coverage in (joint_coverage, joint_coverage_reference):
        with pytest.raises(RigRewardError, match=reason):
            coverage(row_of_three(), joints)


def test_bad_options():
    with pytest.raises(ValueError, match="alpha is -1"):
        joint_coverage(row_of_three(), [[0.0, 0, 0]], alpha=-1)
    with pytest.raises(ValueError, match="alpha is nan"):
        joint_coverage(row_of_three(), [[0.0, 0, 0]], alpha=float("nan"))
    with pytest.raises(ValueError, match="choose cells or mesh"):
        joint_coverage(row_of_three(), [[0.0, 0, 0]], distance_unit="metres")


def test_a_grid_is_prepared_once():
    grid = cases.grid("Fox")
    assert grid.blocks is grid.blocks
