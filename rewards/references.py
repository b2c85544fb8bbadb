"""Plain NumPy references of the rewards and kernels: slow and readable, for tests to compare against.

Scoring never imports this module. Arguments, results and errors are those of the function that a docstring
names.
"""

import itertools
from collections import deque

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rewards.coverage import DistanceUnit, decay_per_cell
from rewards.edges import check_edges
from rewards.lbs import NO_WEIGHT, check_rotations
from rewards.locality import coarse_grid
from rewards.occupancy import (
    CONTACT_TOLERANCE,
    Interior,
    OccupancyGrid,
    check_occupancy_options,
    place_grid,
)
from rewards.skeleton import check_joints, check_parents, hierarchy_levels
from rewards.smoothness import LENGTH_EPSILON, Reduce, check_smoothness_options, smoothness_of
from rewards.sparsity import check_sparsity_options, sparsity_of
from rewards.weights import check_weights

# ---------------------------------------------------------------- the four rewards


def joint_coverage_reference(
    grid: OccupancyGrid, joints: ArrayLike, alpha: float = 0.05, distance_unit: DistanceUnit = "cells"
) -> float:
    """`joint_coverage` with every joint against every cell."""
    decay = decay_per_cell(grid, alpha, distance_unit)
    centres = grid.centres()
    nearest = np.full(len(centres), np.inf)
    for joint in check_joints(joints):
        nearest = np.minimum(nearest, np.linalg.norm(centres - joint, axis=1) / grid.cell)
    return float(np.exp(-decay * nearest).mean())


def bone_containment_reference(
    grid: OccupancyGrid, joints: ArrayLike, parents: ArrayLike, samples_per_bone: int = 10
) -> float:
    """`bone_containment` one point at a time."""
    ends = check_joints(joints)
    up = check_parents(parents, len(ends))
    hierarchy_levels(up)
    hits: list[bool] = []
    for child, parent in enumerate(up):
        for sample in range(samples_per_bone + 1) if parent >= 0 else ():
            point = ends[parent] + sample / samples_per_bone * (ends[child] - ends[parent])
            hits.append(_in_occupied_cell(grid, point))
    return float(np.mean(hits or [_in_occupied_cell(grid, root) for root in ends]))


def _in_occupied_cell(grid: OccupancyGrid, point: NDArray[np.float64]) -> bool:
    cell = []
    for axis in range(3):
        offset = (point[axis] - grid.origin[axis]) / grid.cell
        size = grid.occupied.shape[axis]
        if offset < 0 or offset > size + CONTACT_TOLERANCE:
            return False
        cell.append(min(int(offset), size - 1))
    return bool(grid.occupied[tuple(cell)])


def skin_sparsity_reference(
    weights: ArrayLike,
    threshold: float = 0.1,
    max_influences: int = 4,
    unbound_power: float = 1.0,
    crowded_power: float = 1.0,
) -> float:
    """`skin_sparsity` by whole-array comparisons."""
    check_sparsity_options(threshold, unbound_power, crowded_power)
    array = check_weights(weights)
    beta = array.dtype.type(threshold)
    uninfluenced = (array < beta).all(axis=1).mean()
    overinfluenced = ((array > beta).sum(axis=1) > max_influences).mean()
    return sparsity_of(float(uninfluenced), float(overinfluenced), unbound_power, crowded_power)


def deformation_smoothness_reference(
    vertices: ArrayLike,
    edges: ArrayLike,
    joints: ArrayLike,
    parents: ArrayLike,
    weights: ArrayLike,
    rotations: ArrayLike,
    scale: float = 1.0,
    reduce: Reduce = "max",
) -> float:
    """`deformation_smoothness` from the references of skinning, all edges and poses at once."""
    check_smoothness_options(scale, reduce)
    points, pairs = check_edges(vertices, edges)
    matrices = skinning_matrices_reference(joints, parents, rotations)
    posed = linear_blend_skinning_reference(points, weights, matrices)
    if len(pairs) == 0:
        return smoothness_of(np.ones(len(posed)), scale)
    rest_length = np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1)
    posed_length = np.linalg.norm(posed[:, pairs[:, 0]] - posed[:, pairs[:, 1]], axis=2)
    stretch = np.maximum(1.0, posed_length / (rest_length + LENGTH_EPSILON))
    return smoothness_of(stretch.max(axis=1) if reduce == "max" else stretch.mean(axis=1), scale)


