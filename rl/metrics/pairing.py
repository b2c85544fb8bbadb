"""Pairs the joints of a predicted rig with the ground truth's, and aligns their skinning weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from data.rig import Rig
from rl.metrics.inputs import MetricError
from rl.metrics.skin import normalised_rows

# Weights of the tie-breaks, against squared distances in the mesh frame: depth (then index) decides only
# between joints closer than 3e-5.
TIE_DEPTH, TIE_INDEX = 1e-9, 1e-12


def pair_joints(predicted: Rig, truth: Rig) -> NDArray[np.int64]:
    """For each predicted joint the index of its ground-truth joint, or -1.

    The roots are paired with each other, since both move the whole mesh. The other joints are paired one to
    one, as many as the smaller rig has, by the least sum of squared distances. (With plain distances a chain
    shifted along itself would have many optimal pairings.) Joints at one position are told apart by depth,
    then by index.

    Returns:
        (J,) int64, J the number of predicted joints; no ground-truth joint occurs twice.
    """
    offsets = predicted.joints[1:, None].astype(np.float64) - truth.joints[1:].astype(np.float64)
    cost = (offsets**2).sum(axis=-1)
    cost += TIE_DEPTH * np.abs(_depths(predicted)[1:, None] - _depths(truth)[1:])
    cost += TIE_INDEX * np.abs(np.arange(cost.shape[0])[:, None] - np.arange(cost.shape[1]))
    pairing = np.full(len(predicted.joints), -1, dtype=np.int64)
    pairing[0] = 0
    rows, columns = linear_sum_assignment(cost)
    pairing[rows + 1] = columns + 1
    return pairing


def same_joints(predicted: Rig, truth: Rig) -> NDArray[np.int64]:
    """The pairing of a rig on the given, true skeleton: joint i with joint i.

    Raises:
        MetricError: the rigs differ in their number of joints or their parents.
    """
    if not np.array_equal(predicted.parents, truth.parents):
        raise MetricError(
            f"the predicted rig ({len(predicted.joints)} joints) does not have the ground truth's hierarchy "
            f"({len(truth.joints)} joints); predict skinning weights for the given skeleton, or pair joints"
        )
    return np.arange(len(truth.joints))


def align_weights(
    predicted: Rig, truth: Rig, pairing: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights of two rigs of one mesh with corresponding columns, for the skin scores.

    Column k < K is ground-truth joint k; the prediction's column k is the joint that `pairing` pairs with it,
    or zeros. Each unpaired predicted joint gets a further column, which is zero in the ground truth. So a
    missing joint lowers recall, a surplus one precision, and both raise L1.

    Args:
        predicted, truth: J and K joints, weights (V, J) and (V, K) for the same V vertices. A vertex without
            weights keeps none.
        pairing: (J,) int64, from `pair_joints` or `same_joints`.

    Returns:
        Predicted weights, normalised, and ground-truth weights as stored, (V, K + U) float64 each; U
        predicted joints are unpaired.

    Raises:
        MetricError: weights for different numbers of vertices.
    """
    if len(predicted.weights) != len(truth.weights):
        raise MetricError(
            f"the predicted rig has weights for {len(predicted.weights)} vertices and the ground-truth rig "
            f"for {len(truth.weights)}; pass rigs of the same mesh at the same points"
        )
    count, paired = len(truth.joints), pairing >= 0
    weights = normalised_rows(predicted.weights)
    aligned = np.zeros((len(weights), count + int((~paired).sum())))
    aligned[:, pairing[paired]] = weights[:, paired]
    aligned[:, count:] = weights[:, ~paired]
    expected = np.zeros_like(aligned)
    expected[:, :count] = truth.weights
    return aligned, expected


def _depths(rig: Rig) -> NDArray[np.int64]:
    depth = np.zeros(len(rig.joints), dtype=np.int64)
    for joint, parent in enumerate(rig.parents[1:], start=1):
        depth[joint] = depth[parent] + 1
    return depth
