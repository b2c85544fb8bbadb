"""Guard rewards: opt-in rewards that close loopholes of the paper's four (docs/rewards.md).

    bone_influence    = fraction of bones that are the strongest on at least n vertices
    joint_count_prior = exp(-(ln(J / expected) / ln(factor))² / 2)

n = 1, expected = 30 joints, factor = 2. Both are this project's own. The guards `volume_preservation` and
`weight_locality` have files of their own, `rewards.volume` and `rewards.locality`.
"""

import numpy as np
from numpy.typing import ArrayLike

from rewards.kernels.weights import owned_vertices
from rewards.weights import check_weights

GUARD_NAMES = ("bone_influence", "joint_count_prior", "volume_preservation", "weight_locality")


def bone_influence(weights: ArrayLike, min_vertices: int = 1) -> float:
    """Fraction of bones that own vertices: that are the strongest bone on at least `min_vertices` of them.

    Near 0 if every vertex follows the root or all weights are equal: the cheats that the paper's sparsity and
    smoothness reward most.

    Args:
        weights: (S, J) float >= 0, raw. The first of equally strong bones owns the vertex; a vertex without
            weight has no owner.
        min_vertices: n >= 1.

    Returns:
        A float in [0, 1].

    Raises:
        RigRewardError: wrong shape, negative or non-finite weights.
        ValueError: min_vertices below 1.
    """
    if min_vertices < 1:
        raise ValueError(f"min_vertices is {min_vertices}; it must be at least 1")
    return float((owned_vertices(check_weights(weights)) >= min_vertices).mean())


def joint_count_prior(joint_count: int, expected: float = 30.0, factor: float = 2.0) -> float:
    """How typical a number of joints is: a Gaussian in its logarithm.

    1 at the expected number, 0.61 at `factor` times as many or as few, 0.14 at `factor`² times. Penalises
    rigs that buy coverage with ever more joints, or containment with a single bone.

    Args:
        joint_count: J >= 1.
        expected: > 0; the typical number, of your own data if you know it.
        factor: > 1.

    Returns:
        A float in (0, 1].

    Raises:
        ValueError: an argument out of range.
    """
    if joint_count < 1 or not expected > 0 or not factor > 1:
        raise ValueError(
            f"joint_count is {joint_count}, expected {expected}, factor {factor}; "
            "they must be at least 1, above 0 and above 1"
        )
    return float(np.exp(-0.5 * (np.log(joint_count / expected) / np.log(factor)) ** 2))
