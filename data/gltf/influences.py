"""The four largest weights of each vertex, as glTF stores them, and how much weight the rest had."""

import numpy as np
from numpy.typing import NDArray

INFLUENCES = 4

_ROWS = 1 << 16


def top_influences(
    weights: NDArray[np.float32], count: int = INFLUENCES
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The `count` largest weights of each row, largest first: (joints, weights), both (V, count).

    weights (V, J) float32, finite and >= 0. Returned rows sum to 1; entries of weight 0 refer to joint 0. A
    row of zeros becomes weight 1 for joint 0, the root.
    """
    kept = min(count, weights.shape[1])
    joints = np.zeros((len(weights), count), dtype=np.int64)
    values = np.zeros((len(weights), count))
    # A few passes, a part of the rows at a time: sorting all rows took a large mesh several GB. Of equal
    # weights argmax takes the first, so the first joints are kept.
    for start in range(0, len(weights), _ROWS):
        left = weights[start : start + _ROWS].copy()
        rows = np.arange(len(left))
        for place in range(kept):
            largest = left.argmax(axis=1)
            joints[start + rows, place] = largest
            values[start + rows, place] = left[rows, largest]
            left[rows, largest] = -1
    total = values.sum(axis=1, keepdims=True)
    unbound = total[:, 0] <= 0
    values = np.divide(values, total, out=np.zeros_like(values), where=total > 0)
    values[unbound, 0] = 1
    rounded = values.astype(np.float32)
    # The largest weight takes up the rounding of the others, so that validators find a sum of 1.
    rounded[:, 0] = 1 - rounded[:, 1:].sum(axis=1, dtype=np.float64)
    joints[(rounded == 0) | unbound[:, None]] = 0
    return joints, rounded


def as_stored(weights: NDArray[np.float32], count: int = INFLUENCES) -> NDArray[np.float32]:
    """The weights (V, J) float32 that a file gives back for `weights` (V, J): see `top_influences`."""
    joints, values = top_influences(weights, count)
    stored = np.zeros(weights.shape, dtype=np.float32)
    # Entries of weight 0 refer to joint 0, so entries are added, not set.
    np.add.at(stored, (np.arange(len(weights))[:, None], joints), values)
    return stored


def dropped_weight(weights: NDArray[np.float32], count: int = INFLUENCES) -> NDArray[np.float64]:
    """The share (V,) of each row's weight that its `count` largest entries leave out; 0 for rows of zeros.

    weights (V, J) float32, finite and >= 0.
    """
    total = weights.sum(axis=1, dtype=np.float64)
    if weights.shape[1] <= count:
        return np.zeros(len(weights))
    rest = np.partition(weights, weights.shape[1] - count, axis=1)[:, : weights.shape[1] - count]
    dropped = rest.sum(axis=1, dtype=np.float64)
    return np.divide(dropped, total, out=np.zeros_like(total), where=total > 0)
