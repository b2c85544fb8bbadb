"""Kernels that no reward reaches one by one: the exponential, interior fills, counts over weights."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.kernels.coverage import exp_of_minus
from rewards.kernels.geometry import duplicate_joints
from rewards.kernels.occupancy import bounding_box, fill_flood, fill_projection
from rewards.kernels.weights import count_influences, first_bad_row, owned_vertices, root_only_vertices
from rewards.references import fill_flood_reference, fill_projection_reference


def test_exponential_is_accurate_over_its_whole_range():
    t = np.concatenate([np.linspace(0, 5, 501), np.linspace(5, 700, 997), [1e-300, 1e-12, 700.0]])
    values = np.array([exp_of_minus(x) for x in t])
    assert np.abs(values / np.exp(-t) - 1).max() < 2e-15
    assert exp_of_minus(0.0) == 1.0
    assert 0 < exp_of_minus(1e9) < 1e-300


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.tuples(*[st.integers(1, 7)] * 3), st.floats(0.02, 0.6))
def test_fills_are_the_reference_fills(seed, shape, density):
    surface = np.random.default_rng(seed).random(shape) < density
    assert (fill_projection(surface) == fill_projection_reference(surface)).all()
    assert (fill_flood(surface) == fill_flood_reference(surface)).all()


def test_bounding_box_covers_only_the_vertices_in_use():
    points = np.array([[0, 0, 0], [1, 5, -2], [9, 9, 9], [-1, 2, 3]], dtype=np.float64)
    low, high = bounding_box(points, np.array([[0, 1, 3]]))
    assert low.tolist() == [-1, 0, -2]
    assert high.tolist() == [1, 5, 3]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(1, 9), st.sampled_from(["f4", "f8"]))
def test_counts_over_weights_are_numpys(seed, vertices, joints, dtype):
    rng = np.random.default_rng(seed)
    weights = np.round(rng.random((vertices, joints)) ** 2, 1).astype(dtype)
    weights[rng.random(vertices) < 0.2] = 0
    beta = weights.dtype.type(0.1)
    below, above = (weights < beta).all(axis=1).sum(), ((weights > beta).sum(axis=1) > 2).sum()
    assert count_influences(weights, beta, 2) == (below, above)
    owners = weights.argmax(axis=1)[weights.max(axis=1) > 0]
    assert owned_vertices(weights).tolist() == np.bincount(owners, minlength=joints).tolist()
    is_root = rng.random(joints) < 0.5
    on_roots = (weights.max(axis=1) > 0) & ~(weights[:, ~is_root] > 0).any(axis=1)
    assert root_only_vertices(weights, is_root) == on_roots.sum()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1e-9, 1.1e30])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_the_first_bad_row_is_found(bad, dtype):
    weights = np.full((5, 3), 0.5, dtype=dtype)
    assert first_bad_row(weights) == -1
    weights[4, 0] = weights[2, 2] = bad
    assert first_bad_row(weights) == 2


def test_duplicate_joints_by_hand():
    # The second is 0.1 from the first, the third 0.1 from the second only; the fourth equals the first.
    joints = np.array([[0, 0, 0], [0.1, 0, 0], [0.2, 0, 0], [0, 0, 0]], dtype=np.float64)
    assert duplicate_joints(joints, 0.11) == 3
    assert duplicate_joints(joints, 0.05) == 1
    assert duplicate_joints(joints[:1], 1.0) == 0
