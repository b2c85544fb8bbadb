"""Joint hierarchies: validation and evaluation order, shared by containment, skinning and scoring."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rewards.errors import RigRewardError

COORDINATE_LIMIT = 1e30


def check_joints(joints: ArrayLike) -> NDArray[np.float64]:
    """Joint positions as a finite (J, 3) float64 array, J >= 1.

    Raises:
        RigRewardError: the shape is wrong or a coordinate is not finite.
    """
    given = np.asarray(joints)
    if given.ndim != 2 or given.shape[1] != 3 or len(given) == 0 or given.dtype.kind not in "fiu":
        raise RigRewardError(
            f"joints have shape {given.shape} and dtype {given.dtype}; pass (J, 3) floats, J at least 1"
        )
    array = given.astype(np.float64)
    # `<=` is false for NaN too. The limit keeps squares and products finite.
    inside = (np.abs(array) <= COORDINATE_LIMIT).all(axis=1)
    if not inside.all():
        bad = int(np.flatnonzero(~inside)[0])
        raise RigRewardError(f"joint {bad} has a coordinate that is not finite or above 1e30; drop the rig")
    return np.ascontiguousarray(array)


def check_parents(parents: ArrayLike, joint_count: int) -> NDArray[np.int64]:
    """Parent indices as (J,) int64, -1 for a root. Several roots are allowed, any order of joints too.

    Raises:
        RigRewardError: the shape is wrong, an index is out of range, or there is no root.
    """
    array = np.asarray(parents)
    if array.shape != (joint_count,):
        raise RigRewardError(f"parents have shape {array.shape}; {joint_count} joints need ({joint_count},)")
    if array.dtype.kind not in "iu":
        raise RigRewardError(f"parents have dtype {array.dtype}; pass integers, -1 for a root")
    array = array.astype(np.int64)
    if array.min() < -1 or array.max() >= joint_count:
        bad = int(np.flatnonzero((array < -1) | (array >= joint_count))[0])
        raise RigRewardError(
            f"joint {bad} has parent {array[bad]}; {joint_count} joints allow -1 to {joint_count - 1}"
        )
    return array


def hierarchy_levels(parents: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Joint indices grouped by depth, roots first: every joint's parent is in the level before its own.

    Args:
        parents: (J,) int64 from `check_parents`.

    Raises:
        RigRewardError: some joints never reach a root (a cycle, or a joint that is its own parent).
    """
    levels = [np.flatnonzero(parents == -1)]
    depth = np.full(len(parents), -1, dtype=np.int64)
    depth[levels[0]] = 0
    while len(levels[-1]):
        reached = parents >= 0
        below = reached & (depth < 0)
        below[reached] &= depth[parents[reached]] == len(levels) - 1
        levels.append(np.flatnonzero(below))
        depth[levels[-1]] = len(levels) - 1
    levels.pop()
    if (depth < 0).any():
        bad = int(np.flatnonzero(depth < 0)[0])
        raise RigRewardError(f"joint {bad} never reaches a root: its parents form a cycle; drop the rig")
    return levels
