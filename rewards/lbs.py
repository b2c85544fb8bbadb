"""Linear blend skinning (LBS): the vertices of a rig in given poses.

    G_j = G_parent · T(h_j - h_parent) · R_j                 posed frame of joint j
    x'  = (sum over j of w_j · G_j · T(-h_j)) · x / (sum over j of w_j)

h are the joints' rest positions, R their local rotations, T translations; rest frames are aligned with the
world's axes, vectors are columns.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rewards.errors import RewardError
from rewards.kernels import skinning
from rewards.skeleton import check_joints, check_parents, hierarchy_levels
from rewards.weights import check_weights

NO_WEIGHT = skinning.NO_WEIGHT


def skinning_matrices(joints: ArrayLike, parents: ArrayLike, rotations: ArrayLike) -> NDArray[np.float64]:
    """Each joint's rest-to-posed transform `G_j · T(-h_j)`.

    Args:
        joints: (J, 3) float rest positions h, mesh frame.
        parents: (J,) int, -1 for a root; any order, no cycles.
        rotations: (P, J, 3, 3) float local rotations R of P poses.

    Returns:
        (P, J, 3, 4) float64: rotation and translation.

    Raises:
        RigRewardError: joints or parents that do not form a hierarchy.
        RewardError: rotations of a wrong shape or not finite.
    """
    rest = check_joints(joints)
    up = check_parents(parents, len(rest))
    local = check_rotations(rotations, len(rest))
    order = np.concatenate(hierarchy_levels(up))
    return skinning.chain_transforms(rest, up, order, local)


def linear_blend_skinning(
    vertices: ArrayLike, weights: ArrayLike, matrices: ArrayLike
) -> NDArray[np.float64]:
    """Posed vertices: each moved by the weighted mean of its joints' transforms.

    Args:
        vertices: (S, 3) float rest positions, mesh frame.
        weights: (S, J) float >= 0, normalised per vertex here; a vertex without weight stays at rest.
        matrices: (P, J, 3, 4) float from `skinning_matrices`.

    Returns:
        (P, S, 3) float64.

    Raises:
        RigRewardError: negative or non-finite weights.
        RewardError: weights that do not fit the vertices and matrices.
    """
    points = np.ascontiguousarray(np.asarray(vertices, dtype=np.float64))
    transforms = np.asarray(matrices, dtype=np.float64)
    array = check_weights(weights, len(points), transforms.shape[1])
    return np.ascontiguousarray(skin(points, array, transforms).transpose(1, 0, 2))


def skin(
    points: NDArray[np.float64], weights: NDArray[Any], transforms: NDArray[np.float64]
) -> NDArray[np.float64]:
    """`linear_blend_skinning` unchecked, with a vertex's poses side by side: (S, P, 3) float64."""
    poses, joint_count = transforms.shape[:2]
    by_joint = np.ascontiguousarray(transforms.transpose(1, 0, 2, 3)).reshape(joint_count, poses * 12)
    return skinning.skin_vertices(points, weights, by_joint)


def check_rotations(rotations: ArrayLike, joint_count: int) -> NDArray[np.float64]:
    """Rotations as a contiguous, finite (P, J, 3, 3) float64 array, P >= 1.

    Raises:
        RewardError: a wrong shape or a matrix that is not finite.
    """
    array = np.asarray(rotations, dtype=np.float64)
    if array.ndim != 4 or array.shape[0] == 0 or array.shape[1:] != (joint_count, 3, 3):
        raise RewardError(
            f"rotations have shape {array.shape}; {joint_count} joints need (P, {joint_count}, 3, 3)"
        )
    if not np.isfinite(array).all():
        raise RewardError("a rotation is not finite; pass finite matrices")
    return np.ascontiguousarray(array)
