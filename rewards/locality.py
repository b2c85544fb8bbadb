"""Weight locality: skinning weights stay off the parts of the mesh that an unconnected sub-tree moves.

    R_wl = 1 - mean over vertices v of (sum of w_vj over bones j not connected with owner(v)) / (sum of w_vj)

owner(v) is the bone with the shortest way to v through occupied cells (steps through cell faces), not
straight through the air: the thigh beside a hanging hand belongs to the leg. A bone's cells are those on the
segments from its joint to its children. Two bones are connected if one is an ancestor of the other or both
hang on the same joint: weights may blend along a limb and where limbs meet.

The way is searched on a grid of at most 64 cells along the longest side, made of the occupancy grid. Places
that no way reaches, such as parts that float, belong to the bone nearest in a straight line. This project's
own; distances through the volume as in geodesic voxel binding (Dionne and de Lasa, 2013).
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rewards.errors import RewardError
from rewards.kernels.locality import leaked_shares, owning_bones
from rewards.occupancy import OccupancyGrid
from rewards.skeleton import check_joints, check_parents, hierarchy_levels
from rewards.weights import check_weights

COARSE_CELLS = 64


def weight_locality(
    grid: OccupancyGrid, vertices: ArrayLike, joints: ArrayLike, parents: ArrayLike, weights: ArrayLike
) -> float:
    """R_wl of a rig.

    Args:
        grid: the mesh's occupancy.
        vertices: (S, 3) float rest positions, mesh frame.
        joints: (J, 3) float, mesh frame.
        parents: (J,) int, -1 for a root; any order, no cycles.
        weights: (S, J) float >= 0, normalised per vertex here; a vertex without weight leaks nothing.

    Returns:
        A float in [0, 1].

    Raises:
        RigRewardError: invalid joints, parents or weights.
        RewardError: weights that do not fit the vertices or the rig, vertices that are not finite (S, 3).
    """
    points = np.asarray(vertices, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
        raise RewardError(f"vertices have shape {points.shape}; pass finite (S, 3) floats")
    rest = check_joints(joints)
    up = check_parents(parents, len(rest))
    hierarchy_levels(up)
    return locality_of(coarse_grid(grid), points, rest, up, check_weights(weights, len(points), len(rest)))


def locality_of(
    coarse: OccupancyGrid,
    vertices: NDArray[np.float64],
    joints: NDArray[np.float64],
    parents: NDArray[np.int64],
    weights: NDArray[Any],
) -> float:
    """R_wl unchecked, on a grid from `coarse_grid`; other arguments as in `weight_locality`."""
    starts, ends, bones = bone_segments(joints, parents)
    owners = owning_bones(
        coarse.occupied, in_cells(coarse, starts), in_cells(coarse, ends), bones, in_cells(coarse, vertices)
    )
    return float(1.0 - leaked_shares(weights, owners, connected_bones(parents)) / len(weights))


def coarse_grid(grid: OccupancyGrid, cells: int = COARSE_CELLS) -> OccupancyGrid:
    """The grid with whole blocks of cells merged into one, which is occupied if one of them is.

    At most `cells` along the longest side; the same origin.
    """
    block = -(-max(grid.occupied.shape) // cells)
    merged: NDArray[np.bool_] = grid.occupied
    for axis, size in enumerate(grid.occupied.shape):
        merged = np.logical_or.reduceat(merged, np.arange(0, size, block), axis=axis)
    return OccupancyGrid(np.ascontiguousarray(merged), grid.origin, grid.cell * block)


def in_cells(grid: OccupancyGrid, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (…, 3), mesh frame, in cells from the grid's origin; clipped, so that squares stay finite."""
    return np.ascontiguousarray(np.clip((points - grid.origin) / grid.cell, -1e100, 1e100))


def bone_segments(
    joints: NDArray[np.float64], parents: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """The segments that make up the bones: starts (B, 3), ends (B, 3), and the bone of each (B,) int64.

    Bone j turns about joint j, so it owns that joint and the segments from it to its children. The joints
    come first, as segments without length: a joint belongs to its own bone, not to the end of its parent's.
    """
    own = np.arange(len(joints))
    children = np.flatnonzero(parents >= 0)
    return (
        np.vstack([joints, joints[parents[children]]]),
        np.vstack([joints, joints[children]]),
        np.concatenate([own, parents[children]]),
    )


def connected_bones(parents: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which bones are connected, (J, J) bool, symmetric; parents (J,) without cycles."""
    above = np.eye(len(parents), dtype=np.bool_)  # above[j, a]: a is j or an ancestor of j
    for level in hierarchy_levels(parents)[1:]:
        above[level] |= above[parents[level]]
    siblings = (parents[:, None] == parents) & (parents >= 0)
    return above | above.T | siblings
