"""Validation of skin weights, shared by the rewards that read them."""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from rewards.errors import RewardError, RigRewardError


def check_weights(
    weights: ArrayLike, vertex_count: int | None = None, joint_count: int | None = None
) -> NDArray[Any]:
    """Skin weights as a contiguous (S, J) array, float32 kept, everything else as float64.

    Raises:
        RigRewardError: wrong shape, no rows or columns, a weight that is negative, above 1e30 or not finite.
    """
    array = np.asarray(weights)
    rows, columns = (vertex_count or "S"), (joint_count or "J")
    if array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "fiub":
        raise RigRewardError(
            f"weights have shape {array.shape} and dtype {array.dtype}; pass ({rows}, {columns}) floats"
        )
    if array.dtype != np.float32:
        array = array.astype(np.float64)
    if vertex_count not in (None, len(array)) or joint_count not in (None, array.shape[1]):
        raise RewardError(f"weights have shape {array.shape}; this mesh and rig need ({rows}, {columns})")
    array = np.ascontiguousarray(array)
    bad = _first_bad_row(array)
    if bad >= 0:
        raise RigRewardError(
            f"vertex {bad} has a weight that is negative, above 1e30 or not finite; drop the rig"
        )
    return array


@njit(cache=True)
def _first_bad_row(weights: Any) -> int:
    for v in range(weights.shape[0]):
        good = True
        for j in range(weights.shape[1]):
            good &= (weights[v, j] >= 0) & (weights[v, j] <= 1e30)
        if not good:
            return v
    return -1
