"""Pairing joints and aligning weights: by hand, and properties of any two rigs."""

from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.rig import Rig, reorder
from rl.metrics import (
    MetricError,
    align_weights,
    failed_skin,
    normalised_rows,
    pair_joints,
    same_joints,
    skin_scores,
)
from rl.metrics.pairing import _depths
from tests.rl.metrics.rigs import random_rig, rig


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
    said, is_so = align_weights(predicted, truth, pair_joints(predicted, truth))
    # Rows sum to 1: 0.1, 0.2 and 0.1 are a quarter, a half and a quarter. A row of nothing stays so.
    assert said == pytest.approx(np.array([[1, 0, 0, 0], [0, 0.5, 0.25, 0.25], [0, 0, 0, 1]]), abs=1e-7)
    assert is_so.tolist() == [[1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0]]  # as stored
    # The other way round: true joint 3 is nobody's, its column comes where it is in truth.
    said, is_so = align_weights(truth, predicted, pair_joints(truth, predicted))
    assert said.tolist() == [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert is_so == pytest.approx(np.array([[0.5, 0, 0, 0], [0, 0.1, 0.2, 0.1], [0, 0, 0, 0.3]]), abs=1e-7)


@given(seed=st.integers(0, 2**32), counts=st.tuples(st.integers(1, 6), st.integers(1, 6)))
@settings(deadline=None, max_examples=30)
def test_properties_of_aligned_weights(seed, counts):
    rng = np.random.default_rng(seed)
    predicted, truth = (random_rig(rng, count, 5) for count in counts)
    said, is_so = align_weights(predicted, truth, pair_joints(predicted, truth))
    assert said.shape == is_so.shape == (5, max(counts))
    assert said.sum(axis=1) == pytest.approx(1)
    assert is_so[:, : counts[1]].tolist() == truth.weights.tolist()
    scores = skin_scores(said, normalised_rows(is_so))
    assert scores.l1 <= failed_skin(counts[1]).l1 + 1e-9
    assert scores.l1_per_entry <= failed_skin(counts[1]).l1_per_entry + 1e-9
    own, again = align_weights(truth, truth, pair_joints(truth, truth))
    assert np.array_equal(own, normalised_rows(again))
    assert np.array_equal(pair_joints(truth, truth), same_joints(truth, truth))
    # The order of joints does not matter.
    order = np.lexsort((-np.arange(counts[0]), _depths(predicted)))
    other = reorder(predicted, order)
    said, is_so = align_weights(other, truth, pair_joints(other, truth))
    assert astuple(skin_scores(said, normalised_rows(is_so))) == pytest.approx(astuple(scores), abs=1e-6)


def test_rigs_on_the_given_skeleton_are_not_paired():
    """Joint i is joint i, wherever it is; another hierarchy is refused."""
    truth = rig([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [-1, 0, 0], [0, 1, 2])
    swapped = rig([[0, 0, 0], [0, 1, 0], [1, 0, 0]], [-1, 0, 0], [0, 1, 2])
    assert pair_joints(swapped, truth).tolist() == [0, 2, 1]
    assert same_joints(swapped, truth).tolist() == [0, 1, 2]
    assert np.array_equal(*align_weights(swapped, truth, same_joints(swapped, truth)))
    for joints, parents in (([[0, 0, 0]], [-1]), ([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [-1, 0, 1])):
        with pytest.raises(MetricError, match=r"does not have the ground truth's hierarchy \(3 joints\)"):
            same_joints(rig(joints, parents, [0, 0, 0]), truth)


def test_weights_of_different_meshes_are_not_aligned():
    rng = np.random.default_rng(0)
    with pytest.raises(
        MetricError, match="the predicted rig has weights for 4 vertices and the ground-truth rig for 5"
    ):
        align_weights(random_rig(rng, 2, 4), random_rig(rng, 2, 5), np.arange(2))
