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
    `near`: cache of `near_bone`, rows by bone.
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
    last = len(example.points)
    everywhere = np.r_[: example.uniform, last - example.vertices : last]
    rows = np.empty((len(bones), count), dtype=np.int64)
    for row, bone in zip(rows, bones, strict=True):
        row[:half] = rng.choice(everywhere, half, replace=half > len(everywhere))
        near = near_bone(example, int(bone))
        row[half:] = rng.choice(near, count - half, replace=len(near) < count - half)
    return rows


def near_bone(example: RigExample, bone: int) -> NDArray[np.int64]:
    """Rows of the cloud near a bone as `skin_points` defines it, ascending; cached in the example."""
    if bone not in example.near:
        near = example.weights[:, bone] > INFLUENCE
        influenced = np.flatnonzero(near)
        if len(influenced):
            points = example.points
            own = points[influenced]
            columns = own.T.copy()  # numpy reduces long rows far faster than short ones
            extent = columns.max(axis=1) - columns.min(axis=1)
            reach = min(0.1 * float(np.linalg.norm(extent)), 0.1)
            _mark_within(read_only(points), read_only(own), reach, near)
        else:
            near[:] = True
        example.near[bone] = np.flatnonzero(near)
    return example.near[bone]


@kernel()
def _mark_within(points: Any, own: Any, reach: float, near: Any) -> None:
    """Mark in `near` (P,) the points (P, 3) that are closer than `reach` to one of `own` (K, 3).

    A grid with cells a little wider than `reach` over the box of `own`: what is within reach of a point lies
    in its cell or in a neighbour. Distances are squared and summed in float64, axis by axis.
    """
    limit = reach * reach
    cell = reach * 1.001 + 1e-12
    low = np.empty(3)
    count = np.empty(3, np.int64)
    for axis in range(3):
        least, most = np.float64(own[0, axis]), np.float64(own[0, axis])
        for k in range(len(own)):
            least = min(least, np.float64(own[k, axis]))
            most = max(most, np.float64(own[k, axis]))
        low[axis] = least
        count[axis] = int((most - least) / cell) + 1
    first = np.full(count[0] * count[1] * count[2], -1, np.int64)
    after = np.empty(len(own), np.int64)  # the next point of the same cell
    for k in range(len(own)):
        place = 0
        for axis in range(3):
            place = place * count[axis] + int((np.float64(own[k, axis]) - low[axis]) / cell)
        after[k] = first[place]
        first[place] = k
    for p in range(len(points)):
        if near[p]:
            continue
        x, y, z = np.float64(points[p, 0]), np.float64(points[p, 1]), np.float64(points[p, 2])
        i = int(np.floor((x - low[0]) / cell))
        j = int(np.floor((y - low[1]) / cell))
        k = int(np.floor((z - low[2]) / cell))
        if i < -1 or j < -1 or k < -1 or i > count[0] or j > count[1] or k > count[2]:
            continue
        found = False
        for a in range(max(i - 1, 0), min(i + 2, count[0])):
            for b in range(max(j - 1, 0), min(j + 2, count[1])):
                for c in range(max(k - 1, 0), min(k + 2, count[2])):
                    other = first[(a * count[1] + b) * count[2] + c]
                    while other >= 0 and not found:
                        dx = x - np.float64(own[other, 0])
                        dy = y - np.float64(own[other, 1])
                        dz = z - np.float64(own[other, 2])
                        found = bool(dx * dx + dy * dy + dz * dz < limit)
                        other = after[other]
        near[p] = found
