"""Skin coverage and sparsity, R_sc: every vertex is influenced by some bone, and by few.

    R_sc = 1 - R_z / 2 - R_m / 2
    R_z  = (fraction of vertices with every weight < beta) ^ alpha_z
    R_m  = (fraction of vertices with more than 4 weights > beta) ^ alpha_m

beta = 0.1; the paper gives no alpha_z and alpha_m, 1 here. Paper, "Skin coverage and sparsity".
"""

from typing import Any

from numpy.typing import ArrayLike, NDArray

from rewards.kernels.weights import count_influences
from rewards.weights import check_weights


def skin_sparsity(
    weights: ArrayLike,
    threshold: float = 0.1,
    max_influences: int = 4,
    unbound_power: float = 1.0,
    crowded_power: float = 1.0,
) -> float:
    """R_sc of a rig's skinning weights.

    Args:
        weights: (S, J) float32 or float64 >= 0, raw: normalising would hide vertices that no bone influences.
        threshold: beta, compared in the weights' own precision: a stored float32 0.1 is neither below nor
            above.
        max_influences: how many bones may influence a vertex.
        unbound_power: alpha_z > 0.
        crowded_power: alpha_m > 0.

    Returns:
        A float in [0, 1].

    Raises:
        RigRewardError: wrong shape, negative or non-finite weights.
        ValueError: a threshold outside [0, 1], a power that is not positive.
    """
    check_sparsity_options(threshold, unbound_power, crowded_power)
    fractions = influence_fractions(check_weights(weights), threshold, max_influences)
    return sparsity_of(*fractions, unbound_power, crowded_power)


def sparsity_of(
    uninfluenced: float, overinfluenced: float, unbound_power: float = 1.0, crowded_power: float = 1.0
) -> float:
    """R_sc from the two fractions of vertices that `influence_fractions` returns."""
    return 1.0 - uninfluenced**unbound_power / 2 - overinfluenced**crowded_power / 2


def influence_fractions(weights: NDArray[Any], threshold: float, max_influences: int) -> tuple[float, float]:
    """Fractions of vertices with every weight below, and with more than `max_influences` weights above the
    threshold. weights (S, J) from `check_weights`.
    """
    counts = count_influences(weights, weights.dtype.type(threshold), max_influences)
    return counts[0] / len(weights), counts[1] / len(weights)


def check_sparsity_options(threshold: float, unbound_power: float, crowded_power: float) -> None:
    """Raise ValueError for options out of range."""
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; it must be between 0 and 1")
    if not (unbound_power > 0 and crowded_power > 0):
        raise ValueError(
            f"unbound_power is {unbound_power} and crowded_power {crowded_power}; both must be positive"
        )
