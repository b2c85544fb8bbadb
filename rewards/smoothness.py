"""Deformation smoothness [R_mo]: how little edges stretch when the rig is posed."""

from typing import Any, Literal, get_args

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from rewards.errors import MeshRewardError
from rewards.lbs import (
    linear_blend_skinning_reference,
    skin,
    skinning_matrices,
    skinning_matrices_reference,
)
from rewards.skeleton import COORDINATE_LIMIT
from rewards.weights import check_weights

Reduce = Literal["max", "mean"]
LENGTH_EPSILON = 1e-6  # the formula's, in the mesh's unit


def deformation_smoothness(
    vertices: ArrayLike,
    edges: ArrayLike,
    joints: ArrayLike,
    parents: ArrayLike,
    weights: ArrayLike,
    rotations: ArrayLike,
    scale: float = 1.0,
    reduce: Reduce = "max",
) -> float:
    """`1 / (1 + scale * mean over poses of the reduced edge stretch)`.

    An edge's stretch in a pose is `max(1, posed length / (rest length + 1e-6))`, reduced over the edges.

    Args:
        vertices: (S, 3) float rest positions, mesh frame ([-1, 1]); weld coincident ones, or tears go unseen.
        edges: (E, 2) int vertex indices; without any edge nothing stretches.
        joints: (J, 3) float, mesh frame.
        parents: (J,) int, -1 for a root; any order, no cycles.
        weights: (S, J) float >= 0, normalised here per vertex; a vertex with no weight stays at rest.
        rotations: (P, J, 3, 3) float local joint rotations of P poses, for column vectors.
        scale: s >= 0. The paper gives none.
        reduce: over edges: `max` as the formula says, or `mean`.

    Returns:
        A float in (0, 1 / (1 + scale)].

    Raises:
        MeshRewardError: vertices or edges of a wrong shape, not finite, out of range.
        RigRewardError: a bad hierarchy, bad weights.
        RewardError: weights or rotations of another mesh or rig.
        ValueError: negative scale, unknown reduce.

    Source: paper, "Deformation smoothness", R_mo; conventions of `rewards.lbs`.
    """
    _check_options(scale, reduce)
    maxima, means, _ = edge_stretch(vertices, edges, joints, parents, weights, rotations)
    return smoothness_of(maxima if reduce == "max" else means, scale)


def smoothness_of(stretch_per_pose: NDArray[np.float64], scale: float = 1.0) -> float:
    """The reward of poses whose reduced edge stretches, (P,) each >= 1, are known."""
    return float(1.0 / (1.0 + scale * np.mean(stretch_per_pose)))


def edge_stretch(
    vertices: ArrayLike,
    edges: ArrayLike,
    joints: ArrayLike,
    parents: ArrayLike,
    weights: ArrayLike,
    rotations: ArrayLike,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Per pose: largest stretch (P,), mean stretch (P,), and the edge that stretches most (P,), -1 without
    edges.

    Arguments and errors as in `deformation_smoothness`.
    """
    points, pairs = check_edges(vertices, edges)
    matrices = skinning_matrices(joints, parents, rotations)
    array = check_weights(weights, len(points), matrices.shape[1])
    return stretch_of(points, pairs, skin(points, array, matrices))


def stretch_of(
    rest: NDArray[np.float64], edges: NDArray[np.int64], posed: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """`edge_stretch` of positions already posed: rest (S, 3), edges (E, 2), posed (S, P, 3). Unchecked."""
    maxima, sums, worst = _stretch(rest, edges, posed)
    return maxima, sums / max(len(edges), 1), worst


def deformation_smoothness_reference(
    vertices: ArrayLike,
    edges: ArrayLike,
    joints: ArrayLike,
    parents: ArrayLike,
    weights: ArrayLike,
    rotations: ArrayLike,
    scale: float = 1.0,
    reduce: Reduce = "max",
) -> float:
    """`deformation_smoothness` in plain NumPy."""
    _check_options(scale, reduce)
    points, pairs = check_edges(vertices, edges)
    matrices = skinning_matrices_reference(joints, parents, rotations)
    posed = linear_blend_skinning_reference(points, weights, matrices)
    if len(pairs) == 0:
        return smoothness_of(np.ones(len(posed)), scale)
    rest_length = np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1)
    posed_length = np.linalg.norm(posed[:, pairs[:, 0]] - posed[:, pairs[:, 1]], axis=2)
    stretch = np.maximum(1.0, posed_length / (rest_length + LENGTH_EPSILON))
    return smoothness_of(stretch.max(axis=1) if reduce == "max" else stretch.mean(axis=1), scale)


def check_edges(vertices: ArrayLike, edges: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Vertices as finite (S, 3) float64 and edges as (E, 2) int64 within range, both contiguous.

    Raises:
        MeshRewardError: otherwise.
    """
    points = np.asarray(vertices, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3 or len(points) == 0:
        raise MeshRewardError(f"vertices have shape {points.shape}; pass (S, 3) with at least one vertex")
    if not (np.abs(points) <= COORDINATE_LIMIT).all():
        raise MeshRewardError("a vertex is not finite or above 1e30; repair the mesh")
    pairs = np.asarray(edges)
    if pairs.size == 0:
        return np.ascontiguousarray(points), np.empty((0, 2), dtype=np.int64)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
        raise MeshRewardError(f"edges have shape {pairs.shape} and dtype {pairs.dtype}; pass (E, 2) integers")
    if pairs.min() < 0 or pairs.max() >= len(points):
        raise MeshRewardError(
            f"edges refer to vertices {pairs.min()} to {pairs.max()}, but there are {len(points)}"
        )
    return np.ascontiguousarray(points), np.ascontiguousarray(pairs.astype(np.int64))


def _check_options(scale: float, reduce: str) -> None:
    if not scale >= 0:
        raise ValueError(f"scale is {scale}; it must not be negative")
    if reduce not in get_args(Reduce):
        raise ValueError(f"reduce is {reduce!r}; choose max or mean")


@njit(cache=True, fastmath={"contract"})
def _stretch(rest: Any, edges: Any, posed: Any) -> Any:
    """Largest stretch, sum of stretches and worst edge per pose."""
    poses = posed.shape[1]
    largest = np.ones(poses)
    sums = np.zeros(poses)
    worst = np.full(poses, -1, np.int64)
    for e in range(edges.shape[0]):
        a, b = edges[e]
        dx = rest[a, 0] - rest[b, 0]
        dy = rest[a, 1] - rest[b, 1]
        dz = rest[a, 2] - rest[b, 2]
        inverse = 1.0 / (np.sqrt(dx * dx + dy * dy + dz * dz) + LENGTH_EPSILON)
        for p in range(poses):
            dx = posed[a, p, 0] - posed[b, p, 0]
            dy = posed[a, p, 1] - posed[b, p, 1]
            dz = posed[a, p, 2] - posed[b, p, 2]
            stretch = max(1.0, np.sqrt(dx * dx + dy * dy + dz * dz) * inverse)
            sums[p] += stretch
            if stretch > largest[p] or worst[p] < 0:
                largest[p] = stretch
                worst[p] = e
    return largest, sums, worst
