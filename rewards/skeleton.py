"""Validation of joints and parents, and the order in which a hierarchy is evaluated."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rewards.errors import RigRewardError

COORDINATE_LIMIT = 1e30  # keeps squares and products of coordinates finite


def check_joints(joints: ArrayLike) -> NDArray[np.float64]:
    """Joint positions as a contiguous, finite (J, 3) float64 array.

    Args:
        joints: (J, 3) float or int, J >= 1.

    Raises:
        RigRewardError: a wrong shape or dtype, a coordinate that is not finite or exceeds 1e30.
    """
    given = np.asarray(joints)
    if given.ndim != 2 or given.shape[1] != 3 or len(given) == 0 or given.dtype.kind not in "fiu":
        raise RigRewardError(
            f"joints have shape {given.shape} and dtype {given.dtype}; pass (J, 3) floats, J at least 1"
        )
    array = given.astype(np.float64)
    # `<=` is false for NaN too.
    inside = (np.abs(array) <= COORDINATE_LIMIT).all(axis=1)
    if not inside.all():
        bad = int(np.flatnonzero(~inside)[0])
        raise RigRewardError(
            f"joint {bad} has a coordinate that is not finite or exceeds 1e30; discard the rig"
        )
    return np.ascontiguousarray(array)


def check_parents(parents: ArrayLike, joint_count: int) -> NDArray[np.int64]:
    """Parent indices as a (J,) int64 array; `hierarchy_levels` then finds cycles.

    Args:
        parents: (J,) int, -1 for a root. Several roots and any order of joints are allowed.
        joint_count: J.

    Raises:
        RigRewardError: a wrong shape or dtype, an index out of range.
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
    """Joint indices by depth, roots first: a joint's parent is always in the level before its own.

    Args:
        parents: (J,) int64 from `check_parents`.

    Returns:
        One int64 array per depth; together they hold each joint once.

    Raises:
        RigRewardError: a joint never reaches a root: its parents form a cycle, or it is its own parent.
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
        raise RigRewardError(f"joint {bad} never reaches a root: its parents form a cycle; discard the rig")
    return levels
