"""Bone containment, R_vk: how much of the skeleton lies inside the mesh.

    R_vk = fraction of the points  parent + t / s · (child - parent),  t = 0 … s,  in occupied cells

over all bones (parent joint to child joint), s = 10. Paper, "Bone containment".
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rewards.occupancy import OccupancyGrid
from rewards.skeleton import check_joints, check_parents, hierarchy_levels


def bone_containment(
    grid: OccupancyGrid, joints: ArrayLike, parents: ArrayLike, samples_per_bone: int = 10
) -> float:
    """R_vk of a rig's skeleton.

    Args:
        grid: the mesh's occupancy.
        joints: (J, 3) float, mesh frame.
        parents: (J,) int, -1 for a root; any order, no cycles.
        samples_per_bone: s >= 1; a bone has s + 1 points, both ends included.

    Returns:
        A float in [0, 1]. A rig without bones (roots only) is scored on its joints.

    Raises:
        RigRewardError: joints or parents that do not form a hierarchy.
        ValueError: samples_per_bone below 1.
    """
    return float(grid.contains(bone_points(joints, parents, samples_per_bone)).mean())


def bone_points(joints: ArrayLike, parents: ArrayLike, samples_per_bone: int = 10) -> NDArray[np.float64]:
    """The sample points of `bone_containment`; same arguments and errors.

    Returns:
        (B, s + 1, 3) float64, mesh frame, bones in the order of their child joints; (J, 1, 3), the joints,
        for a rig without bones.
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
