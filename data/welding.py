"""Welds vertices at equal coordinates into places, with the vertex normals of the welded surface."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from data.mesh import MeshError

# Every scoring worker imports this module: keep SciPy and the file readers out of it.


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


def weld(points: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the vertices that have the same coordinates; 0 and -0 are equal.

    Args:
        points: (V, 3) float32.

    Returns:
        first (P,) int64: the lowest index of each set of equal vertices, ascending; place (V,) int64: the set
        of each vertex, so that points[first[place]] equals points.
    """
    # Adding 0 turns -0 into 0: equal numbers with different bits.
    bits = np.ascontiguousarray(points + np.float32(0)).view(np.uint32).astype(np.uint64)
    # Two integer keys sort faster than rows of three floats.
    order = np.lexsort((bits[:, 2], bits[:, 0] << np.uint64(32) | bits[:, 1]))
    fresh = np.ones(len(points), dtype=np.bool_)
    fresh[1:] = (bits[order[1:]] != bits[order[:-1]]).any(axis=1)
    # The sort is stable, so the first of each run is the set's lowest index.
    lowest = order[fresh]
    rank = np.empty(len(lowest), dtype=np.int64)
    rank[np.argsort(lowest)] = np.arange(len(lowest))
    place = np.empty(len(points), dtype=np.int64)
    place[order] = rank[np.cumsum(fresh) - 1]
    return np.sort(lowest), place


def weld_surface(vertices: ArrayLike, faces: ArrayLike) -> WeldedSurface:
    """Weld the surface of a mesh: files split vertices at texture and normal seams, or at every face.

    Faces without area (`faces_with_area`) and vertices that no other face uses are ignored; those vertices
    may hold anything. Vertices are welded if their float32 coordinates are equal.

    Args:
        vertices: (V, 3) float, any frame.
        faces: (F, 3) int, indices in range.

    Raises:
        MeshError: no face has area.
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
    first, place = weld(whole[used].astype(np.float32))
    source = used[first]
    points = whole[source].astype(np.float32)
    welded = place[(np.cumsum(in_use) - 1)[triangles]]
    return WeldedSurface(points, vertex_normals(points, welded), welded, source)


def mesh_places(vertices: ArrayLike, faces: ArrayLike) -> Places:
    """The places of all vertices of a mesh, also of those that no face with area uses.

    Such a vertex belongs to the surface's place at its coordinates if there is one. Otherwise, as a corner of
    a sliver or as a loose point, it has no normal of its own and gets that of the nearest place.

    Args:
        vertices: (V, 3) float, finite, any frame.
        faces: (F, 3) int, indices in range.

    Raises:
        MeshError: no face has area.
    """
    surface = weld_surface(vertices, faces)
    points = np.ascontiguousarray(vertices, dtype=np.float32)
    # Surface points go first, so that their places get the lowest numbers, in the surface's order.
    first, place = weld(np.concatenate([surface.points, points]))
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
    solid: NDArray[np.bool_] = _faces_with_area(points, faces)
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
        np.ascontiguousarray(vertices), np.ascontiguousarray(faces, dtype=np.int64)
    )
    return normals


@njit(cache=True)
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
# temporary. `first` remembers each vertex's first face with area.
@njit(cache=True)
def _vertex_normals(vertices: Any, faces: Any) -> Any:
    sums = np.zeros(vertices.shape, np.float64)
    first = np.full(vertices.shape[0], -1, np.int64)
    for f in range(faces.shape[0]):
        normal = _area_normal(vertices, faces[f])
        has_area = (normal**2).sum() > 0
        for v in faces[f]:
            sums[v] += normal
            if has_area and first[v] < 0:
                first[v] = f
    normals = np.empty(vertices.shape, np.float32)
    for v in range(vertices.shape[0]):
        normal, length = sums[v], np.sqrt((sums[v] ** 2).sum())
        if not length > 0 and first[v] >= 0:
            normal = _area_normal(vertices, faces[first[v]])
            length = np.sqrt((normal**2).sum())
        normals[v] = normal / length if length > 0 else np.array([0.0, 0.0, 1.0])
    return normals


@njit(cache=True)
def _area_normal(vertices: Any, face: Any) -> Any:
    """Twice the area times the unit normal of a face, (3,) float64."""
    a = vertices[face[0]].astype(np.float64)
    return np.cross(vertices[face[1]] - a, vertices[face[2]] - a)
