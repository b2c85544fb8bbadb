"""Reduces a mesh to a number of faces by merging vertices that share a cell of a grid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Cells along the longest side at which vertices merge only if a 16-bit coordinate cannot tell them apart.
_FINEST = 1 << 15
_COARSEST = 8


def reduced(
    vertices: NDArray[np.floating], faces: NDArray[np.integer], most_faces: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Merge the vertices of each cell of the finest grid that leaves at most `most_faces` faces.

    Vertices at one position always merge. Every vertex that is left is one of the mesh's, so what belongs to
    it, such as its skinning weights, stays as it is.

    Args:
        vertices: (V, 3) float, any frame.
        faces: (F, 3) int.
        most_faces: above 0; a grid of 8 cells may leave more.

    Returns:
        source (v,) int64: the vertices that are left, as indices into `vertices`; faces (f, 3) int64, indices
        into `source`, without faces that collapsed or came twice.
    """
    low, high = _COARSEST, _FINEST
    found = _merged(vertices, faces, high)
    if len(found[1]) <= most_faces:
        return found
    found = _merged(vertices, faces, low)
    while high - low > max(1, low // 32):
        middle = (low + high) // 2
        tried = _merged(vertices, faces, middle)
        if len(tried[1]) <= most_faces:
            low, found = middle, tried
        else:
            high = middle
    return found


def _merged(
    vertices: NDArray[np.floating], faces: NDArray[np.integer], cells: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The result of `reduced` for a grid of `cells` along the longest side."""
    start = vertices.min(axis=0)
    side = float(np.ptp(vertices, axis=0).max()) or 1.0
    places = np.minimum((np.asarray(vertices, dtype=np.float64) - start) / side * cells, cells - 1e-9)
    index = places.astype(np.int64)
    keys, cell = np.unique(index @ np.array([1 << 40, 1 << 20, 1], dtype=np.int64), return_inverse=True)
    # Of a cell, the vertex nearest to the middle of its vertices.
    count = np.bincount(cell, minlength=len(keys))
    middle = np.stack([np.bincount(cell, places[:, axis], len(keys)) / count for axis in range(3)], axis=1)
    distance = ((places - middle[cell]) ** 2).sum(axis=1)
    order = np.lexsort((np.arange(len(vertices)), distance, cell))
    source = order[np.searchsorted(cell[order], np.arange(len(keys)))]
    corners = cell[np.asarray(faces, dtype=np.int64)]
    solid = (
        (corners[:, 0] != corners[:, 1]) & (corners[:, 1] != corners[:, 2]) & (corners[:, 0] != corners[:, 2])
    )
    corners = corners[solid]
    _, first = np.unique(np.sort(corners, axis=1), axis=0, return_index=True)
    corners = corners[np.sort(first)]
    used, renamed = np.unique(corners, return_inverse=True)
    return source[used], renamed.reshape(-1, 3)