# ---------------------------------------------------------------- guards


def volume_preservation_reference(
    joints: ArrayLike, parents: ArrayLike, weights: ArrayLike, rotations: ArrayLike
) -> float:
    """`volume_preservation` by NumPy's determinant, all vertices and poses at once."""
    turns = skinning_matrices_reference(joints, parents, rotations)[..., :3]
    array = check_weights(weights, joint_count=turns.shape[1]).astype(np.float64)
    total = array.sum(axis=1, keepdims=True)
    shares = np.divide(array, total, out=np.zeros_like(array), where=total > NO_WEIGHT)
    volumes = np.linalg.det(np.einsum("sj,pjab->spab", shares, turns))
    return float(np.where(total > NO_WEIGHT, np.clip(volumes, 0, 1), 1.0).mean())


def weight_locality_reference(
    grid: OccupancyGrid, vertices: ArrayLike, joints: ArrayLike, parents: ArrayLike, weights: ArrayLike
) -> float:
    """`weight_locality` one cell, one vertex and one pair of bones at a time."""
    rest = check_joints(joints)
    up = check_parents(parents, len(rest)).tolist()
    points = np.asarray(vertices, dtype=np.float64)
    array = check_weights(weights, len(points), len(rest))
    coarse = coarse_grid(grid)
    size = np.array(coarse.occupied.shape)
    segments = [(j, j, j) for j in range(len(up))] + [(p, j, p) for j, p in enumerate(up) if p >= 0]
    owner: dict[tuple[int, ...], int] = {}
    waiting: deque[tuple[int, ...]] = deque()
    for start, end, bone in segments:
        a, b = ((rest[joint] - coarse.origin) / coarse.cell for joint in (start, end))
        for point in a + _part_in_box(a, b, size)[:, None] * (b - a):
            cell = tuple(int(c) for c in np.floor(np.clip(point, 0, size - 1)))
            if coarse.occupied[cell] and cell not in owner:
                owner[cell] = bone
                waiting.append(cell)
    while waiting:
        cell = waiting.popleft()
        for axis, step in itertools.product(range(3), (-1, 1)):
            near = tuple(c + step * (k == axis) for k, c in enumerate(cell))
            inside = all(0 <= c < n for c, n in zip(near, size, strict=True))
            if inside and coarse.occupied[near] and near not in owner:
                owner[near] = owner[cell]
                waiting.append(near)
    leaked = 0.0
    for point, row in zip((points - coarse.origin) / coarse.cell, array.tolist(), strict=True):
        cell = tuple(int(c) for c in np.floor(np.clip(point, 0, size - 1)))
        if cell in owner:
            owning = owner[cell]
        else:
            gaps = [_distance(point, *(rest[[a, b]] - coarse.origin) / coarse.cell) for a, b, _ in segments]
            owning = segments[int(np.argmin(gaps))][2]
        away = [weight for bone, weight in enumerate(row) if not _are_connected(bone, owning, up)]
        leaked += sum(away) / sum(row) if sum(row) > 0 else 0.0
    return 1.0 - leaked / len(points)


