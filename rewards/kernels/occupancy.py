"""Numba kernels of the occupancy grid: surface cells, interior fills, coordinate checks."""

from typing import Any

import numpy as np

from data.compiled import kernel

# Surface cells: the separating-axis test, solved per column of cells instead of evaluated per cell. An axis n
# (of 13) does not separate the triangle from the cube with lower corner (x, y, z) if
#
#     low <= n_x·x + n_y·y + n_z·z <= high
#
# with bounds that depend on the triangle alone. In a column (x, y, ·) each axis with an n_z therefore allows
# one interval of z, and the touched cells are the run that all intervals share:
#
#     z                          0    1    2    3    4    5    6    7
#     triangle's z range              [========================]
#     its plane                            [==============]
#     edges × x, edges × y                      [==============]
#     touched cells                             #    #    #
#
# An axis costs two divisions per column, however long the column. Axes without an n_z (edges × z) accept or
# reject whole columns; those without an n_y (edges × y) are solved once per x.


@kernel()
def mark_surface(
    points: Any, triangles: Any, origin: Any, cell: float, tolerance: float, occupied: Any
) -> None:
    """Set the cells of `occupied` (X, Y, Z) bool whose closed cube touches a triangle.

    points (V, 3) float64, triangles (T, 3) int64, origin (3,) float64; the cubes grow by `tolerance` cells.
    """
    size_x, size_y, size_z = occupied.shape
    half = 0.5 + tolerance
    # Rows: axis components a (along x or y), b (along y or z) and the interval of a*i + b*j that touches.
    slab_xy = np.empty((3, 4))
    slab_xz = np.empty((3, 4))
    slab_yz = np.empty((3, 4))
    p = np.empty((3, 3))
    per_unit = 1.0 / cell
    for t in range(triangles.shape[0]):
        for k in range(3):
            for axis in range(3):
                p[k, axis] = (points[triangles[t, k], axis] - origin[axis]) * per_unit
        low_x, high_x = _cell_range(p[0, 0], p[1, 0], p[2, 0], tolerance, size_x)
        low_y, high_y = _cell_range(p[0, 1], p[1, 1], p[2, 1], tolerance, size_y)
        low_z, high_z = _cell_range(p[0, 2], p[1, 2], p[2, 2], tolerance, size_z)
        single = (low_x == high_x) + (low_y == high_y) + (low_z == high_z)
        if single >= 2:
            # A row of cells that encloses the triangle: it is connected, so it touches every one of them.
            for x in range(low_x, high_x + 1):
                for y in range(low_y, high_y + 1):
                    for z in range(low_z, high_z + 1):
                        occupied[x, y, z] = True
            continue
        _edge_slabs(p, 0, 1, half, slab_xy)
        _edge_slabs(p, 0, 2, half, slab_xz)
        _edge_slabs(p, 1, 2, half, slab_yz)
        ux, uy, uz = p[1, 0] - p[0, 0], p[1, 1] - p[0, 1], p[1, 2] - p[0, 2]
        vx, vy, vz = p[2, 0] - p[0, 0], p[2, 1] - p[0, 1], p[2, 2] - p[0, 2]
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        d0 = nx * p[0, 0] + ny * p[0, 1] + nz * p[0, 2]
        d1 = nx * p[1, 0] + ny * p[1, 1] + nz * p[1, 2]
        d2 = nx * p[2, 0] + ny * p[2, 1] + nz * p[2, 2]
        reach = half * (abs(nx) + abs(ny) + abs(nz))
        middle = 0.5 * (nx + ny + nz)
        plane_low = min(d0, d1, d2) - reach - middle
        plane_high = max(d0, d1, d2) + reach - middle
        for x in range(low_x, high_x + 1):
            row_low, row_high = float(low_z), float(high_z)
            for k in range(3):
                row_low, row_high = _clip(
                    slab_xz[k, 1],
                    slab_xz[k, 2] - slab_xz[k, 0] * x,
                    slab_xz[k, 3] - slab_xz[k, 0] * x,
                    row_low,
                    row_high,
                )
            if row_low > row_high:
                continue
            for y in range(low_y, high_y + 1):
                separated = False
                for k in range(3):
                    s = slab_xy[k, 0] * x + slab_xy[k, 1] * y
                    separated |= (s < slab_xy[k, 2]) | (s > slab_xy[k, 3])
                if separated:
                    continue
                s = nx * x + ny * y
                z_low, z_high = _clip(nz, plane_low - s, plane_high - s, row_low, row_high)
                for k in range(3):
                    z_low, z_high = _clip(
                        slab_yz[k, 1],
                        slab_yz[k, 2] - slab_yz[k, 0] * y,
                        slab_yz[k, 3] - slab_yz[k, 0] * y,
                        z_low,
                        z_high,
                    )
                if z_low <= z_high:
                    for z in range(int(np.ceil(z_low)), int(np.floor(z_high)) + 1):
                        occupied[x, y, z] = True


@kernel(inline="always")
def _cell_range(a: float, b: float, c: float, tolerance: float, size: int) -> tuple[int, int]:
    """First and last cell, within the grid, whose grown interval touches [min(a, b, c), max(a, b, c)]."""
    low = int(np.ceil(min(a, b, c) - tolerance)) - 1
    high = int(np.floor(max(a, b, c) + tolerance))
    return min(max(low, 0), size - 1), max(min(high, size - 1), 0)


