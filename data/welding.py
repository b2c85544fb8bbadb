"""Welds vertices at one position into places, with the vertex normals of the welded surface."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.compiled import kernel, read_only
from data.mesh import MeshError

# Every scoring worker imports this module: keep SciPy and the file readers out of it.

# Vertices closer than this share of the box's longest side are at one position. Exporters write the copies of
# a seam vertex with differences of a few units in the last place (in 17 of 142 artists' files). At 25 times
# this, only 5 of those files weld further vertices.
COINCIDENT = 2e-6

# Packs the three cell indices of `weld`'s grid into one sortable key.
_KEY_STEPS = np.array([1 << 42, 1 << 21, 1], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class WeldedSurface:
    """The faces with area of a mesh, welded, and its places: the distinct positions of their corners.

    Attributes:
        points: (S, 3) float32, the places, in the order of `source`; frame of the mesh.
        normals: (S, 3) float32 unit vertex normals of the welded surface.
        faces: (T, 3) int64 indices into `points`, in the mesh's order.
        source: (S,) int64, ascending: the first vertex at each place that a face with area uses.
    """

    points: NDArray[np.float32]
    normals: NDArray[np.float32]
    faces: NDArray[np.int64]
    source: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Places:
    """The places of all vertices of a mesh: skinning weights are decoded once per place.

    Attributes:
        points: (P, 3) float32; first those of the `WeldedSurface`, in its order, then those of vertices that
            no face with area uses; frame of the mesh.
        normals: (P, 3) float32 unit normals: those of the welded surface, and away from it those of the
            nearest place on it.
        of_vertex: (V,) int64: vertex v is at points[of_vertex[v]].
    """

    points: NDArray[np.float32]
    normals: NDArray[np.float32]
    of_vertex: NDArray[np.int64]


def weld(points: NDArray[np.float32], distance: float = 0.0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Group the vertices at one position, each group around its first vertex.

    Vertices are taken in order: each joins the first leader within `distance`, or becomes a leader itself. So
    leaders are further apart than `distance`, and vertices with equal coordinates always share a group.

    Args:
        points: (V, 3) float32, finite.
        distance: Euclidean, in the unit of `points`; 0 groups equal coordinates (0 equals -0). See
            `coincident_distance`.

    Returns:
        first (P,) int64: the leaders, ascending; place (V,) int64: each vertex's group, so that
        points[first[place]] is within `distance` of points.
    """
    if not len(points):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    # Cells of a grid much wider than `distance`: a leader within it is in the vertex's cell or, near a side
    # of the cell, beyond that side. 20 bits an axis make one sortable key of a cell.
    low = points.min(axis=0).astype(np.float64)
    span = float((points.max(axis=0) - low).max())
    cell = max(16 * distance, span / 2**20, np.finfo(np.float64).tiny)
    scaled = (points - low) / cell
    cells = scaled.astype(np.int64) + 1
    keys, cell_of = np.unique(cells @ _KEY_STEPS, return_inverse=True)
    inside, margin = scaled - (cells - 1), 1.001 * distance / cell + 1e-9
    beyond = (inside >= 1 - margin).astype(np.int64) - (inside <= margin)
    place, leaders = _group(points, distance * distance, keys, cell_of, cells, beyond)
    return leaders, place


def coincident_distance(points: NDArray[np.floating]) -> float:
    """The distance below which vertices (V, 3) count as one position, in their unit; see `COINCIDENT`."""
    return COINCIDENT * float(np.ptp(points, axis=0).max()) if len(points) else 0.0


def weld_surface(vertices: ArrayLike, faces: ArrayLike) -> WeldedSurface:
    """Weld the surface of a mesh: files split vertices at texture and normal seams, or at every face.

    Faces without area (`faces_with_area`) and vertices that no other face uses are ignored; those vertices
    may hold anything. Vertices are welded if they are closer than `COINCIDENT` allows; faces that collapse in
    this are dropped.

    Args:
        vertices: (V, 3) float, any frame.
        faces: (F, 3) int, indices in range.

    Raises:
        MeshError: no face has area, or none keeps its corners apart.
    """
    whole = np.ascontiguousarray(vertices, dtype=np.float64)
    triangles = np.ascontiguousarray(faces, dtype=np.int64)
    solid = faces_with_area(whole, triangles)
    if not solid.all():
        triangles = triangles[solid]
    if not len(triangles):
        raise MeshError("the mesh has no triangle with area; pass a surface mesh")
    in_use = np.zeros(len(whole), dtype=np.bool_)
    in_use[triangles] = True
    used = np.flatnonzero(in_use)
    corners = whole[used].astype(np.float32)
    first, place = weld(corners, coincident_distance(corners))
    source = used[first]
    points = whole[source].astype(np.float32)
    welded = place[(np.cumsum(in_use) - 1)[triangles]]
    a, b, c = welded.T
    whole_faces = (a != b) & (b != c) & (c != a)
    if not whole_faces.any():
        raise MeshError(
            f"every triangle of the mesh has a side shorter than {COINCIDENT:g} of its longest side; remove "
            "parts that are far away"
        )
    if not whole_faces.all():
        welded = welded[whole_faces]
        kept, compact = np.unique(welded, return_inverse=True)
        points, source, welded = points[kept], source[kept], compact.reshape(-1, 3)
    return WeldedSurface(points, vertex_normals(points, welded), welded, source)


