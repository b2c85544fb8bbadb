"""Point clouds of rigged meshes for pre-training: surface points with weights, and the points of a bone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.compiled import kernel, read_only
from data.mesh import Mesh
from data.rig import Rig, depth_first
from data.sampling import face_areas, sample_surface_indexed
from data.welding import weld_surface

Floats = NDArray[np.float32]

# Weight above which a bone influences a point.
INFLUENCE = 1e-3


@dataclass(frozen=True, eq=False)
class RigExample:
    """A rig and a point cloud with its skinning weights; mesh frame, depth-first joint order, float32.

    joints (J, 3), parents (J,); points, normals (P, 3) and weights (P, J). The first `uniform` rows are the
    cloud a model sees, the last `vertices` rows are mesh vertices, and the rows between are a pool for dense
    sampling.
    `class_name`: the rig's class, such as "articulation", if its data set has one.
    `near`: cache of `near_bones`.
    """

    joints: Floats
    parents: NDArray[np.int64]
    points: Floats
    normals: Floats
    weights: Floats
    uniform: int
    vertices: int = 0
    class_name: str | None = None
    near: dict[int, NDArray[np.int64]] = field(default_factory=dict, repr=False)


def make_example(
    mesh: Mesh, rig: Rig, points: int, pool: int, vertices: int, rng: np.random.Generator
) -> RigExample:
    """Sample `points` uniform and `pool` bone-wise surface points, and at most `vertices` of the vertices.

    Surface points have face normals and interpolated weights. Vertices have their own weights, and the
    positions and normals of the welded surface (`weld_surface`), one point for all vertices of a place: there
    a decoder is queried in the end. Their weights are sharper: interpolation spreads a bone over every face
    next to a vertex it influences. The pool has the density `bone_density`, so small
    bones get as many points as large ones. Raises MeshError if no face has an area.
    """
    parts = [sample_surface_indexed(mesh.vertices, mesh.faces, points, rng)]
    if pool:
        density = bone_density(mesh, rig.weights)
        parts.append(sample_surface_indexed(mesh.vertices, mesh.faces, pool, rng, density))
    cloud, normals, face_index, barycentric = map(np.concatenate, zip(*parts, strict=True))
    weights = np.einsum("nk,nkj->nj", barycentric, rig.weights[mesh.faces[face_index]]).astype(np.float32)
    if vertices:
        surface = weld_surface(mesh.vertices, mesh.faces)
        own = rng.permutation(len(surface.points))[:vertices]
        vertices = len(own)
        cloud = np.concatenate([cloud, surface.points[own]])
        normals = np.concatenate([normals, surface.normals[own]])
        weights = np.concatenate([weights, rig.weights[surface.source[own]]])
    ordered = depth_first(Rig(rig.joints, rig.parents, weights, rig.names))
    return RigExample(ordered.joints, ordered.parents, cloud, normals, ordered.weights, points, vertices)


def skeleton_example(mesh: Mesh, rig: Rig, points: int, rng: np.random.Generator) -> RigExample:
    """The uniform points of `make_example` and its joints, without weights, for what needs no more."""
    cloud, normals, _, _ = sample_surface_indexed(mesh.vertices, mesh.faces, points, rng)
    none = np.zeros((points, len(rig.joints)), dtype=np.float32)
    ordered = depth_first(Rig(rig.joints, rig.parents, none, rig.names))
    return RigExample(ordered.joints, ordered.parents, cloud, normals, ordered.weights, points)


def bone_density(mesh: Mesh, weights: Floats) -> NDArray[np.float64]:
    """Relative point density of each face (F,), such that every bone contributes equally many points.

    A bone's faces are those with a vertex it influences (specification, section 12.2). A face of several
    bones gets the sum of their densities; if no bone has a face with area, the density is uniform.
    weights (V, J).
    """
    influenced = weights > INFLUENCE
    a, b, c = mesh.faces.T
    touched = influenced[a] | influenced[b] | influenced[c]
    areas = face_areas(mesh.vertices, mesh.faces) @ touched
    shares = np.divide(1.0, areas, out=np.zeros_like(areas), where=areas > 0)
    return touched @ shares if shares.any() else np.ones(len(mesh.faces))


def skin_points(
    example: RigExample, bones: Sequence[int] | NDArray[np.integer], count: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Rows of the cloud to show of each bone, (len(bones), count): half from everywhere, half near it.

    The first half comes from the uniform points and the vertices. "Near" (specification, section 12.2) means
    influenced by the bone (weight above 1e-3) or within reach of such a point: a tenth of the diagonal of
    their bounding box, at most 0.1. Both limits are this project's. For a bone without influence every row
    is near.
    """
    half = count // 2
    everywhere, near_each = _everywhere(example), near_bones(example, bones)
    rows = np.empty((len(bones), count), dtype=np.int64)
    for row, bone in zip(rows, bones, strict=True):
        row[:half] = rng.choice(everywhere, half, replace=half > len(everywhere))
        near = near_each[int(bone)]
        row[half:] = rng.choice(near, count - half, replace=len(near) < count - half)
    return rows


