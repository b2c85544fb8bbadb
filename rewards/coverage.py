"""Volumetric joint coverage, R_vj: how near the occupied cells are to their nearest joint.

    R_vj = mean over occupied cells v of exp(-alpha · min over joints j of ‖v - j‖)

v is a cell's centre, distances are in cells, alpha = 0.05. Paper, "Volumetric Joint Coverage".
"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from rewards.kernels.coverage import coverage_sum
from rewards.occupancy import OccupancyGrid
from rewards.skeleton import check_joints

DistanceUnit = Literal["cells", "mesh"]


def joint_coverage(
    grid: OccupancyGrid, joints: ArrayLike, alpha: float = 0.05, distance_unit: DistanceUnit = "cells"
) -> float:
    """R_vj of a rig's joints.

    Args:
        grid: the mesh's occupancy.
        joints: (J, 3) float, mesh frame.
        alpha: decay per unit of distance, >= 0.
        distance_unit: `cells` for distances in cell edges, `mesh` for the mesh's own unit, in which the
            reward is close to 1 for any rig.

    Returns:
        A float in [0, 1]: 1 if there is a joint at the centre of every cell.

    Raises:
        RigRewardError: no joints, a wrong shape, a coordinate that is not finite.
        ValueError: negative alpha or an unknown unit.
    """
    decay = decay_per_cell(grid, alpha, distance_unit)
    # The bound keeps squares finite; the reward is 0 long before it.
    in_cells = np.clip((check_joints(joints) - grid.origin) / grid.cell, -1e100, 1e100)
    return float(coverage_sum(*grid.blocks, in_cells, decay) / grid.count)


def decay_per_cell(grid: OccupancyGrid, alpha: float, distance_unit: str) -> float:
    """alpha per cell edge of the grid; ValueError for options out of range."""
    if distance_unit not in get_args(DistanceUnit):
        raise ValueError(f"distance_unit is {distance_unit!r}; choose cells or mesh")
    if not alpha >= 0:
        raise ValueError(f"alpha is {alpha}; it must not be negative")
    return float(alpha) if distance_unit == "cells" else float(alpha) * grid.cell
