"""Occupancy grid: which voxels a mesh occupies, surface and interior, closed or open.

    h         = longest side of the bounding box / 196
    grid      = max(1, ceil(extent / h - 1e-9)) cells per axis, from the box's minimum
    surface   = cells whose closed cube touches a triangle
    interior  = cells between the first and last surface cell of their line on all three axes
    occupied  = surface or interior

Paper, "Volumetric Joint Coverage". `flood` and `surface` are other choices of interior.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.compiled import read_only
from data.welding import faces_with_area
from rewards.errors import MeshRewardError
from rewards.kernels import occupancy as kernels
from rewards.skeleton import COORDINATE_LIMIT

Interior = Literal["projection", "flood", "surface"]

# In cells. Shared by the grid's size, the closed-cube test and the grid's upper face, so that contacts (a
# vertex on a grid plane, a side of a whole number of cells) do not depend on how coordinates were rounded.
CONTACT_TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class OccupancyGrid:
    """Cells of a mesh's bounding box that hold surface or interior.

    Pickles bit-packed: an eighth of the boolean array, at most 0.94 MB at resolution 196.

    Attributes:
        occupied: (X, Y, Z) bool; cell (i, j, k) is the closed cube from origin + cell · (i, j, k).
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
            the grid's upper face it belongs to the last cell. Points outside the grid or not finite are in
            none.
        """
        offset = (np.asarray(points, dtype=np.float64) - self.origin) / self.cell
        size = np.array(self.occupied.shape)
        inside = np.all((offset >= 0) & (offset <= size + CONTACT_TOLERANCE), axis=-1)
        lower = np.minimum(np.floor(offset), size - 1)
        index = np.where(np.expand_dims(inside, -1), lower, 0).astype(np.int64)
        hit: NDArray[np.bool_] = inside & self.occupied[index[..., 0], index[..., 1], index[..., 2]]
        return hit

    def centres(self) -> NDArray[np.float64]:
        """Centres of the occupied cells, (N, 3) float64, mesh frame, in C order of the cells."""
        return self.origin + (np.argwhere(self.occupied) + 0.5) * self.cell

    @cached_property
    def count(self) -> int:
        """Number of occupied cells, at least 1 for a grid from `build_occupancy`."""
        return int(np.count_nonzero(self.occupied))

    @cached_property
    def blocks(self) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """Non-empty 8 x 8 x 8 blocks: (B, 3) first cells, (B, 64) rows along z, bit k for cell z0 + k."""
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
        # Past the frozen dataclass's __setattr__.
        self.__dict__.update(
            occupied=bits.view(np.bool_).reshape(shape), origin=state["origin"], cell=state["cell"]
        )


def build_occupancy(
    vertices: ArrayLike, faces: ArrayLike, resolution: int = 196, interior: Interior = "projection"
) -> OccupancyGrid:
    """Voxelise a triangle mesh: every cell whose closed cube touches a triangle, then the interior.

    Faces without area and vertices that no other face uses are ignored, for the bounding box too: a flipped,
    doubled or padded mesh or a triangle soup gives the same grid.

    Args:
        vertices: (V, 3) float, any frame.
        faces: (F, 3) int.
        resolution: cells along the longest side, >= 1.
        interior: `projection`: cells between the first and the last surface cell of their line, on all three
            axes; `flood`: cells that cannot be reached from outside the grid through faces; `surface`: none.

    Raises:
        MeshRewardError: wrong shapes, indices out of range, non-finite vertices, no triangle with area.
        ValueError: unknown `interior` or a `resolution` below 1.
    """
    check_occupancy_options(resolution, interior)
    place = place_grid(vertices, faces, resolution)
    occupied = np.zeros(place.shape, dtype=np.bool_)
    kernels.mark_surface(place.points, place.triangles, place.origin, place.cell, place.tolerance, occupied)
    if interior == "projection":
        occupied = kernels.fill_projection(occupied)
    elif interior == "flood":
        occupied = kernels.fill_flood(occupied)
    return OccupancyGrid(occupied, place.origin, place.cell)


@dataclass(frozen=True, eq=False)
class GridPlacement:
    """A validated mesh and the grid over its bounding box.

    Attributes:
        points: (V, 3) float64.
        triangles: (T, 3) int64, faces with area only.
        origin: (3,) float64, the bounding box's minimum.
        cell: edge length of a cell, in the mesh's unit.
        shape: cells per axis.
        tolerance: by how much a cube is grown on every side in the contact test, in cells.
    """

    points: NDArray[np.float64]
    triangles: NDArray[np.int64]
    origin: NDArray[np.float64]
    cell: float
    shape: tuple[int, int, int]
    tolerance: float


def place_grid(vertices: ArrayLike, faces: ArrayLike, resolution: int) -> GridPlacement:
    """Validate a mesh and lay the grid over its bounding box; errors as in `solid_faces`."""
    points, triangles, solid = solid_faces(vertices, faces)
    if not solid.all():
        triangles = read_only(triangles[solid])
    origin, top = kernels.bounding_box(points, triangles)
    extent = top - origin
    cell = float(extent.max() / resolution)
    # Coordinates far from 0 are rounded more coarsely than 1e-9 of a cell; the contact test allows for that.
    farthest = max(np.abs(origin).max(), np.abs(top).max())
    tolerance = max(CONTACT_TOLERANCE, 4 * np.finfo(np.float64).eps * float(farthest) / cell)
    sizes = np.maximum(1, np.ceil(extent / cell - tolerance)).astype(np.int64)
    shape = (int(sizes[0]), int(sizes[1]), int(sizes[2]))
    return GridPlacement(points, triangles, origin, cell, shape, tolerance)


def check_occupancy_options(resolution: int, interior: str) -> None:
    """Raise ValueError for options out of range."""
    if interior not in get_args(Interior):
        raise ValueError(f"interior is {interior!r}; choose one of {', '.join(get_args(Interior))}")
    if resolution < 1:
        raise ValueError(f"resolution is {resolution}; it must be at least 1")


def solid_faces(
    vertices: ArrayLike, faces: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
    """Validate a mesh and find its faces with area (`data.welding.faces_with_area`).

    Vertices that no face uses may hold anything.

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
            f"faces refer to vertices {triangles.min()} to {triangles.max()}, but the mesh has {len(points)} "
            "vertices; repair the mesh"
        )
    points = read_only(np.ascontiguousarray(points, dtype=np.float64))
    triangles = read_only(np.ascontiguousarray(triangles, dtype=np.int64))
    if not kernels.corners_within(points, triangles, COORDINATE_LIMIT):
        raise MeshRewardError("a vertex of a face is not finite or exceeds 1e30; repair the mesh")
    solid = faces_with_area(points, triangles)
    if not solid.any():
        raise MeshRewardError("the mesh has no triangle with area; pass a surface mesh")
    return points, triangles, solid