def vertex_shares(
    example: RigExample, bones: Sequence[int] | NDArray[np.integer], rows: NDArray[np.int64]
) -> Floats:
    """How much of the mesh each row of `skin_points` stands for, (len(bones), count); 1 away from the bone.

    Rows near a bone are drawn more often than they occur. A share m of the uniform points and vertices is
    near: of `count` rows, half of (1 + m) are, instead of m. So a near row stands for m / (1 + m) of a row
    elsewhere, and sums over rows weighted by these shares estimate sums over the mesh up to a factor.
    """
    everywhere, near_each = _everywhere(example), near_bones(example, bones)
    shares = np.ones(rows.shape, dtype=np.float32)
    for share, row, bone in zip(shares, rows, bones, strict=True):
        near = np.zeros(len(example.points), dtype=np.bool_)
        near[near_each[int(bone)]] = True
        part = near[everywhere].mean()
        share[near[row]] = part / (1 + part)
    return shares


def _everywhere(example: RigExample) -> NDArray[np.int64]:
    """Rows of the uniform points and of the vertices: the cloud without the pool."""
    last = len(example.points)
    return np.r_[: example.uniform, last - example.vertices : last]


def near_bones(
    example: RigExample, bones: Sequence[int] | NDArray[np.integer]
) -> dict[int, NDArray[np.int64]]:
    """Rows of the cloud near each bone as `skin_points` defines it, ascending; cached in the example."""
    new = [bone for bone in dict.fromkeys(map(int, bones)) if bone not in example.near]
    if new:
        points, weights = read_only(example.points), read_only(example.weights)
        starts, rows, extents = _influenced(points, weights, np.array(new), INFLUENCE)
        reaches = np.array([min(0.1 * float(np.linalg.norm(extent)), 0.1) for extent in extents])
        near = _within(points, starts, rows, reaches)
        example.near.update((bone, np.flatnonzero(row)) for bone, row in zip(new, near, strict=True))
    return example.near


@kernel()
def _influenced(points: Any, weights: Any, bones: Any, influence: float) -> Any:
    """The points (P, 3) that each of B bones influences, by their weights (P, J).

    Returns starts (B + 1,) and rows (n,): those of bone b are rows[starts[b] : starts[b + 1]], ascending; and
    the extents (B, 3) of their boxes, float32, 0 without points.
    """
    starts = np.zeros(len(bones) + 1, np.int64)
    for p in range(len(points)):
        for b in range(len(bones)):
            starts[b + 1] += weights[p, bones[b]] > influence
    starts = np.cumsum(starts)
    rows = np.empty(starts[-1], np.int64)
    filled = starts[:-1].copy()
    low = np.zeros((len(bones), 3), np.float32)
    high = np.zeros((len(bones), 3), np.float32)
    for p in range(len(points)):
        for b in range(len(bones)):
            if weights[p, bones[b]] > influence:
                first = filled[b] == starts[b]
                for axis in range(3):
                    low[b, axis] = points[p, axis] if first else min(low[b, axis], points[p, axis])
                    high[b, axis] = points[p, axis] if first else max(high[b, axis], points[p, axis])
                rows[filled[b]] = p
                filled[b] += 1
    return starts, rows, high - low


@kernel()
def _within(points: Any, starts: Any, rows: Any, reaches: Any) -> Any:
    """Which points are influenced by each bone, or closer than its reach to one that is: (B, P) bool.

    Every point for a bone without influence. A grid with cells a little wider than the reach over the box of
    a bone's points: what is within reach of a point lies in its cell or in a neighbour. Distances are squared
    and summed in float64, axis by axis.
    """
    near = np.zeros((len(reaches), len(points)), np.bool_)
    low, count = np.empty(3), np.empty(3, np.int64)
    for b in range(len(reaches)):
        own = rows[starts[b] : starts[b + 1]]
        if not len(own):
            near[b] = True
            continue
        limit, cell = reaches[b] * reaches[b], reaches[b] * 1.001 + 1e-12
        for axis in range(3):
            least, most = np.float64(points[own[0], axis]), np.float64(points[own[0], axis])
            for row in own:
                least = min(least, np.float64(points[row, axis]))
                most = max(most, np.float64(points[row, axis]))
            low[axis] = least
            count[axis] = int((most - least) / cell) + 1
        first = np.full(count[0] * count[1] * count[2], -1, np.int64)
        after = np.empty(len(own), np.int64)  # the next point of the same cell
        for k in range(len(own)):
            place = 0
            for axis in range(3):
                place = place * count[axis] + int((np.float64(points[own[k], axis]) - low[axis]) / cell)
            after[k] = first[place]
            first[place] = k
            near[b, own[k]] = True
        for p in range(len(points)):
            if near[b, p]:
                continue
            x, y, z = np.float64(points[p, 0]), np.float64(points[p, 1]), np.float64(points[p, 2])
            i = int(np.floor((x - low[0]) / cell))
            j = int(np.floor((y - low[1]) / cell))
            k = int(np.floor((z - low[2]) / cell))
            if i < -1 or j < -1 or k < -1 or i > count[0] or j > count[1] or k > count[2]:
                continue
            found = False
            for u in range(max(i - 1, 0), min(i + 2, count[0])):
                for v in range(max(j - 1, 0), min(j + 2, count[1])):
                    for w in range(max(k - 1, 0), min(k + 2, count[2])):
                        other = first[(u * count[1] + v) * count[2] + w]
                        while other >= 0 and not found:
                            dx = x - np.float64(points[own[other], 0])
                            dy = y - np.float64(points[own[other], 1])
                            dz = z - np.float64(points[own[other], 2])
                            found = dx * dx + dy * dy + dz * dz < limit
                            other = after[other]
            near[b, p] = found
    return near
