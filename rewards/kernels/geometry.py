"""Numba kernels over points and faces: vertex normals of a welded mesh, duplicate joints."""

from typing import Any

import numpy as np
from numba import njit

# Normals. Each face adds its normal, times twice its area, to its three corners, in file order and without an
# (F, 3) temporary. `first` remembers each vertex's first face, for vertices whose faces cancel.


@njit(cache=True)
def vertex_normals(positions: Any, triangles: Any) -> Any:
    """Unit normals (S, 3) float32; see `rewards.scoring_mesh.vertex_normals`."""
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


# Duplicates. All pairs, stopping at the first earlier joint that is near: a rig's tens of joints are too
# few for a search tree.


@njit(cache=True)
def duplicate_joints(joints: Any, distance: float) -> int:
    """Number of joints within `distance` of an earlier one; joints (J, 3) float64."""
    count = 0
    for i in range(joints.shape[0]):
        for j in range(i):
            dx, dy, dz = joints[i, 0] - joints[j, 0], joints[i, 1] - joints[j, 1], joints[i, 2] - joints[j, 2]
            if dx * dx + dy * dy + dz * dz <= distance * distance:
                count += 1
                break
    return count
