"""Numba kernel over joints: counts duplicates."""

from typing import Any

from data.compiled import kernel

# Duplicates. All pairs, stopping at the first earlier joint that is near: a rig's tens of joints are too
# few for a search tree.


@kernel()
def duplicate_joints(joints: Any, distance: float) -> int:
    """Number of joints within `distance` of an earlier one; joints (J, 3) float64."""
    count = 0
    for i in range(joints.shape[0]):
        for j in range(i):
            dx, dy, dz = joints[i, 0] - joints[j, 0], joints[i, 1] - joints[j, 1], joints[i, 2] - joints[j, 2]
            if dx * dx + dy * dy + dz * dz <= distance * distance:
                count += 1
                break
    return count
