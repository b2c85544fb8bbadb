"""Volumetric joint coverage [R_vj]: how near the occupied cells are to their nearest joint."""

from typing import Any, Literal, get_args

import numpy as np
from numba import njit
from numpy.typing import ArrayLike

from rewards.occupancy import OccupancyGrid
from rewards.skeleton import check_joints

DistanceUnit = Literal["cells", "mesh"]


def joint_coverage(
    grid: OccupancyGrid, joints: ArrayLike, alpha: float = 0.05, distance_unit: DistanceUnit = "cells"
) -> float:
    """Mean over occupied cells of `exp(-alpha * distance from the cell's centre to the nearest joint)`.

    Exact: blocks of 8 x 8 x 8 cells first drop the joints that cannot be nearest to any of their cells.

    Args:
        grid: the mesh's occupancy.
        joints: (J, 3) float, mesh frame.
        alpha: decay per unit of distance, >= 0; the paper gives 0.05.
        distance_unit: `cells`: distances in cell edges; `mesh`: in the mesh's own unit.

    Returns:
        A float in [0, 1]: 1 if every cell's centre is a joint, falling as cells are farther from any joint.

    Raises:
        RigRewardError: no joints, a wrong shape, a coordinate that is not finite.
        ValueError: negative alpha or an unknown unit.

    Source: paper, "Volumetric Joint Coverage", R_vj.
    """
    decay = _decay_per_cell(grid, alpha, distance_unit)
    in_cells = (check_joints(joints) - grid.origin) / grid.cell
    return float(_coverage_sum(*grid.blocks, in_cells, decay) / grid.count)


def joint_coverage_reference(
    grid: OccupancyGrid, joints: ArrayLike, alpha: float = 0.05, distance_unit: DistanceUnit = "cells"
) -> float:
    """`joint_coverage` in plain NumPy: every joint against every cell."""
    decay = _decay_per_cell(grid, alpha, distance_unit)
    centres = grid.centres()
    nearest = np.full(len(centres), np.inf)
    for joint in check_joints(joints):
        nearest = np.minimum(nearest, np.linalg.norm(centres - joint, axis=1) / grid.cell)
    return float(np.exp(-decay * nearest).mean())


def _decay_per_cell(grid: OccupancyGrid, alpha: float, distance_unit: str) -> float:
    if distance_unit not in get_args(DistanceUnit):
        raise ValueError(f"distance_unit is {distance_unit!r}; choose cells or mesh")
    if not alpha >= 0:
        raise ValueError(f"alpha is {alpha}; it must not be negative")
    return float(alpha) if distance_unit == "cells" else float(alpha) * grid.cell


@njit(cache=True, fastmath={"contract"})
def _coverage_sum(blocks: Any, rows: Any, joints: Any, decay: float) -> float:
    """Sum over cells of exp(-decay * distance to the nearest joint). joints (J, 3) float64, in cells."""
    joint_count = joints.shape[0]
    farthest = np.empty(joint_count)
    nearest = np.empty(joint_count)
    candidates = np.empty(joint_count, np.int64)
    z_part = np.empty((joint_count, 8))
    squared = np.empty(8)
    total = 0.0
    for b in range(blocks.shape[0]):
        bound = np.inf
        for j in range(joint_count):
            near = far = 0.0
            for axis in range(3):
                # Cell centres of the block span [first + 0.5, first + 7.5].
                low = blocks[b, axis] + 0.5 - joints[j, axis]
                high = low + 7.0
                gap = max(low, -high, 0.0)
                span = max(high, -low)
                near += gap * gap
                far += span * span
            nearest[j] = near
            farthest[j] = far
            bound = min(bound, far)
        count = 0
        for j in range(joint_count):
            if nearest[j] <= bound:
                candidates[count] = j
                for k in range(8):
                    d = blocks[b, 2] + 0.5 + k - joints[j, 2]
                    z_part[count, k] = d * d
                count += 1
        for row in range(64):
            bits = rows[b, row]
            if bits == 0:
                continue
            x = blocks[b, 0] + (row >> 3) + 0.5
            y = blocks[b, 1] + (row & 7) + 0.5
            for k in range(8):
                squared[k] = np.inf
            for c in range(count):
                j = candidates[c]
                dx = x - joints[j, 0]
                dy = y - joints[j, 1]
                plane = dx * dx + dy * dy
                for k in range(8):
                    squared[k] = min(squared[k], plane + z_part[c, k])
            for k in range(8):
                if (bits >> k) & 1:
                    total += np.exp(-decay * np.sqrt(squared[k]))
    return total
