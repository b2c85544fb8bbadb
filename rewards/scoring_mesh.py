"""Scoring mesh: what all rigs of a mesh share, computed once (occupancy, welded vertices, normals, edges)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rewards.edges import mesh_edges
from rewards.kernels import geometry
from rewards.occupancy import OccupancyGrid, build_occupancy, solid_faces
from rewards.settings import RewardSettings

# Draws the edges of meshes above `max_scoring_vertices`. Not the run's seed: all runs score the same edges.
_SUBSET_SEED = 0


@dataclass(frozen=True, eq=False)
class ScoringMesh:
    """What the rewards need of a mesh. Pickles compactly (the grid bit-packed); its arrays are read-only.

    Attributes:
        grid: occupancy, mesh frame.
        vertices: (S, 3) float32 distinct positions, mesh frame; a rig's weights are given at these.
        normals: (S, 3) float32 unit vertex normals, for querying a skin decoder.
        edges: (E, 2) int64 indices into `vertices`.
        source: (S,) int64, the index of the first vertex of the original mesh at each position.
        name: for messages.
    """

    grid: OccupancyGrid
    vertices: NDArray[np.float32]
    normals: NDArray[np.float32]
    edges: NDArray[np.int64]
    source: NDArray[np.int64]
    name: str = ""


def prepare_scoring_mesh(
    vertices: ArrayLike, faces: ArrayLike, settings: RewardSettings, name: str = ""
) -> ScoringMesh:
    """Prepare a mesh for scoring: voxelise, weld coincident vertices, list edges, subsample large meshes.

    Faces without area and vertices that no other face uses are ignored. Vertices are welded if their float32
    coordinates are equal: files split them at texture and normal seams, and an unwelded mesh cannot show a
    tear. Above `settings.max_scoring_vertices`, a fixed random subset of the edges and their end points is
    kept.

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
    # Vertices that no face with area uses are dropped first: they may hold anything.
    in_use = np.zeros(len(whole), dtype=np.bool_)
    in_use[triangles] = True
    used = np.flatnonzero(in_use)
    first, welded = weld(whole[used].astype(np.float32), (np.cumsum(in_use) - 1)[triangles])
    source = used[first]
    positions = whole[source].astype(np.float32)
    normals = vertex_normals(positions, welded)
    edges = mesh_edges(welded)
    kept, edges = _subsample(edges, len(source), settings.max_scoring_vertices)
    return ScoringMesh(grid, positions[kept], normals[kept], edges, source[kept], name)


def weld(
    points: NDArray[np.float32], triangles: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Merge vertices that have the same coordinates.

    Args:
        points: (V, 3) float32.
        triangles: (T, 3) int64.

    Returns:
        first (S,) int64: the lowest index of each set of equal vertices, ascending; triangles (T, 3) int64,
        renumbered to 0 … S - 1.
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
    label = np.empty(len(points), dtype=np.int64)
    label[order] = rank[np.cumsum(fresh) - 1]
    return np.sort(lowest), label[triangles]


def vertex_normals(positions: NDArray[np.float32], triangles: NDArray[np.int64]) -> NDArray[np.float32]:
    """Unit vertex normals: the area-weighted mean of the normals of the faces around each vertex.

    As `data.vertex_normals`, except where the faces cancel (double-sided sheets): such a vertex gets its
    first face's normal, because a decoder is queried with it. Importing `data` would also cost every scoring
    actor 64 MB of mesh readers.

    Args:
        positions: (S, 3) float32.
        triangles: (T, 3) int64; every vertex is in some triangle.

    Returns:
        (S, 3) float32.
    """
    return geometry.vertex_normals(positions, triangles)


def _subsample(
    edges: NDArray[np.int64], vertex_count: int, limit: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of at most `limit` vertices (S,), ascending, and the edges kept between them, renumbered."""
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
