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
    decay = decay_per_cell(grid, alpha, distance_unit)
    # The bound keeps squares finite; the reward is 0 long before it.
    in_cells = np.clip((check_joints(joints) - grid.origin) / grid.cell, -1e100, 1e100)
    return float(_coverage_sum(*grid.blocks, in_cells, decay) / grid.count)


def joint_coverage_reference(
    grid: OccupancyGrid, joints: ArrayLike, alpha: float = 0.05, distance_unit: DistanceUnit = "cells"
) -> float:
    """`joint_coverage` in plain NumPy: every joint against every cell."""
    decay = decay_per_cell(grid, alpha, distance_unit)
    centres = grid.centres()
    nearest = np.full(len(centres), np.inf)
    for joint in check_joints(joints):
        nearest = np.minimum(nearest, np.linalg.norm(centres - joint, axis=1) / grid.cell)
    return float(np.exp(-decay * nearest).mean())


def decay_per_cell(grid: OccupancyGrid, alpha: float, distance_unit: str) -> float:
    """The decay in units of the grid's cells; ValueError for options out of range."""
    if distance_unit not in get_args(DistanceUnit):
        raise ValueError(f"distance_unit is {distance_unit!r}; choose cells or mesh")
    if not alpha >= 0:
        raise ValueError(f"alpha is {alpha}; it must not be negative")
    return float(alpha) if distance_unit == "cells" else float(alpha) * grid.cell


@njit(cache=True, fastmath={"contract"})
def _coverage_sum(blocks: Any, rows: Any, joints: Any, decay: float) -> float:
    """Sum over cells of exp(-decay * distance to the nearest joint). joints (J, 3) float64, in cells."""
    joint_count = joints.shape[0]
    nearest = np.empty(joint_count)
    candidates = np.empty((joint_count, 3))
    # Cells of one block, packed so that the loops over them are vectorised (one write past the last).
    xs, ys, zs, squared = np.empty(513), np.empty(513), np.empty(513), np.empty(513)
    total = 0.0
    for b in range(blocks.shape[0]):
        # The first cell's centre; the block's centres span 7 cells from it.
        bx, by, bz = blocks[b, 0] + 0.5, blocks[b, 1] + 0.5, blocks[b, 2] + 0.5
        bound = np.inf
        for j in range(joint_count):
            x, y, z = bx - joints[j, 0], by - joints[j, 1], bz - joints[j, 2]
            gap_x, gap_y, gap_z = max(x, -x - 7.0), max(y, -y - 7.0), max(z, -z - 7.0)
            gap_x, gap_y, gap_z = max(gap_x, 0.0), max(gap_y, 0.0), max(gap_z, 0.0)
            far_x, far_y, far_z = max(-x, x + 7.0), max(-y, y + 7.0), max(-z, z + 7.0)
            nearest[j] = gap_x * gap_x + gap_y * gap_y + gap_z * gap_z
            bound = min(bound, far_x * far_x + far_y * far_y + far_z * far_z)
        kept = 0
        for j in range(joint_count):
            if nearest[j] <= bound:
                candidates[kept] = joints[j]
                kept += 1
        cells = 0
        for row in range(64):
            bits = rows[b, row]
            x, y = bx + (row >> 3), by + (row & 7)
            for k in range(8):
                xs[cells], ys[cells], zs[cells] = x, y, bz + k
                cells += (bits >> k) & 1
        squared[:cells] = np.inf
        for c in range(kept):
            x, y, z = candidates[c]
            for i in range(cells):
                dx, dy, dz = xs[i] - x, ys[i] - y, zs[i] - z
                d = dx * dx + dy * dy + dz * dz
                squared[i] = d if d < squared[i] else squared[i]
        for i in range(cells):
            squared[i] = exp_of_minus(decay * np.sqrt(squared[i]))
        total += _sum(squared, cells)
    return total


@njit(cache=True, inline="always")
def exp_of_minus(t: float) -> float:
    """exp(-t) for t >= 0 to 1e-15 relative, without the library call that keeps a loop from being vectorised.

    -t = n ln 2 + r with |r| <= ln(2) / 2; Taylor to r^12 / 12! (the next is below 2e-16); 2^n by its bits.
    Beyond t = 700 the value stays at 1e-304.
    """
    x = -t if t < 700.0 else -700.0
    # Adding 1.5 * 2^52 rounds to an integer and leaves it in the low bits of the sum.
    shifted = x * 1.4426950408889634 + 6755399441055744.0
    n = shifted - 6755399441055744.0
    r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10
    p = 1 / 479001600
    p = p * r + 1 / 39916800
    p = p * r + 1 / 3628800
    p = p * r + 1 / 362880
    p = p * r + 1 / 40320
    p = p * r + 1 / 5040
    p = p * r + 1 / 720
    p = p * r + 1 / 120
    p = p * r + 1 / 24
    p = p * r + 1 / 6
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    power = np.int64((np.float64(shifted).view(np.int64) + 1023) << 52)
    return p * power.view(np.float64)


@njit(cache=True, fastmath={"reassoc", "nsz"})
def _sum(values: Any, count: int) -> float:
    """Sum of the first `count` values in several lanes: only here may the order of additions change."""
    total = 0.0
    for i in range(count):
        total += values[i]
    return total
