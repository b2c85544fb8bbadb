"""Which cells of a voxel grid a mesh occupies: exact surface cells and the interior, also of open meshes."""

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from rewards.errors import MeshRewardError
from rewards.skeleton import COORDINATE_LIMIT

Interior = Literal["projection", "flood", "surface"]

# In cells. Shared by the grid's size, the closed-cube test and the grid's upper face, so that contacts (a
# vertex on a grid plane, a side of a whole number of cells) do not depend on how coordinates were rounded.
CONTACT_TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class OccupancyGrid:
    """Cells of a mesh's bounding box that hold surface or interior.

    Pickles bit-packed (an eighth of the boolean array, at most 0.94 MB at resolution 196), which is how a
    scoring service shares it.

    Attributes:
        occupied: (X, Y, Z) bool; cell (i, j, k) is the closed cube from origin + cell * (i, j, k) on.
        origin: (3,) float64, the bounding box's minimum, in the mesh's own frame and unit.
        cell: edge length of a cell, in the mesh's unit.
    """

    occupied: NDArray[np.bool_]
    origin: NDArray[np.float64]
    cell: float

    def contains(self, points: ArrayLike) -> NDArray[np.bool_]:
        """Whether each point lies in an occupied cell.

        Args:
            points: (..., 3) float, mesh frame.

        Returns:
            (...) bool. A point on a shared face belongs to the upper cell, `floor((p - origin) / cell)`; on
            the grid's upper face to the last cell; outside the grid, or not finite, it is in none.
        """
        offset = (np.asarray(points, dtype=np.float64) - self.origin) / self.cell
        size = np.array(self.occupied.shape)
        inside = np.all((offset >= 0) & (offset <= size + CONTACT_TOLERANCE), axis=-1)
        lower = np.minimum(np.floor(offset), size - 1)
        index = np.where(np.expand_dims(inside, -1), lower, 0).astype(np.int64)
        hit: NDArray[np.bool_] = inside & self.occupied[index[..., 0], index[..., 1], index[..., 2]]
        return hit

    def centres(self) -> NDArray[np.float64]:
        """Centres of the occupied cells, (N, 3) float64, mesh frame, C order of the cells."""
        return self.origin + (np.argwhere(self.occupied) + 0.5) * self.cell

    @cached_property
    def count(self) -> int:
        """Number of occupied cells, at least 1 for a grid that `build_occupancy` made."""
        return int(np.count_nonzero(self.occupied))

    @cached_property
    def blocks(self) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """Non-empty blocks of 8 x 8 x 8 cells: (B, 3) first cells, (B, 64) z rows, bit k for cell z0 + k."""
        size = np.array(self.occupied.shape)
        padded = np.zeros(-(-size // 8) * 8, dtype=np.bool_)
        padded[: size[0], : size[1], : size[2]] = self.occupied
        packed = np.packbits(padded, axis=2, bitorder="little")
        x, y, z = packed.shape
        tiles = packed.reshape(x // 8, 8, y // 8, 8, z).transpose(0, 2, 4, 1, 3).reshape(-1, 64)
        used = np.flatnonzero(tiles.any(axis=1))
        first = np.stack(np.unravel_index(used, (x // 8, y // 8, z)), axis=1) * 8
        return np.ascontiguousarray(first, dtype=np.int32), tiles[used]

    def __getstate__(self) -> dict[str, Any]:
        return {
            "bits": np.packbits(self.occupied),
            "shape": self.occupied.shape,
            "origin": self.origin,
            "cell": self.cell,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        shape = state["shape"]
        bits = np.unpackbits(state["bits"], count=int(np.prod(shape)))
        # The dataclass is frozen; unpickling builds it field by field.
        self.__dict__.update(
            occupied=bits.view(np.bool_).reshape(shape), origin=state["origin"], cell=state["cell"]
        )


def build_occupancy(
    vertices: ArrayLike, faces: ArrayLike, resolution: int = 196, interior: Interior = "projection"
) -> OccupancyGrid:
    """Voxelise a triangle mesh: every cell whose closed cube touches a triangle, then the interior.

    Cells have edge `longest side of the bounding box / resolution`, the grid starts at the box's minimum and
    has `max(1, ceil(extent / cell - 1e-9))` cells per axis. Zero-area triangles and unreferenced vertices are
    ignored, the bounding box's too, so soups, flipped and padded meshes give the same grid. Paper:
    "Volumetric Joint Coverage", grid of resolution 196.

    Args:
        vertices: (V, 3) float, any frame.
        faces: (F, 3) int.
        resolution: cells along the longest side, >= 1.
        interior: `projection`: also cells that lie, on each of the three axes, between the first and the last
            surface cell of their axis-aligned line; `flood`: also cells that cannot be reached from outside
            the grid through 6-neighbours; `surface`: none.

    Raises:
        MeshRewardError: wrong shapes, indices out of range, non-finite vertices, no triangle with area.
        ValueError: unknown `interior` or a `resolution` below 1.
    """
    _check_options(resolution, interior)
    place = _place_grid(vertices, faces, resolution)
    occupied = np.zeros(place.shape, dtype=np.bool_)
    _mark_surface(place.points, place.triangles, place.origin, place.cell, place.tolerance, occupied)
    if interior == "projection":
        occupied = _fill_projection(occupied)
    elif interior == "flood":
        occupied = _fill_flood(occupied)
    return OccupancyGrid(occupied, place.origin, place.cell)


def build_occupancy_reference(
    vertices: ArrayLike, faces: ArrayLike, resolution: int = 196, interior: Interior = "projection"
) -> OccupancyGrid:
    """`build_occupancy` in plain NumPy, one separating-axis test per candidate cell: slow, readable, same
    grid.
    """
    _check_options(resolution, interior)
    place = _place_grid(vertices, faces, resolution)
    occupied = np.zeros(place.shape, dtype=np.bool_)
    last = np.array(place.shape) - 1
    for triangle in (place.points[place.triangles] - place.origin) / place.cell:
        low = np.maximum(np.ceil(triangle.min(axis=0) - place.tolerance) - 1, 0).astype(np.int64)
        high = np.minimum(np.floor(triangle.max(axis=0) + place.tolerance), last).astype(np.int64)
        axes_cells = [np.arange(a, b + 1) for a, b in zip(low, high, strict=True)]
        cells = np.stack(np.meshgrid(*axes_cells, indexing="ij"), axis=-1).reshape(-1, 3)
        hit = cells[triangle_touches_cubes(triangle, cells, place.tolerance)]
        occupied[hit[:, 0], hit[:, 1], hit[:, 2]] = True
    if interior == "projection":
        occupied = fill_projection_reference(occupied)
    elif interior == "flood":
        occupied = fill_flood_reference(occupied)
    return OccupancyGrid(occupied, place.origin, place.cell)


def triangle_touches_cubes(
    triangle: NDArray[np.float64], cells: NDArray[np.int64], tolerance: float = CONTACT_TOLERANCE
) -> NDArray[np.bool_]:
    """Which closed unit cubes touch a triangle: separating-axis test over all 13 axes.

    Args:
        triangle: (3, 3) corners, in cells.
        cells: (N, 3) integer cells; a cube spans cell to cell + 1.
        tolerance: by how much the cube is grown on every side, in cells.

    Returns:
        (N,) bool.
    """
    edges = np.roll(triangle, -1, axis=0) - triangle
    units = np.eye(3)
    axes = [*units, np.cross(edges[0], edges[1]), *(np.cross(e, u) for e in edges for u in units)]
    touches = np.ones(len(cells), dtype=np.bool_)
    for axis in axes:
        reach = (0.5 + tolerance) * np.abs(axis).sum()
        corner = triangle @ axis
        centre = (cells + 0.5) @ axis
        touches &= (centre + reach >= corner.min()) & (centre - reach <= corner.max())
    return touches


def fill_projection_reference(surface: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Surface cells and all cells that lie between surface cells on each of the three axes. (X, Y, Z)
    bool.
    """
    between = np.ones_like(surface)
    for axis in range(3):
        after_first = np.logical_or.accumulate(surface, axis=axis)
        before_last = np.flip(np.logical_or.accumulate(np.flip(surface, axis), axis=axis), axis)
        between &= after_first & before_last
    return between | surface


def fill_flood_reference(surface: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """All cells that a walk over face neighbours cannot reach from outside the grid. (X, Y, Z) bool."""
    free = np.pad(~surface, 1, constant_values=True)
    outside = np.zeros_like(free)
    outside[0, 0, 0] = True
    reached = 0
    while np.count_nonzero(outside) > reached:
        reached = int(np.count_nonzero(outside))
        for axis, step in itertools.product(range(3), (1, -1)):
            # The padding is one connected shell of outside cells: what np.roll wraps around is outside too.
            outside |= np.roll(outside, step, axis) & free
    return ~outside[1:-1, 1:-1, 1:-1]


def solid_faces(
    vertices: ArrayLike, faces: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
    """A mesh's arrays, checked, and which of its faces have area.

    A face has none if its height over its longest side is within rounding of 0: 1e-12 of that side, or a few
    units in the last place of its coordinates. Vertices that no face uses may hold anything.

    Args:
        vertices: (V, 3) float.
        faces: (F, 3) int.

    Returns:
        vertices (V, 3) float64, faces (F, 3) int64, solid (F,) bool with at least one True.

    Raises:
        MeshRewardError: wrong shapes, indices out of range, a used vertex not finite, no face with area.
    """
    points = np.asarray(vertices)
    triangles = np.asarray(faces)
    if points.ndim != 2 or points.shape[1] != 3 or points.dtype.kind not in "fiu":
        raise MeshRewardError(
            f"vertices have shape {points.shape} and dtype {points.dtype}; pass (V, 3) floats"
        )
    if triangles.ndim != 2 or triangles.shape[1] != 3 or triangles.dtype.kind not in "iu":
        raise MeshRewardError(
            f"faces have shape {triangles.shape} and dtype {triangles.dtype}; pass (F, 3) integers"
        )
    if len(triangles) == 0:
        raise MeshRewardError("the mesh has no faces; pass a triangle mesh, not a point cloud")
    if triangles.min() < 0 or triangles.max() >= len(points):
        raise MeshRewardError(
            f"faces refer to vertices {triangles.min()} to {triangles.max()}, but there are {len(points)}; "
            "repair the mesh"
        )
    points = np.ascontiguousarray(points, dtype=np.float64)
    triangles = np.ascontiguousarray(triangles, dtype=np.int64)
    solid = np.empty(len(triangles), dtype=np.bool_)
    if not _judge_faces(points, triangles, solid):
        raise MeshRewardError("a vertex of a face is not finite or above 1e30; repair the mesh")
    if not solid.any():
        raise MeshRewardError("the mesh has no triangle with area; pass a surface mesh")
    return points, triangles, solid


def solid_faces_reference(points: NDArray[np.float64], triangles: NDArray[np.int64]) -> NDArray[np.bool_]:
    """The rule of `solid_faces` in plain NumPy, on valid arrays."""
    corners = points[triangles]
    sides = corners[:, [1, 2, 0]] - corners
    longest = np.linalg.norm(sides, axis=2).max(axis=1)
    area = np.linalg.norm(np.cross(sides[:, 0], -sides[:, 2]), axis=1)
    noise = 4 * np.finfo(np.float64).eps * np.abs(corners).max(axis=(1, 2))
    solid: NDArray[np.bool_] = area > longest * np.maximum(1e-12 * longest, noise)
    return solid


def _check_options(resolution: int, interior: str) -> None:
    if interior not in get_args(Interior):
        raise ValueError(f"interior is {interior!r}; choose one of {', '.join(get_args(Interior))}")
    if resolution < 1:
        raise ValueError(f"resolution is {resolution}; it must be at least 1")


@dataclass(frozen=True, eq=False)
class _Placement:
    """A mesh's checked arrays and where its grid lies; the tolerance is in cells."""

    points: NDArray[np.float64]
    triangles: NDArray[np.int64]
    origin: NDArray[np.float64]
    cell: float
    shape: tuple[int, int, int]
    tolerance: float


def _place_grid(vertices: ArrayLike, faces: ArrayLike, resolution: int) -> _Placement:
    points, triangles, solid = solid_faces(vertices, faces)
    if not solid.all():
        triangles = triangles[solid]
    origin, top = _bounds(points, triangles)
    extent = top - origin
    cell = float(extent.max() / resolution)
    # Coordinates far from 0 are rounded more coarsely than 1e-9 of a cell; the contact test allows for that.
    farthest = max(np.abs(origin).max(), np.abs(top).max())
    tolerance = max(CONTACT_TOLERANCE, 4 * np.finfo(np.float64).eps * float(farthest) / cell)
    sizes = np.maximum(1, np.ceil(extent / cell - tolerance)).astype(np.int64)
    shape = (int(sizes[0]), int(sizes[1]), int(sizes[2]))
    return _Placement(points, triangles, origin, cell, shape, tolerance)


@njit(cache=True)
def _judge_faces(points: Any, triangles: Any, solid: Any) -> bool:
    """Fill `solid` (F,) by the rule of `solid_faces`; False if a used vertex is not finite or too large."""
    noise_per_unit = 4 * np.finfo(np.float64).eps
    for f in range(triangles.shape[0]):
        a, b, c = triangles[f]
        farthest = longest = 0.0
        for axis in range(3):
            for v in (a, b, c):
                # `<=` is false for NaN.
                if not abs(points[v, axis]) <= COORDINATE_LIMIT:
                    return False
                farthest = max(farthest, abs(points[v, axis]))
        ux, uy, uz = points[b, 0] - points[a, 0], points[b, 1] - points[a, 1], points[b, 2] - points[a, 2]
        vx, vy, vz = points[c, 0] - points[a, 0], points[c, 1] - points[a, 1], points[c, 2] - points[a, 2]
        wx, wy, wz = vx - ux, vy - uy, vz - uz
        longest = np.sqrt(
            max(ux * ux + uy * uy + uz * uz, vx * vx + vy * vy + vz * vz, wx * wx + wy * wy + wz * wz)
        )
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        area = np.sqrt(nx * nx + ny * ny + nz * nz)
        solid[f] = area > longest * max(1e-12 * longest, noise_per_unit * farthest)
    return True


@njit(cache=True)
def _bounds(points: Any, triangles: Any) -> tuple[Any, Any]:
    """Bounding box of the vertices that the triangles use: low (3,), high (3,)."""
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    for f in range(triangles.shape[0]):
        for k in range(3):
            for axis in range(3):
                value = points[triangles[f, k], axis]
                low[axis] = min(low[axis], value)
                high[axis] = max(high[axis], value)
    return low, high


@njit(cache=True)
def _mark_surface(
    points: Any, triangles: Any, origin: Any, cell: float, tolerance: float, occupied: Any
) -> None:
    """Mark the cells that triangles touch in `occupied` (X, Y, Z) bool. points (V, 3), triangles (T, 3).

    The separating-axis test, solved instead of sampled: in a column (x, y, ·) every axis allows one interval
    of z, so the touched cells are one run, whose ends the 7 axes with a z part give. The other axes reject
    whole columns.
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


@njit(cache=True, inline="always")
def _cell_range(a: float, b: float, c: float, tolerance: float, size: int) -> tuple[int, int]:
    """First and last cell whose closed, grown interval touches [min(a, b, c), max(a, b, c)], inside the
    grid.
    """
    low = int(np.ceil(min(a, b, c) - tolerance)) - 1
    high = int(np.floor(max(a, b, c) + tolerance))
    return min(max(low, 0), size - 1), max(min(high, size - 1), 0)


@njit(cache=True, inline="always")
def _edge_slabs(p: Any, first: int, second: int, half: float, slabs: Any) -> None:
    """The three axes normal to the edges in the plane (first, second): the interval of a*i + b*j that
    touches.
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


@njit(cache=True, inline="always")
def _clip(slope: float, low: float, high: float, z_low: float, z_high: float) -> tuple[float, float]:
    """Cut [z_low, z_high] to the z with low <= slope * z <= high; an empty result has z_low > z_high."""
    if slope > 0.0:
        return max(z_low, low / slope), min(z_high, high / slope)
    if slope < 0.0:
        return max(z_low, high / slope), min(z_high, low / slope)
    if low > 0.0 or high < 0.0:
        return 1.0, 0.0
    return z_low, z_high


@njit(cache=True)
def _fill_projection(surface: Any) -> Any:
    """`fill_projection_reference` in two passes over the grid. (X, Y, Z) bool."""
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


@njit(cache=True)
def _fill_flood(surface: Any) -> Any:
    """`fill_flood_reference` by walking outward-reachable runs along z. (X, Y, Z) bool."""
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
