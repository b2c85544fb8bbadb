"""Linear blend skinning with world-aligned rest frames."""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from rewards.errors import RewardError
from rewards.skeleton import check_joints, check_parents, hierarchy_levels
from rewards.weights import check_weights

NO_WEIGHT = 1e-300  # a vertex whose weights sum to less has none: their inverse would overflow


def skinning_matrices(joints: ArrayLike, parents: ArrayLike, rotations: ArrayLike) -> NDArray[np.float64]:
    """Each joint's rest-to-posed transform `G_j · T(-h_j)`, with `G_j = G_parent · T(h_j - h_parent) · R_j`.

    Args:
        joints: (J, 3) float rest positions h, mesh frame; rest frames are aligned with the world's axes.
        parents: (J,) int, -1 for a root; any order, no cycles.
        rotations: (P, J, 3, 3) float local rotations, for column vectors.

    Returns:
        (P, J, 3, 4) float64: rotation and translation of column vectors.

    Raises:
        RigRewardError: joints or parents that are no hierarchy.
        RewardError: rotations of a wrong shape or not finite.
    """
    rest = check_joints(joints)
    up = check_parents(parents, len(rest))
    local = check_rotations(rotations, len(rest))
    order = np.concatenate(hierarchy_levels(up))
    return _chain(rest, up, order, local)


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


def check_rotations(rotations: ArrayLike, joint_count: int) -> NDArray[np.float64]:
    """Rotations as a contiguous, finite (P, J, 3, 3) float64 array, P >= 1.

    Raises:
        RewardError: otherwise.
    """
    array = np.asarray(rotations, dtype=np.float64)
    if array.ndim != 4 or array.shape[0] == 0 or array.shape[1:] != (joint_count, 3, 3):
        raise RewardError(
            f"rotations have shape {array.shape}; {joint_count} joints need (P, {joint_count}, 3, 3)"
        )
    if not np.isfinite(array).all():
        raise RewardError("a rotation is not finite; pass finite matrices")
    return np.ascontiguousarray(array)


def linear_blend_skinning(
    vertices: ArrayLike, weights: ArrayLike, matrices: ArrayLike
) -> NDArray[np.float64]:
    """Vertices moved by the weighted mean of their joints' transforms.

    Args:
        vertices: (S, 3) float rest positions, mesh frame.
        weights: (S, J) float >= 0; normalised here per vertex. A vertex with no weight stays at rest.
        matrices: (P, J, 3, 4) float from `skinning_matrices`.

    Returns:
        (P, S, 3) float64.

    Raises:
        RigRewardError: negative or non-finite weights.
        RewardError: shapes that do not fit.
    """
    points = np.ascontiguousarray(np.asarray(vertices, dtype=np.float64))
    transforms = np.asarray(matrices, dtype=np.float64)
    array = check_weights(weights, len(points), transforms.shape[1])
    return np.ascontiguousarray(skin(points, array, transforms).transpose(1, 0, 2))


def linear_blend_skinning_reference(
    vertices: ArrayLike, weights: ArrayLike, matrices: ArrayLike
) -> NDArray[np.float64]:
    """`linear_blend_skinning` in plain NumPy."""
    points = np.asarray(vertices, dtype=np.float64)
    transforms = np.asarray(matrices, dtype=np.float64)
    array = check_weights(weights, len(points), transforms.shape[1]).astype(np.float64)
    total = array.sum(axis=1, keepdims=True)
    shares = np.divide(array, total, out=np.zeros_like(array), where=total > NO_WEIGHT)
    homogeneous = np.concatenate([points, np.ones((len(points), 1))], axis=1)
    moved = np.einsum("sj,pjab,sb->psa", shares, transforms, homogeneous, optimize=True)
    return np.where(total > NO_WEIGHT, moved, points)


def skin(
    points: NDArray[np.float64], weights: NDArray[Any], transforms: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The unchecked kernel behind `linear_blend_skinning`; poses are in the middle: (S, P, 3) float64."""
    poses, joint_count = transforms.shape[:2]
    by_joint = np.ascontiguousarray(transforms.transpose(1, 0, 2, 3)).reshape(joint_count, poses * 12)
    return _skin(points, weights, by_joint)


def _translation(offset: NDArray[np.float64]) -> NDArray[np.float64]:
    matrix = np.eye(4)
    matrix[:3, 3] = offset
    return matrix


@njit(cache=True)
def _chain(rest: Any, parents: Any, order: Any, local: Any) -> Any:
    """Walk the hierarchy from the roots. (P, J, 3, 4) float64."""
    poses, joint_count = local.shape[:2]
    result = np.empty((poses, joint_count, 3, 4))
    heads = np.empty((joint_count, 3))
    for p in range(poses):
        for j in order:
            up = parents[j]
            for a in range(3):
                if up < 0:
                    heads[j, a] = rest[j, a]
                    for b in range(3):
                        result[p, j, a, b] = local[p, j, a, b]
                else:
                    heads[j, a] = heads[up, a]
                    for b in range(3):
                        heads[j, a] += result[p, up, a, b] * (rest[j, b] - rest[up, b])
                        turned = 0.0
                        for c in range(3):
                            turned += result[p, up, a, c] * local[p, j, c, b]
                        result[p, j, a, b] = turned
            for a in range(3):
                moved = heads[j, a]
                for b in range(3):
                    moved -= result[p, j, a, b] * rest[j, b]
                result[p, j, a, 3] = moved
    return result


@njit(cache=True, fastmath={"contract"})
def _skin(points: Any, weights: Any, matrices: Any) -> Any:
    """points (S, 3), weights (S, J), matrices (J, P * 12) -> (S, P, 3): blend the matrices, then apply them
    once.
    """
    count, width = weights.shape[1], matrices.shape[1]
    poses = width // 12
    moved = np.empty((points.shape[0], poses, 3))
    blend = np.empty(width)
    # The vertex's joints with weight, padded to a multiple of 4 with joint 0 at weight 0: four rows per pass
    # over `blend` take less time than one.
    used, share = np.zeros(count + 4, np.int64), np.zeros(count + 4)
    for v in range(points.shape[0]):
        total = 0.0
        kept = 0
        for j in range(count):
            w = np.float64(weights[v, j])
            used[kept], share[kept] = j, w
            kept += 1 if w > 0.0 else 0
            total += w
        used[kept : kept + 4], share[kept : kept + 4] = 0, 0.0
        blend[:] = 0.0
        for i in range(0, kept, 4):
            row0, row1 = matrices[used[i]], matrices[used[i + 1]]
            row2, row3 = matrices[used[i + 2]], matrices[used[i + 3]]
            w0, w1, w2, w3 = share[i], share[i + 1], share[i + 2], share[i + 3]
            for k in range(width):
                blend[k] += w0 * row0[k] + w1 * row1[k] + w2 * row2[k] + w3 * row3[k]
        x, y, z = points[v, 0], points[v, 1], points[v, 2]
        inverse = 1.0 / total if total > NO_WEIGHT else 0.0
        for p in range(poses):
            for a in range(3):
                k = p * 12 + a * 4
                turned = blend[k] * x + blend[k + 1] * y + blend[k + 2] * z + blend[k + 3]
                moved[v, p, a] = turned * inverse if total > NO_WEIGHT else points[v, a]
    return moved
