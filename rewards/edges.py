"""Edges of a triangle mesh: lists and validates them."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rewards.errors import MeshRewardError
from rewards.skeleton import COORDINATE_LIMIT


def mesh_edges(faces: ArrayLike) -> NDArray[np.int64]:
    """Undirected edges of a triangle mesh, each once.

    Args:
        faces: (F, 3) int.

    Returns:
        (E, 2) int64, smaller index first, sorted; edges from a vertex to itself are skipped.

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
    # One sortable number per edge, a column of faces at a time: faster and smaller than np.unique over rows.
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


def check_edges(vertices: ArrayLike, edges: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Vertices as finite (S, 3) float64 and edges as (E, 2) int64 within range, both contiguous.

    Args:
        vertices: (S, 3) float, S >= 1.
        edges: (E, 2) int; E may be 0, then of any shape.

    Raises:
        MeshRewardError: a wrong shape or dtype, a vertex not finite or above 1e30, an index out of range.
    """
    points = np.asarray(vertices, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3 or len(points) == 0:
        raise MeshRewardError(f"vertices have shape {points.shape}; pass (S, 3) with at least one vertex")
    if not (np.abs(points) <= COORDINATE_LIMIT).all():
        raise MeshRewardError("a vertex is not finite or exceeds 1e30; repair the mesh")
    pairs = np.asarray(edges)
    if pairs.size == 0:
        return np.ascontiguousarray(points), np.empty((0, 2), dtype=np.int64)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
        raise MeshRewardError(f"edges have shape {pairs.shape} and dtype {pairs.dtype}; pass (E, 2) integers")
    if pairs.min() < 0 or pairs.max() >= len(points):
        raise MeshRewardError(
            f"edges refer to vertices {pairs.min()} to {pairs.max()}, but the mesh has {len(points)} vertices"
        )
    return np.ascontiguousarray(points), np.ascontiguousarray(pairs.astype(np.int64))
