"""Numba kernels of joint coverage: nearest joint per cell by blocks, and an exponential that vectorises."""

from typing import Any

import numpy as np

from data.compiled import kernel

# Nearest joint, by blocks of 8 x 8 x 8 cells. Most joints are too far from a block to be nearest to any of
# its cells, and two distances per joint and block prove it:
#
#                    block
#                  ┌───────┐
#     a ·──────────┼───────┤ far(a): no cell of the block is farther from a
#                  │       ├──────────────────────· b      near(b): no cell is nearer to b
#                  └───────┘
#
#     near(b) > min over joints of far  =>  b is dropped for the whole block
#
# The result is exact, since only joints that cannot win are dropped. Each that remains is compared with the
# block's occupied cells, packed into three arrays, in a loop without branches that LLVM vectorises.


@kernel(fastmath={"contract"})
def coverage_sum(blocks: Any, rows: Any, joints: Any, decay: float) -> float:
    """Sum over cells of exp(-decay · distance to the nearest joint).

    blocks (B, 3) int32 and rows (B, 64) uint8 from `OccupancyGrid.blocks`; joints (J, 3) float64, in cells.
    """
    joint_count = joints.shape[0]
    nearest = np.empty(joint_count)
    candidates = np.empty((joint_count, 3))
    # The cells of one block. Packing writes one past the last, hence 513.
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
        total += _lane_sum(squared, cells)
    return total


# Exponential. libm's exp is a call, and a loop with a call in it is not vectorised. Instead:
#
#     exp(x) = 2^n · exp(r)      with x = n·ln 2 + r, |r| <= ln(2) / 2
#
#     n        x / ln 2 + 1.5·2^52 is rounded to an integer, which its lowest bits then hold
#     exp(r)   Taylor series to r^12 / 12!; the next term is below 2e-16
#     2^n      an integer written into a float64's exponent:
#
#              sign |  exponent (11)  |  mantissa (52)
#                0  |    n + 1023     |    0 … 0          (n + 1023) << 52


@kernel(inline="always")
def exp_of_minus(t: float) -> float:
    """exp(-t) for t >= 0, to 2e-15 relative. Beyond t = 700 the value stays at 1e-304."""
    x = -t if t < 700.0 else -700.0
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


@kernel(fastmath={"reassoc", "nsz"})
def _lane_sum(values: Any, count: int) -> float:
    """Sum of the first `count` values, in several lanes: only here may the order of additions change."""
    total = 0.0
    for i in range(count):
        total += values[i]
    return total
