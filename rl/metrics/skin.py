"""Skin scores: L1, precision, recall and IoU of skinning weights, as this project and as Puppeteer count."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rewards.errors import RewardError
from rewards.weights import check_weights
from rl.metrics.inputs import MetricError

SkinConvention = Literal["plain", "puppeteer", "puppeteer_modelsresource"]

INFLUENCE = 1e-2  # plain: a weight above this is an influence
NOISE = 1e-3  # puppeteer: predicted weights below this become 0 ...
CUTS = {"puppeteer": 0.15, "puppeteer_modelsresource": 0.35}  # ... then those below this share of the largest
ROW_TOLERANCE = 0.01  # puppeteer: only vertices whose true weights sum to 1 within this count


@dataclass(frozen=True)
class SkinScores:
    """Skinning weights against the ground truth, over the V vertices of one mesh.

    l1: mean over vertices of the L1 distance between their rows, 0 to 2 for rows that sum to 1.
    l1_per_entry: mean over all entries, `l1` divided by the number of columns.
    l1_variance: the population variance of the rows' L1 distance over the vertices.
    precision, recall, iou: of the entries above the threshold, counted over the whole matrix.
    """

    l1: float
    l1_per_entry: float
    l1_variance: float
    precision: float
    recall: float
    iou: float


def failed_skin(joints: int) -> SkinScores:
    """The scores of a failed rig, the worst possible, where the ground truth has `joints` joints.

    Rows that sum to 1 and share no joint have an L1 of 2, which takes at least two columns; numbers from 0 to
    2 have a variance of at most 1.
    """
    return SkinScores(2.0, 2.0 / max(joints, 2), l1_variance=1.0, precision=0.0, recall=0.0, iou=0.0)


def skin_scores(predicted: ArrayLike, truth: ArrayLike, threshold: float = INFLUENCE) -> SkinScores:
    """Agreement of skinning weights with the ground truth, vertex by vertex and joint by joint.

    Weights are compared as given. Published numbers assume rows that sum to 1: normalise other weights first
    (a sigmoid per bone, an asset's rounded weights). Both matrices must have the same joints in the same
    columns.

    Precision is the share of predicted entries above the threshold that are above it in the ground truth,
    recall the share of ground-truth entries found, IoU their intersection over their union. With an empty
    denominator a score is 1 if neither matrix has an entry above the threshold, else 0: a prediction that
    binds nothing is not precise. A failed rig counts as `failed_skin`.

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
    p, t = _check_pair(predicted, truth)
    per_vertex = np.abs(p - t).sum(axis=1)
    above, true_above = p > threshold, t > threshold
    both, either = int((above & true_above).sum()), int((above | true_above).sum())

    def share(count: int) -> float:
        return both / count if count else float(either == 0)

    return SkinScores(
        l1=float(per_vertex.mean()),
        l1_per_entry=float(per_vertex.mean() / p.shape[1]),
        l1_variance=float(per_vertex.var()),
        precision=share(int(above.sum())),
        recall=share(int(true_above.sum())),
        iou=share(either),
    )


def puppeteer_skin_scores(predicted: ArrayLike, truth: ArrayLike, cut: float) -> SkinScores | None:
    """Agreement of skinning weights with the ground truth, as Puppeteer's evaluation counts it.

    Predicted weights below 0.001 become 0, then those below `cut` times the largest of their row, then rows
    are normalised (a row of zeros stays). Only vertices whose ground-truth row sums to 1 within 0.01 count.
    Precision is the share of non-zero predicted entries that are non-zero in the ground truth, recall the
    share of non-zero ground-truth entries found, over the whole matrix.

    Args:
        predicted: (V, J) float >= 0, rows that sum to 1 or 0. truth: (V, J) float >= 0, as stored.
        cut: `CUTS` of the convention: 0.15, or 0.35 for ModelsResource.

    Returns:
        None if no vertex counts.

    Raises:
        MetricError: shapes that differ or are empty, negative or non-finite weights.

    Source: specification, section 17. IoU and the variance, which Puppeteer does not print, are of the same
        cleaned weights and vertices.
    """
    p, t = _check_pair(predicted, truth)
    counted = np.abs(t.sum(axis=1) - 1) <= ROW_TOLERANCE
    if not counted.any():
        return None
    p, t = p[counted], t[counted]
    p[p < NOISE] = 0
    p[p < cut * p.max(axis=1, keepdims=True)] = 0
    return skin_scores(normalised_rows(p), t, threshold=0.0)


def normalised_rows(weights: NDArray[np.floating]) -> NDArray[np.float64]:
    """Weights (V, J) divided by their rows' sums; rows of zeros stay."""
    sums = weights.sum(axis=1, keepdims=True, dtype=np.float64)
    return np.divide(weights, sums, out=np.zeros(weights.shape), where=sums > 0)


def _check_pair(predicted: ArrayLike, truth: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    p, t = _check_skin("predicted", predicted), _check_skin("ground-truth", truth)
    if p.shape != t.shape:
        raise MetricError(
            f"predicted weights have shape {p.shape} and ground-truth weights {t.shape}; pass both as (V, J) "
            "with the same joints"
        )
    return p, t


def _check_skin(name: str, weights: ArrayLike) -> NDArray[np.float64]:
    try:
        return check_weights(weights).astype(np.float64)
    except RewardError as error:
        raise MetricError(f"{name} weights: {error}") from error