@kernel(inline="always")
def _edge_slabs(p: Any, first: int, second: int, half: float, slabs: Any) -> None:
    """The three axes (a, b) normal to the edges in the plane (first, second): rows a, b, low, high such that
    the triangle touches cell (i, j) if low <= a·i + b·j <= high.
    """
    for k in range(3):
        n = k + 1 if k < 2 else 0
        a = p[k, second] - p[n, second]
        b = p[n, first] - p[k, first]
        low = high = a * p[0, first] + b * p[0, second]
        for m in range(1, 3):
            d = a * p[m, first] + b * p[m, second]
            low, high = min(low, d), max(high, d)
        reach = half * (abs(a) + abs(b))
        middle = 0.5 * (a + b)
        slabs[k, 0] = a
        slabs[k, 1] = b
        slabs[k, 2] = low - reach - middle
        slabs[k, 3] = high + reach - middle


@kernel(inline="always")
def _clip(slope: float, low: float, high: float, z_low: float, z_high: float) -> tuple[float, float]:
    """The part of [z_low, z_high] where low <= slope·z <= high; if it is empty, z_low > z_high."""
    if slope > 0.0:
        return max(z_low, low / slope), min(z_high, high / slope)
    if slope < 0.0:
        return max(z_low, high / slope), min(z_high, low / slope)
    if low > 0.0 or high < 0.0:
        return 1.0, 0.0
    return z_low, z_high


# Interior by projection. A cell is inside if on all three axes it lies between the first and the last
# surface cell of its line. One pass over the grid records both for every line, in six 2D arrays; a second
# compares each cell with them. Accumulating in NumPy takes twelve passes.


@kernel()
def fill_projection(surface: Any) -> Any:
    """Surface and interior cells, (X, Y, Z) bool; as `fill_projection_reference`."""
    size_x, size_y, size_z = surface.shape
    first_x = np.full((size_y, size_z), size_x, np.int32)
    last_x = np.full((size_y, size_z), -1, np.int32)
    first_y = np.full((size_x, size_z), size_y, np.int32)
    last_y = np.full((size_x, size_z), -1, np.int32)
    first_z = np.full((size_x, size_y), size_z, np.int32)
    last_z = np.full((size_x, size_y), -1, np.int32)
    for x in range(size_x):
        for y in range(size_y):
            for z in range(size_z):
                if surface[x, y, z]:
                    first_x[y, z] = min(first_x[y, z], x)
                    last_x[y, z] = x
                    first_y[x, z] = min(first_y[x, z], y)
                    last_y[x, z] = y
                    first_z[x, y] = min(first_z[x, y], z)
                    last_z[x, y] = z
    filled = np.zeros(surface.shape, np.bool_)
    for x in range(size_x):
        for y in range(size_y):
            # Surface cells satisfy all three conditions themselves.
            for z in range(first_z[x, y], last_z[x, y] + 1):
                filled[x, y, z] = (
                    (first_x[y, z] <= x) & (x <= last_x[y, z]) & (first_y[x, z] <= y) & (y <= last_y[x, z])
                )
    return filled


# Interior by flood fill. What a walk from outside cannot reach is inside. The walk moves by whole free runs
# along z, not by cells, so that the stack holds one entry per run:
#
#     line (x, y)        #----------#....#    a run popped from the stack, grown in both directions
#     line (x, y + 1)    ....##...#.......    pushes one seed for each free run beside it: three here


@kernel()
def fill_flood(surface: Any) -> Any:
    """All cells that cannot be reached from outside, (X, Y, Z) bool; as `fill_flood_reference`."""
    size_x, size_y, size_z = surface.shape
    # One layer of free cells around the grid makes "outside" one connected region.
    state = np.zeros((size_x + 2, size_y + 2, size_z + 2), np.uint8)
    for x in range(size_x):
        for y in range(size_y):
            for z in range(size_z):
                if surface[x, y, z]:
                    state[x + 1, y + 1, z + 1] = 1
    stack = [(0, 0, 0)]
    state[0, 0, 0] = 2
    while len(stack):
        x, y, z = stack.pop()
        low = z
        while low > 0 and state[x, y, low - 1] == 0:
            low -= 1
            state[x, y, low] = 2
        high = z
        while high < size_z + 1 and state[x, y, high + 1] == 0:
            high += 1
            state[x, y, high] = 2
        for dx, dy in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            nx, ny = x + dx, y + dy
            if nx < 0 or ny < 0 or nx > size_x + 1 or ny > size_y + 1:
                continue
            # One seed per free run of the neighbouring line is enough: the run is walked when it is popped.
            for k in range(low, high + 1):
                if state[nx, ny, k] == 0 and (k == high or state[nx, ny, k + 1] != 0):
                    state[nx, ny, k] = 2
                    stack.append((nx, ny, k))
    filled = np.empty(surface.shape, np.bool_)
    for x in range(size_x):
        for y in range(size_y):
            for z in range(size_z):
                filled[x, y, z] = state[x + 1, y + 1, z + 1] != 2
    return filled


# Faces with area. One pass checks each face's corners and compares twice its area with its longest side,
# without an (F, 3, 3) temporary: for 300,000 faces that would be 22 MB, three times the grid.


@kernel()
def corners_within(points: Any, triangles: Any, limit: float) -> bool:
    """Whether the coordinates of all vertices that the triangles use are within ±limit; False for NaN."""
    for f in range(triangles.shape[0]):
        for v in triangles[f]:
            for axis in range(3):
                # `<=` is false for NaN.
                if not abs(points[v, axis]) <= limit:
                    return False
    return True


@kernel()
def bounding_box(points: Any, triangles: Any) -> tuple[Any, Any]:
    """Low (3,) and high (3,) corner of the vertices that the triangles use, without a copy of them."""
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    for f in range(triangles.shape[0]):
        for k in range(3):
            for axis in range(3):
                value = points[triangles[f, k], axis]
                low[axis] = min(low[axis], value)
                high[axis] = max(high[axis], value)
    return low, high
