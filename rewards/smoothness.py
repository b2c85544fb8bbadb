"""Deformation smoothness, R_mo: how little the mesh's edges stretch when the rig is posed.

    R_mo = 1 / (1 + s · mean over poses of max over edges e of stretch(e))
    stretch(e) = max(1, posed length of e / (rest length of e + 1e-6))

over 5 random poses (`rewards.poses`) of linear blend skinning (`rewards.lbs`); the paper gives no s, 1 here.
Paper, "Deformation smoothness".
"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.compiled import read_only
from rewards.edges import check_edges
from rewards.kernels import skinning
from rewards.lbs import skin, skinning_matrices
from rewards.weights import check_weights

Reduce = Literal["max", "mean"]
LENGTH_EPSILON = skinning.LENGTH_EPSILON


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
    """R_mo of a rig in given poses.

    Args:
        vertices: (S, 3) float rest positions, mesh frame; weld coincident ones, or tears go unseen.
        edges: (E, 2) int vertex indices; E may be 0.
        joints: (J, 3) float, mesh frame.
        parents: (J,) int, -1 for a root; any order, no cycles.
        weights: (S, J) float >= 0, normalised per vertex here; a vertex without weight stays at rest.
        rotations: (P, J, 3, 3) float local joint rotations, for column vectors.
        scale: s >= 0.
        reduce: over edges: `max` as in the formula, or `mean`.

    Returns:
        A float in (0, 1 / (1 + scale)].

    Raises:
        MeshRewardError: vertices or edges of a wrong shape, not finite, out of range.
        RigRewardError: invalid joints, parents or weights.
        RewardError: weights or rotations that do not fit this mesh and rig.
        ValueError: negative scale, unknown reduce.
    """
    check_smoothness_options(scale, reduce)
    largest, mean, _ = edge_stretch(vertices, edges, joints, parents, weights, rotations)
    return smoothness_of(largest if reduce == "max" else mean, scale)


def smoothness_of(stretch_per_pose: NDArray[np.float64], scale: float = 1.0) -> float:
    """R_mo from the stretch of each pose, (P,) float64 >= 1, already reduced over edges."""
    return float(1.0 / (1.0 + scale * np.mean(stretch_per_pose)))


def edge_stretch(
    vertices: ArrayLike,
    edges: ArrayLike,
    joints: ArrayLike,
    parents: ArrayLike,
    weights: ArrayLike,
    rotations: ArrayLike,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Edge stretch per pose; arguments and errors as in `deformation_smoothness`.

    Returns:
        Largest stretch (P,), mean stretch (P,), index of the most stretched edge (P,), -1 if there are no
        edges.
    """
    points, pairs = check_edges(vertices, edges)
    matrices = skinning_matrices(joints, parents, rotations)
    array = check_weights(weights, len(points), matrices.shape[1])
    return stretch_of(points, pairs, skin(points, array, matrices))


def stretch_of(
    rest: NDArray[np.float64], edges: NDArray[np.int64], posed: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """`edge_stretch` of posed vertices, unchecked: rest (S, 3), edges (E, 2), posed (S, P, 3) from `skin`."""
    largest, sums, worst = skinning.edge_stretch(rest, read_only(edges), posed)
    return largest, sums / max(len(edges), 1), worst


def check_smoothness_options(scale: float, reduce: str) -> None:
    """Raise ValueError for options out of range."""
    if not scale >= 0:
        raise ValueError(f"scale is {scale}; it must not be negative")
    if reduce not in get_args(Reduce):
        raise ValueError(f"reduce is {reduce!r}; choose max or mean")
