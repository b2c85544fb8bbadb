"""Skin scores: L1, precision, recall and IoU of skinning weights against the ground truth."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rewards.errors import RewardError
from rewards.weights import check_weights
from rl.metrics.inputs import MetricError


@dataclass(frozen=True)
class SkinScores:
    """Skinning weights against the ground truth, over the V vertices of one mesh.

    l1: mean over vertices of the L1 distance between their rows, 0 to 2 for rows that sum to 1. (Divide by
    the number of joints for the mean over all entries.)
    l1_variance: the population variance of that distance over the vertices.
    precision, recall, iou: of the entries above the threshold, counted over the whole matrix.
    """

    l1: float
    l1_variance: float
    precision: float
    recall: float
    iou: float


# The worst values: rows that sum to 1 and share no joint have an L1 of 2, and numbers from 0 to 2 a variance
# of at most 1.
FAILED_SKIN = SkinScores(l1=2.0, l1_variance=1.0, precision=0.0, recall=0.0, iou=0.0)


def skin_scores(predicted: ArrayLike, truth: ArrayLike, threshold: float = 1e-2) -> SkinScores:
    """Agreement of skinning weights with the ground truth, vertex by vertex and joint by joint.

    Weights are compared as given. Published numbers assume rows that sum to 1: normalise other weights first
    (a sigmoid per bone, an asset's rounded weights). Both matrices must have the same joints in the same
    columns.

    Precision is the share of predicted entries above the threshold that are above it in the ground truth,
    recall the share of ground-truth entries found, IoU their intersection over their union. With an empty
    denominator a score is 1 if neither matrix has an entry above the threshold, else 0: a prediction that
    binds nothing is not precise. A failed rig counts as `FAILED_SKIN`.

    Args:
        predicted, truth: (V, J) float >= 0; V, J >= 1.
        threshold: >= 0; an influence is a weight strictly above it.

    Raises:
        MetricError: shapes that differ or are empty, negative or non-finite weights, a negative threshold.

    Source: RigNet (Xu et al. 2020) for L1 per vertex, precision and recall; agrees with the numbers of an
        independent implementation (tests/rewards/reference). The population variance is this project's
        choice.
    """
    if not 0 <= threshold < math.inf:
        raise MetricError(f"threshold is {threshold}; use a finite number of at least 0")
    p, t = _check_skin("predicted", predicted), _check_skin("ground-truth", truth)
    if p.shape != t.shape:
        raise MetricError(
            f"predicted weights have shape {p.shape} and ground-truth weights {t.shape}; pass both as (V, J) "
            "with the same joints"
        )
    per_vertex = np.abs(p - t).sum(axis=1)
    above, true_above = p > threshold, t > threshold
    both, either = int((above & true_above).sum()), int((above | true_above).sum())

    def share(count: int) -> float:
        return both / count if count else float(either == 0)

    return SkinScores(
        l1=float(per_vertex.mean()),
        l1_variance=float(per_vertex.var()),
        precision=share(int(above.sum())),
        recall=share(int(true_above.sum())),
        iou=share(either),
    )


def _check_skin(name: str, weights: ArrayLike) -> NDArray[np.float64]:
    try:
        return check_weights(weights).astype(np.float64)
    except RewardError as error:
        raise MetricError(f"{name} weights: {error}") from error
