"""Bone containment [R_vk]: how much of the skeleton lies inside the mesh's volume."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rewards.occupancy import OccupancyGrid
from rewards.skeleton import check_joints, check_parents, hierarchy_levels


def bone_containment(
    grid: OccupancyGrid, joints: ArrayLike, parents: ArrayLike, samples_per_bone: int = 10
) -> float:
    """Fraction of evenly spaced points on the bones that lie in occupied cells.

    Args:
        grid: the mesh's occupancy.
        joints: (J, 3) float, mesh frame.
        parents: (J,) int, -1 for a root; any order, no cycles.
        samples_per_bone: s >= 1; a bone has s + 1 points, both ends included. The paper gives 10.

    Returns:
        A float in [0, 1]. A rig without bones (only roots) counts its joints.

    Raises:
        RigRewardError: joints or parents that are no hierarchy.
        ValueError: samples_per_bone below 1.

    Source: paper, "Bone containment", R_vk.
    """
    return float(grid.contains(bone_points(joints, parents, samples_per_bone)).mean())


def bone_points(joints: ArrayLike, parents: ArrayLike, samples_per_bone: int = 10) -> NDArray[np.float64]:
    """The points that `bone_containment` looks up, (B, s + 1, 3) float64, or (J, 1, 3) for a rig without
    bones.

    Bones are ordered by their child joint; a point t is `parent + t/s * (child - parent)`. Errors: as there.
    """
    if samples_per_bone < 1:
        raise ValueError(f"samples_per_bone is {samples_per_bone}; it must be at least 1")
    ends = check_joints(joints)
    up = check_parents(parents, len(ends))
    hierarchy_levels(up)
    children = np.flatnonzero(up >= 0)
    if len(children) == 0:
        return ends[:, None, :]
    starts = ends[up[children], None, :]
    steps = np.linspace(0.0, 1.0, samples_per_bone + 1)[None, :, None]
    return starts + steps * (ends[children, None, :] - starts)


def bone_containment_reference(
    grid: OccupancyGrid, joints: ArrayLike, parents: ArrayLike, samples_per_bone: int = 10
) -> float:
    """`bone_containment` one point at a time."""
    ends = check_joints(joints)
    up = check_parents(parents, len(ends))
    hierarchy_levels(up)
    hits: list[bool] = []
    for child, parent in enumerate(up):
        for sample in range(samples_per_bone + 1) if parent >= 0 else ():
            point = ends[parent] + sample / samples_per_bone * (ends[child] - ends[parent])
            hits.append(_in_occupied_cell(grid, point))
    return float(np.mean(hits or [_in_occupied_cell(grid, root) for root in ends]))


def _in_occupied_cell(grid: OccupancyGrid, point: NDArray[np.float64]) -> bool:
    cell = []
    for axis in range(3):
        offset = (point[axis] - grid.origin[axis]) / grid.cell
        size = grid.occupied.shape[axis]
        if offset < 0 or offset > size + 1e-9:
            return False
        cell.append(min(int(offset), size - 1))
    return bool(grid.occupied[tuple(cell)])
