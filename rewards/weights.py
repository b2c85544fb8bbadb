"""Validation of skinning weights, shared by every reward that reads them."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.compiled import read_only
from rewards.errors import RewardError, RigRewardError
from rewards.kernels.weights import first_bad_row


def check_weights(
    weights: ArrayLike, vertex_count: int | None = None, joint_count: int | None = None
) -> NDArray[Any]:
    """Skinning weights as a read-only contiguous (S, J) array: float32 stays, all else becomes float64.

    Args:
        weights: (S, J) real numbers.
        vertex_count: S of the mesh, if known.
        joint_count: J of the rig, if known.

    Raises:
        RigRewardError: not 2D, no rows or columns, a weight that is negative, above 1e30 or not finite.
        RewardError: S or J differs from the count given.
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
    array = read_only(np.ascontiguousarray(array))
    bad = first_bad_row(array)
    if bad >= 0:
        raise RigRewardError(
            f"vertex {bad} has a weight that is negative, above 1e30 or not finite; discard the rig"
        )
    return array
