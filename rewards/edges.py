"""Edges of a triangle mesh."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rewards.errors import MeshRewardError


def mesh_edges(faces: ArrayLike) -> NDArray[np.int64]:
    """Undirected edges of a triangle mesh, each once.

    Args:
        faces: (F, 3) int.

    Returns:
        (E, 2) int64, smaller index first, sorted; an edge from a vertex to itself is left out.

    Raises:
        MeshRewardError: wrong shape or dtype, a negative index.
    """
    triangles = np.asarray(faces)
    if triangles.ndim != 2 or triangles.shape[1] != 3 or triangles.dtype.kind not in "iu":
        raise MeshRewardError(
            f"faces have shape {triangles.shape} and dtype {triangles.dtype}; pass (F, 3) integers"
        )
    if triangles.size == 0:
        return np.empty((0, 2), dtype=np.int64)
    if triangles.min() < 0:
        raise MeshRewardError("a face has a negative vertex index; repair the mesh")
    # One sortable number per edge, a column of faces at a time: quicker and smaller than np.unique over rows.
    base = int(triangles.max()) + 1
    keys = np.empty(triangles.size, dtype=np.int64)
    for side, column in enumerate(np.split(keys, 3)):
        first = triangles[:, side].astype(np.int64)
        second = triangles[:, (side + 1) % 3].astype(np.int64)
        low, high = np.minimum(first, second), np.maximum(first, second)
        column[:] = np.where(low != high, low * base + high, -1)
    keys.sort()
    fresh = np.ones(len(keys), dtype=np.bool_)
    fresh[1:] = keys[1:] != keys[:-1]
    fresh &= keys >= 0
    return np.stack(np.divmod(keys[fresh], base), axis=1)