def _part_in_box(
    a: NDArray[np.float64], b: NDArray[np.float64], size: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Parameters t of points a + t (b - a) in the box [0, size], at most half a cell apart."""
    low, high = 0.0, 1.0
    for axis in range(3):
        if a[axis] == b[axis]:
            if not 0 <= a[axis] <= size[axis]:
                return np.empty(0)
        else:
            crossings = sorted((-a[axis] / (b[axis] - a[axis]), (size[axis] - a[axis]) / (b[axis] - a[axis])))
            low, high = max(low, crossings[0]), min(high, crossings[1])
    if low > high:
        return np.empty(0)
    steps = int(2 * np.linalg.norm((high - low) * (b - a))) + 1
    return low + (high - low) * np.arange(steps + 1) / steps


def _distance(point: NDArray[np.float64], a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Squared, from a point to the segment between a and b."""
    length = ((b - a) ** 2).sum()
    t = min(max(((point - a) * (b - a)).sum() / length, 0.0), 1.0) if length > 0 else 0.0
    return float(((point - (b if t == 1 else a + t * (b - a))) ** 2).sum())


def _are_connected(first: int, second: int, parents: list[int]) -> bool:
    """Whether one bone is an ancestor of the other, or both hang on the same joint."""
    chains = [[first], [second]]
    for chain in chains:
        while parents[chain[-1]] >= 0:
            chain.append(parents[chain[-1]])
    siblings = parents[first] == parents[second] >= 0
    return first in chains[1] or second in chains[0] or siblings


# ---------------------------------------------------------------- skinning


def skinning_matrices_reference(
    joints: ArrayLike, parents: ArrayLike, rotations: ArrayLike
) -> NDArray[np.float64]:
    """`skinning_matrices` with 4 x 4 matrices, as the formula is written."""
    rest = check_joints(joints)
    up = check_parents(parents, len(rest))
    local = check_rotations(rotations, len(rest))
    result = np.empty((len(local), len(rest), 3, 4))
    for pose, turns in enumerate(local):
        world = np.empty((len(rest), 4, 4))
        for joint in np.concatenate(hierarchy_levels(up)):
            parent = up[joint]
            turn = np.eye(4)
            turn[:3, :3] = turns[joint]
            if parent < 0:
                world[joint] = _translation(rest[joint]) @ turn
            else:
                world[joint] = world[parent] @ _translation(rest[joint] - rest[parent]) @ turn
            result[pose, joint] = (world[joint] @ _translation(-rest[joint]))[:3]
    return result


def _translation(offset: NDArray[np.float64]) -> NDArray[np.float64]:
    matrix = np.eye(4)
    matrix[:3, 3] = offset
    return matrix


def linear_blend_skinning_reference(
    vertices: ArrayLike, weights: ArrayLike, matrices: ArrayLike
) -> NDArray[np.float64]:
    """`linear_blend_skinning` as one `einsum`."""
    points = np.asarray(vertices, dtype=np.float64)
    transforms = np.asarray(matrices, dtype=np.float64)
    array = check_weights(weights, len(points), transforms.shape[1]).astype(np.float64)
    total = array.sum(axis=1, keepdims=True)
    shares = np.divide(array, total, out=np.zeros_like(array), where=total > NO_WEIGHT)
    homogeneous = np.concatenate([points, np.ones((len(points), 1))], axis=1)
    moved = np.einsum("sj,pjab,sb->psa", shares, transforms, homogeneous, optimize=True)
    return np.where(total > NO_WEIGHT, moved, points)


# ---------------------------------------------------------------- occupancy


def build_occupancy_reference(
    vertices: ArrayLike, faces: ArrayLike, resolution: int = 196, interior: Interior = "projection"
) -> OccupancyGrid:
    """`build_occupancy` with a separating-axis test for every cell of every triangle's bounding box."""
    check_occupancy_options(resolution, interior)
    place = place_grid(vertices, faces, resolution)
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
    """Which closed unit cubes touch a triangle: the separating-axis test over all 13 axes.

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
    """Surface cells and all cells between surface cells on each of the three axes, (X, Y, Z) bool."""
    between = np.ones_like(surface)
    for axis in range(3):
        after_first = np.logical_or.accumulate(surface, axis=axis)
        before_last = np.flip(np.logical_or.accumulate(np.flip(surface, axis), axis=axis), axis)
        between &= after_first & before_last
    return between | surface


def fill_flood_reference(surface: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """All cells that cannot be reached from outside the grid through faces of free cells, (X, Y, Z) bool."""
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


def solid_faces_reference(points: NDArray[np.float64], triangles: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which faces have area by the rule of `solid_faces`, (F,) bool; valid arrays only."""
    corners = points[triangles]
    sides = corners[:, [1, 2, 0]] - corners
    longest = np.linalg.norm(sides, axis=2).max(axis=1)
    area = np.linalg.norm(np.cross(sides[:, 0], -sides[:, 2]), axis=1)
    noise = 4 * np.finfo(np.float64).eps * np.abs(corners).max(axis=(1, 2))
    solid: NDArray[np.bool_] = area > longest * np.maximum(1e-12 * longest, noise)
    return solid
