"""Numba kernels of weight locality: which bone each place of a mesh belongs to, and weight that leaks."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.compiled import kernel

_SOLID, _FREE = -2, -1  # labels of cells that are not occupied, and occupied cells that no bone has reached

# Owners. Waves start from the cells that the bones cross and walk through faces of occupied cells, all at the
# same speed; a cell belongs to the bone whose wave arrives first. One layer of empty cells around the grid
# saves the bounds checks, so that a step is an offset of the flat index:
#
#     . . . . . . . .      . empty   # occupied   A, B the bones' cells
#     . A a a . b B .      a, b: reached from them; the waves cannot cross the gap between
#     . a a a . b b .      an arm and the leg beside it
#     . a a a b b b .
#     . . . . . . . .


@kernel()
def owning_bones(occupied: Any, starts: Any, ends: Any, bones: Any, points: Any) -> NDArray[np.int64]:
    """The bone that each point belongs to, (S,) int64.

    Points in cells that no wave reaches belong to the bone that is nearest in a straight line.

    occupied (X, Y, Z) bool; starts, ends (B, 3) float64, the segments in units of cells from the grid's
    origin; bones (B,) int64, the bone of each; points (S, 3) float64, in cells.
    """
    size_y, size_z = occupied.shape[1] + 2, occupied.shape[2] + 2
    stride_x, stride_y = size_y * size_z, size_z
    label = np.full((occupied.shape[0] + 2) * stride_x, _SOLID, np.int64)
    count = 0
    for x in range(occupied.shape[0]):
        for y in range(occupied.shape[1]):
            for z in range(occupied.shape[2]):
                if occupied[x, y, z]:
                    label[(x + 1) * stride_x + (y + 1) * stride_y + z + 1] = _FREE
                    count += 1
    queue = np.empty(count, np.int64)
    last = 0
    for b in range(starts.shape[0]):
        first, stop = _within(starts[b], ends[b], occupied.shape)
        if first > stop:
            continue
        length = 0.0
        for axis in range(3):
            length += ((stop - first) * (ends[b, axis] - starts[b, axis])) ** 2
        steps = int(2.0 * np.sqrt(length)) + 1
        for i in range(steps + 1):
            t = first + (stop - first) * i / steps
            cell = _cell(starts[b], ends[b], t, occupied.shape, stride_x, stride_y)
            if label[cell] == _FREE:
                label[cell] = bones[b]
                queue[last] = cell
                last += 1
    done = 0
    while done < last:
        cell = queue[done]
        done += 1
        for step in (-stride_x, stride_x, -stride_y, stride_y, -1, 1):
            if label[cell + step] == _FREE:
                label[cell + step] = label[cell]
                queue[last] = cell + step
                last += 1
    owners = np.empty(points.shape[0], np.int64)
    for v in range(points.shape[0]):
        owner = label[_cell(points[v], points[v], 0.0, occupied.shape, stride_x, stride_y)]
        owners[v] = owner if owner >= 0 else bones[_nearest(points[v], starts, ends)]
    return owners


@kernel(inline="always")
def _within(start: Any, end: Any, shape: Any) -> tuple[float, float]:
    """The part [t0, t1] of a segment that lies in the grid's box; t0 > t1 if none does."""
    low, high = 0.0, 1.0
    for axis in range(3):
        step = end[axis] - start[axis]
        if step == 0.0:
            if start[axis] < 0.0 or start[axis] > shape[axis]:
                return 1.0, 0.0
        else:
            a, b = -start[axis] / step, (shape[axis] - start[axis]) / step
            low, high = max(low, min(a, b)), min(high, max(a, b))
    return low, high


@kernel(inline="always")
def _cell(start: Any, end: Any, t: float, shape: Any, stride_x: int, stride_y: int) -> int:
    """Index, in the padded grid, of the cell at start + t · (end - start), moved into the grid."""
    index = 0
    for axis in range(3):
        place = int(np.floor(min(max(start[axis] + t * (end[axis] - start[axis]), 0.0), shape[axis] - 1.0)))
        index += (place + 1) * (stride_x if axis == 0 else stride_y if axis == 1 else 1)
    return index


@kernel(inline="always")
def _nearest(point: Any, starts: Any, ends: Any) -> int:
    """Index of the segment nearest to a point; the first of equally near ones, so a joint before a segment
    that ends at it."""
    best, nearest = np.inf, 0
    for b in range(starts.shape[0]):
        along = length = 0.0
        for axis in range(3):
            step = ends[b, axis] - starts[b, axis]
            along += step * (point[axis] - starts[b, axis])
            length += step * step
        t = min(max(along / length, 0.0), 1.0) if length > 0.0 else 0.0
        distance = 0.0
        for axis in range(3):
            step = ends[b, axis] - starts[b, axis]
            closest = ends[b, axis] if t == 1.0 else starts[b, axis] + t * step  # the end exactly
            distance += (point[axis] - closest) ** 2
        if distance < best:
            best, nearest = distance, b
    return nearest


# Leaks in one pass over the weights, row by row.


@kernel()
def leaked_shares(weights: Any, owners: Any, connected: Any) -> float:
    """Sum over vertices of the share of weight on bones that are not connected with the vertex's owner.

    weights (S, J) float32 or float64, owners (S,) int64, connected (J, J) bool. A vertex without weight
    counts as 0.
    """
    leaked = 0.0
    for v in range(weights.shape[0]):
        total = away = 0.0
        near = connected[owners[v]]
        for j in range(weights.shape[1]):
            w = np.float64(weights[v, j])
            total += w
            away += 0.0 if near[j] else w
        if total > 0.0:
            leaked += away / total
    return leaked
