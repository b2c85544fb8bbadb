"""A mesh made ready for scoring, once: occupancy, welded vertices with normals, edges."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from rewards.edges import mesh_edges
from rewards.occupancy import OccupancyGrid, build_occupancy, solid_faces

if TYPE_CHECKING:
    from rewards.settings import RewardSettings

# Of the choice of edges on meshes above `max_scoring_vertices`; never the run's: all runs score a mesh alike.
_SUBSET_SEED = 0


@dataclass(frozen=True, eq=False)
class ScoringMesh:
    """What the rewards read of a mesh. Pickles compactly (the grid bit-packed); its arrays are read-only.

    Attributes:
        grid: occupancy, mesh frame.
        vertices: (S, 3) float32 distinct positions, mesh frame. Weights to score are given at these.
        normals: (S, 3) float32 unit vertex normals, for querying a skin decoder.
        edges: (E, 2) int64 indices into `vertices`.
        source: (S,) int64, for each vertex the first vertex of the file's mesh at its position.
        name: for messages.
    """

    grid: OccupancyGrid
    vertices: NDArray[np.float32]
    normals: NDArray[np.float32]
    edges: NDArray[np.int64]
    source: NDArray[np.int64]
    name: str = ""


def prepare_scoring_mesh(
    vertices: ArrayLike, faces: ArrayLike, settings: "RewardSettings", name: str = ""
) -> ScoringMesh:
    """Do a mesh's share of scoring: voxelise, weld coincident vertices, list edges, cut large meshes down.

    Faces without area and vertices that no other face uses do not count. Vertices are welded if their float32
    coordinates are equal: files split them at texture and normal seams, and an unwelded mesh cannot show a
    tear. Above `settings.max_scoring_vertices` a fixed random subset of the edges and their end points
    remain.

    Args:
        vertices: (V, 3) float, mesh frame (longest side of the bounding box spans [-1, 1]).
        faces: (F, 3) int.
        settings: grid and size limits.
        name: for messages.

    Raises:
        MeshRewardError: the mesh cannot be voxelised (see `build_occupancy`).
    """
    grid = build_occupancy(vertices, faces, settings.resolution, settings.interior)
    whole, triangles, solid = solid_faces(vertices, faces)
    if not solid.all():
        triangles = triangles[solid]
    # Vertices that no face with area uses go first: they may hold anything.
    in_use = np.zeros(len(whole), dtype=np.bool_)
    in_use[triangles] = True
    used = np.flatnonzero(in_use)
    first, welded = weld(whole[used].astype(np.float32), (np.cumsum(in_use) - 1)[triangles])
    source = used[first]
    positions = whole[source].astype(np.float32)
    normals = vertex_normals(positions, welded)
    edges = mesh_edges(welded)
    kept, edges = _limit(edges, len(source), settings.max_scoring_vertices)
    return ScoringMesh(grid, positions[kept], normals[kept], edges, source[kept], name)


def weld(
    points: NDArray[np.float32], triangles: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Merge vertices that have the same coordinates.

    Args:
        points: (V, 3) float32.
        triangles: (T, 3) int64.

    Returns:
        first (S,) int64: the lowest index of each set of equal vertices, ascending; triangles (T, 3) int64
        renumbered to 0 … S - 1.
    """
    # Adding 0 turns -0 into 0, which are equal but differ in their bits.
    bits = np.ascontiguousarray(points + np.float32(0)).view(np.uint32).astype(np.uint64)
    # Two integer keys sort much faster than rows of three floats.
    order = np.lexsort((bits[:, 2], bits[:, 0] << np.uint64(32) | bits[:, 1]))
    fresh = np.ones(len(points), dtype=np.bool_)
    fresh[1:] = (bits[order[1:]] != bits[order[:-1]]).any(axis=1)
    # The sort is stable, so the first of each run is the set's lowest index.
    lowest = order[fresh]
    rank = np.empty(len(lowest), dtype=np.int64)
    rank[np.argsort(lowest)] = np.arange(len(lowest))
    label = np.empty(len(points), dtype=np.int64)
    label[order] = rank[np.cumsum(fresh) - 1]
    return np.sort(lowest), label[triangles]


@njit(cache=True)
def vertex_normals(positions: Any, triangles: Any) -> Any:
    """Unit vertex normals (S, 3) float32: the area-weighted mean of the normals of the faces around a vertex.

    As `data.vertex_normals`, but where the faces cancel (double-sided sheets) a vertex gets its first face's
    normal, because a decoder is queried with it. Not that function also because importing `data` brings in
    mesh readers, 64 MB in every scoring worker.

    positions (S, 3) float32, triangles (T, 3) int64, every vertex in some triangle.
    """
    sums = np.zeros(positions.shape, np.float64)
    first = np.full(positions.shape[0], -1, np.int64)
    for t in range(triangles.shape[0]):
        normal = _area_normal(positions, triangles[t])
        for v in triangles[t]:
            sums[v] += normal
            if first[v] < 0:
                first[v] = t
    normals = np.empty(positions.shape, np.float32)
    for v in range(positions.shape[0]):
        normal, length = sums[v], np.sqrt((sums[v] ** 2).sum())
        if not length > 0:
            normal = _area_normal(positions, triangles[first[v]])
            length = np.sqrt((normal**2).sum())
        # Single precision may have squashed the only faces of a vertex.
        normals[v] = normal / length if length > 0 else np.array([0.0, 0.0, 1.0])
    return normals


@njit(cache=True)
def _area_normal(positions: Any, triangle: Any) -> Any:
    """Twice the area times the unit normal of a triangle, (3,) float64."""
    a = positions[triangle[0]].astype(np.float64)
    return np.cross(positions[triangle[1]] - a, positions[triangle[2]] - a)


def _limit(
    edges: NDArray[np.int64], vertex_count: int, limit: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the vertices to keep and the edges between them, renumbered."""
    if vertex_count <= limit:
        return np.arange(vertex_count), edges
    shuffled = edges[np.random.Generator(np.random.Philox(_SUBSET_SEED)).permutation(len(edges))]
    _, first_use = np.unique(shuffled, return_index=True)
    # vertices_so_far[e]: distinct end points of the first e + 1 edges.
    vertices_so_far = np.cumsum(np.bincount(first_use // 2, minlength=len(shuffled)))
    chosen = shuffled[: np.searchsorted(vertices_so_far, limit, side="right")]
    kept, renumbered = np.unique(chosen, return_inverse=True)
    pairs = np.sort(renumbered.reshape(-1, 2), axis=1)
    return kept, pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))].astype(np.int64)
