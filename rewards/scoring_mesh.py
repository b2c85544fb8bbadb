"""Scoring mesh: what all rigs of a mesh share, computed once (occupancy, welded vertices, normals, edges)."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.mesh import MeshError
from data.welding import weld_surface
from rewards.edges import mesh_edges
from rewards.errors import MeshRewardError
from rewards.locality import coarse_grid
from rewards.occupancy import OccupancyGrid, build_occupancy
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

    @cached_property
    def coarse(self) -> OccupancyGrid:
        """The grid of `rewards.locality`, made when it is first used."""
        return coarse_grid(self.grid)


def prepare_scoring_mesh(
    vertices: ArrayLike, faces: ArrayLike, settings: RewardSettings, name: str = ""
) -> ScoringMesh:
    """Prepare a mesh for scoring: voxelise, weld coincident vertices, list edges, subsample large meshes.

    Faces without area and vertices that no other face uses are ignored. Vertices are welded
    (`data.welding.weld_surface`): files split them at texture and normal seams, and an unwelded mesh cannot
    show a tear. Above `settings.max_scoring_vertices`, a fixed random subset of the edges and their end
    points is kept.

    Args:
        vertices: (V, 3) float, mesh frame (longest side of the bounding box spans [-1, 1]).
        faces: (F, 3) int.
        settings: grid and size limits.
        name: for messages.

    Raises:
        MeshRewardError: the mesh cannot be voxelised (see `build_occupancy`) or welded (see `weld_surface`).
    """
    grid = build_occupancy(vertices, faces, settings.resolution, settings.interior)
    try:
        surface = weld_surface(vertices, faces)
    except MeshError as error:
        raise MeshRewardError(str(error)) from error
    edges = mesh_edges(surface.faces)
    kept, edges = subsample_edges(edges, len(surface.points), settings.max_scoring_vertices)
    return ScoringMesh(grid, surface.points[kept], surface.normals[kept], edges, surface.source[kept], name)


def subsample_edges(
    edges: NDArray[np.int64], vertex_count: int, limit: int, seed: int = _SUBSET_SEED
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of at most `limit` vertices (S,), ascending, and the random edges (E', 2) kept between them,
    renumbered; all of both if there are no more vertices than that."""
    if vertex_count <= limit:
        return np.arange(vertex_count), edges
    shuffled = edges[np.random.Generator(np.random.Philox(seed)).permutation(len(edges))]
    _, first_use = np.unique(shuffled, return_index=True)
    # vertices_so_far[e]: distinct end points of the first e + 1 edges.
    vertices_so_far = np.cumsum(np.bincount(first_use // 2, minlength=len(shuffled)))
    chosen = shuffled[: np.searchsorted(vertices_so_far, limit, side="right")]
    kept, renumbered = np.unique(chosen, return_inverse=True)
    pairs = np.sort(renumbered.reshape(-1, 2), axis=1)
    return kept, pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))].astype(np.int64)
