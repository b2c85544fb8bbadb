"""Numba kernels over skinning weights: validity, influences per vertex, vertices that each bone owns.

All read (S, J) float32 or float64 row by row, in place: NumPy's comparisons would each write an (S, J) array.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.compiled import kernel

# The inner loop has no early exit, so that it can be vectorised; the kernel stops at the first bad row.


@kernel()
def first_bad_row(weights: Any) -> int:
    """Index of the first row with a weight that is NaN, negative or above 1e30; -1 if there is none."""
    for v in range(weights.shape[0]):
        good = True
        for j in range(weights.shape[1]):
            good &= (weights[v, j] >= 0) & (weights[v, j] <= 1e30)
        if not good:
            return v
    return -1


# Both counts of R_sc in one pass; comparisons add 0 or 1 instead of branching.


@kernel()
def count_influences(weights: Any, threshold: Any, max_influences: int) -> tuple[int, int]:
    """How many vertices have every weight below `threshold`; how many have over `max_influences` above it."""
    uninfluenced = overinfluenced = 0
    for v in range(weights.shape[0]):
        below = above = 0
        for j in range(weights.shape[1]):
            below += weights[v, j] < threshold
            above += weights[v, j] > threshold
        uninfluenced += below == weights.shape[1]
        overinfluenced += above > max_influences
    return uninfluenced, overinfluenced


# The arg max of each row, counted per bone as it is found: no (S,) array of owners.


@kernel()
def owned_vertices(weights: Any) -> NDArray[np.int64]:
    """How many vertices each bone is strongest on, (J,) int64; a vertex without weight counts for none."""
    owned = np.zeros(weights.shape[1], np.int64)
    for v in range(weights.shape[0]):
        strongest = 0
        for j in range(1, weights.shape[1]):
            if weights[v, j] > weights[v, strongest]:
                strongest = j
        if weights[v, strongest] > 0:
            owned[strongest] += 1
    return owned


# Two flags per vertex in one pass: no copy of the roots' columns.


@kernel()
def root_only_vertices(weights: Any, is_root: Any) -> int:
    """Number of vertices that have weight, all of it on roots; is_root (J,) bool."""
    count = 0
    for v in range(weights.shape[0]):
        root = elsewhere = False
        for j in range(weights.shape[1]):
            root |= (weights[v, j] > 0) & is_root[j]
            elsewhere |= (weights[v, j] > 0) & (not is_root[j])
        count += root and not elsewhere
    return count
