"""Skin coverage and sparsity [R_sc]: every vertex bound, and to few bones."""

from typing import Any

from numba import njit
from numpy.typing import ArrayLike, NDArray

from rewards.weights import check_weights


def skin_sparsity(
    weights: ArrayLike,
    threshold: float = 0.1,
    max_influences: int = 4,
    unbound_power: float = 1.0,
    crowded_power: float = 1.0,
) -> float:
    """`1 - R_z / 2 - R_m / 2`: R_z from unbound vertices, R_m from vertices that too many bones move.

    R_z is the fraction of vertices whose every weight is below `threshold`, to the power `unbound_power`; R_m
    the fraction with more than `max_influences` weights above it, to the power `crowded_power`.

    Args:
        weights: (S, J) float32 or float64, raw (not normalised: that would hide unbound vertices), >= 0.
        threshold: beta; compared at the weights' own precision, so a stored float32 0.1 is neither above nor
            below.
        max_influences: bones a vertex may have.
        unbound_power: alpha_z > 0. The paper gives none.
        crowded_power: alpha_m > 0. The paper gives none.

    Returns:
        A float in [0, 1].

    Raises:
        RigRewardError: wrong shape, negative or non-finite weights.
        ValueError: a threshold outside [0, 1], a power that is not positive.

    Source: paper, "Skin coverage and sparsity", R_sc.
    """
    return sparsity_of(check_weights(weights), threshold, max_influences, unbound_power, crowded_power)


def sparsity_of(
    weights: NDArray[Any],
    threshold: float,
    max_influences: int,
    unbound_power: float,
    crowded_power: float,
) -> float:
    """`skin_sparsity` of weights that `check_weights` has returned."""
    _check_options(threshold, unbound_power, crowded_power)
    unbound, crowded = _count(weights, weights.dtype.type(threshold), max_influences)
    return combine(unbound / len(weights), crowded / len(weights), unbound_power, crowded_power)


def skin_sparsity_reference(
    weights: ArrayLike,
    threshold: float = 0.1,
    max_influences: int = 4,
    unbound_power: float = 1.0,
    crowded_power: float = 1.0,
) -> float:
    """`skin_sparsity` in plain NumPy."""
    _check_options(threshold, unbound_power, crowded_power)
    array = check_weights(weights)
    beta = array.dtype.type(threshold)
    unbound = (array < beta).all(axis=1).mean()
    crowded = ((array > beta).sum(axis=1) > max_influences).mean()
    return combine(float(unbound), float(crowded), unbound_power, crowded_power)


def _check_options(threshold: float, unbound_power: float, crowded_power: float) -> None:
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; it must be between 0 and 1")
    if not (unbound_power > 0 and crowded_power > 0):
        raise ValueError(f"powers are {unbound_power} and {crowded_power}; both must be positive")


def combine(unbound: float, crowded: float, unbound_power: float, crowded_power: float) -> float:
    """The reward of known fractions of unbound and crowded vertices."""
    return 1.0 - unbound**unbound_power / 2 - crowded**crowded_power / 2


@njit(cache=True)
def _count(weights: Any, threshold: Any, max_influences: int) -> tuple[int, int]:
    """Vertices with every weight below the threshold, and with more than `max_influences` above it."""
    unbound = crowded = 0
    for v in range(weights.shape[0]):
        below = above = 0
        for j in range(weights.shape[1]):
            below += weights[v, j] < threshold
            above += weights[v, j] > threshold
        unbound += below == weights.shape[1]
        crowded += above > max_influences
    return unbound, crowded