def mesh_places(vertices: ArrayLike, faces: ArrayLike) -> Places:
    """The places of all vertices of a mesh, also of those that no face with area uses.

    Such a vertex belongs to the surface's place at its coordinates if there is one. Otherwise, as a corner of
    a sliver or as a loose point, it has no normal of its own and gets that of the nearest place.

    Args:
        vertices: (V, 3) float, finite, any frame.
        faces: (F, 3) int, indices in range.

    Raises:
        MeshError: no face has area, or none keeps its corners apart.
    """
    surface = weld_surface(vertices, faces)
    points = np.ascontiguousarray(vertices, dtype=np.float32)
    # Surface points go first, so that their places get the lowest numbers, in the surface's order.
    distance = coincident_distance(surface.points)
    first, place = weld(np.concatenate([surface.points, points]), distance)
    on_surface = len(surface.points)
    away = points[first[on_surface:] - on_surface]
    if not len(away):
        return Places(surface.points, surface.normals, place[on_surface:])
    from scipy.spatial import cKDTree  # not in scoring workers, which never come here

    _, nearest = cKDTree(surface.points).query(away)
    return Places(
        np.concatenate([surface.points, away]),
        np.concatenate([surface.normals, surface.normals[nearest]]),
        place[on_surface:],
    )


def faces_with_area(points: NDArray[np.float64], faces: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which faces have area, (F,) bool.

    A face has none if its height over its longest side is rounding error: below 1e-12 of that side, or below
    a few units in the last place of its coordinates.

    Args:
        points: (V, 3) float64, finite where a face uses them.
        faces: (F, 3) int64.
    """
    solid: NDArray[np.bool_] = _faces_with_area(read_only(points), read_only(faces))
    return solid


def vertex_normals(vertices: NDArray[np.floating], faces: NDArray[np.integer]) -> NDArray[np.float32]:
    """Unit vertex normals: the area-weighted mean of the normals of the faces around each vertex.

    A decoder is queried with them, so every vertex gets one: where the faces cancel (double-sided sheets)
    that of its first face with area, and (0, 0, 1) where there is no such face. Vertices are taken as they
    are; for normals that agree across seams pass a welded mesh.

    Args:
        vertices: (V, 3) float.
        faces: (F, 3) int.

    Returns:
        (V, 3) float32.
    """
    normals: NDArray[np.float32] = _vertex_normals(
        read_only(np.ascontiguousarray(vertices)), read_only(np.ascontiguousarray(faces, dtype=np.int64))
    )
    return normals


@kernel()
def _group(points: Any, squared: Any, keys: Any, cell_of: Any, cells: Any, beyond: Any) -> Any:
    newest = np.full(len(keys), -1, np.int64)  # the last leader of each cell, and below the one before it
    before = np.full(len(points), -1, np.int64)
    place = np.empty(len(points), np.int64)
    leaders = np.empty(len(points), np.int64)
    count = 0
    for v in range(len(points)):
        best = -1
        for corner in range(8):
            key, far = 0, False
            for axis in range(3):
                other = corner >> axis & 1
                far = far or (other == 1 and beyond[v, axis] == 0)
                key += (cells[v, axis] + other * beyond[v, axis]) << (42 - 21 * axis)
            if far:
                continue
            found = np.searchsorted(keys, key) if corner else cell_of[v]
            if found == len(keys) or keys[found] != key:
                continue
            group = newest[found]
            while group >= 0:
                gap = 0.0
                for axis in range(3):
                    gap += (np.float64(points[v, axis]) - np.float64(points[leaders[group], axis])) ** 2
                if gap <= squared and (best < 0 or group < best):
                    best = group
                group = before[group]
        if best < 0:
            best = count
            leaders[count] = v
            before[count] = newest[cell_of[v]]
            newest[cell_of[v]] = count
            count += 1
        place[v] = best
    return place, leaders[:count].copy()


@kernel()
def _faces_with_area(points: Any, faces: Any) -> Any:
    noise_per_unit = 4 * np.finfo(np.float64).eps
    solid = np.empty(faces.shape[0], np.bool_)
    for f in range(faces.shape[0]):
        a, b, c = faces[f]
        farthest = 0.0
        for axis in range(3):
            for v in (a, b, c):
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
    return solid


# Each face adds its normal, times twice its area, to its three corners, in file order and without an (F, 3)
# temporary. `first` remembers each vertex's first face with area. Plain scalars: np.cross and sums of short
# arrays would take six times as long to compile.
@kernel()
def _vertex_normals(vertices: Any, faces: Any) -> Any:
    sums = np.zeros((vertices.shape[0], 3), np.float64)
    first = np.full(vertices.shape[0], -1, np.int64)
    for f in range(faces.shape[0]):
        x, y, z = _area_normal(vertices, faces, f)
        has_area = x * x + y * y + z * z > 0
        for corner in range(3):
            v = faces[f, corner]
            sums[v, 0] += x
            sums[v, 1] += y
            sums[v, 2] += z
            if has_area and first[v] < 0:
                first[v] = f
    normals = np.empty((vertices.shape[0], 3), np.float32)
    for v in range(vertices.shape[0]):
        x, y, z = sums[v, 0], sums[v, 1], sums[v, 2]
        length = np.sqrt(x * x + y * y + z * z)
        if not length > 0 and first[v] >= 0:
            x, y, z = _area_normal(vertices, faces, first[v])
            length = np.sqrt(x * x + y * y + z * z)
        if not length > 0:
            x, y, z, length = 0.0, 0.0, 1.0, 1.0
        normals[v, 0], normals[v, 1], normals[v, 2] = x / length, y / length, z / length
    return normals


@kernel()
def _area_normal(vertices: Any, faces: Any, face: int) -> Any:
    """Twice the area times the unit normal of a face, three float64."""
    a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
    x, y, z = np.float64(vertices[a, 0]), np.float64(vertices[a, 1]), np.float64(vertices[a, 2])
    ux, uy, uz = vertices[b, 0] - x, vertices[b, 1] - y, vertices[b, 2] - z
    vx, vy, vz = vertices[c, 0] - x, vertices[c, 1] - y, vertices[c, 2] - z
    return uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
