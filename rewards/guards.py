"""Opt-in rewards that close loopholes of the paper's four (docs/rewards.md); off unless asked for."""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from rewards.weights import check_weights

GUARD_NAMES = ("bone_influence", "joint_count_prior")


def bone_influence(weights: ArrayLike, min_vertices: int = 1) -> float:
    """Share of the bones that own vertices: bones that are the strongest on at least `min_vertices` of them.

    Near 0 when every vertex hangs on the root or all weights are alike (the strongest is then always the same
    bone), the cheats that the paper's sparsity and smoothness reward most.

    Args:
        weights: (S, J) float >= 0, raw. The first of equally strong bones owns the vertex; an unbound vertex
            has no owner.
        min_vertices: >= 1.

    Returns:
        A float in [0, 1].

    Raises:
        RigRewardError: wrong shape, negative or non-finite weights.
        ValueError: min_vertices below 1.

    Source: this project's.
    """
    if min_vertices < 1:
        raise ValueError(f"min_vertices is {min_vertices}; it must be at least 1")
    return float((owned_vertices(check_weights(weights)) >= min_vertices).mean())


def joint_count_prior(joint_count: int, expected: float = 30.0, factor: float = 2.0) -> float:
    """How usual a number of joints is: `exp(-(ln(J / expected) / ln(factor))^2 / 2)`.

    1 at the expected number, 0.61 at `factor` times more or fewer, 0.14 at its square. Against rigs that buy
    coverage with ever more joints, or containment with a single bone.

    Args:
        joint_count: J >= 1.
        expected: the usual number, of your own data where you know it.
        factor: > 1.

    Returns:
        A float in (0, 1].

    Raises:
        ValueError: an argument out of range.

    Source: this project's.
    """
    if joint_count < 1 or not expected > 0 or not factor > 1:
        raise ValueError(
            f"joint_count {joint_count}, expected {expected}, factor {factor}; "
            "they must be at least 1, above 0 and above 1"
        )
    return float(np.exp(-0.5 * (np.log(joint_count / expected) / np.log(factor)) ** 2))


@njit(cache=True)
def owned_vertices(weights: Any) -> NDArray[np.int64]:
    """How many vertices each bone is strongest on, (J,) int64; weights (S, J) from `check_weights`."""
    owned = np.zeros(weights.shape[1], np.int64)
    for v in range(weights.shape[0]):
        strongest = 0
        for j in range(1, weights.shape[1]):
            if weights[v, j] > weights[v, strongest]:
                strongest = j
        if weights[v, strongest] > 0:
            owned[strongest] += 1
    return owned
