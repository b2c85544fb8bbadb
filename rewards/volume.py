"""Volume preservation under pose: how much local volume linear blend skinning keeps in posed meshes.

    R_vp = mean over poses and vertices of clip(det(sum over j of w_j · A_j / sum over j of w_j), 0, 1)

A_j is the rotation of joint j's skinning matrix. A blend of equal rotations keeps volume (determinant 1); one
of different rotations shrinks it, to nothing where half the weight is turned by 180 degrees: the collapsed
elbow and the candy wrapper. It needs neither faces nor a closed surface, so that it works for open meshes,
for parts, and for the subset of vertices on which large meshes are scored. This project's own.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rewards.kernels.volume import kept_volume
from rewards.lbs import skinning_matrices
from rewards.weights import check_weights


def volume_preservation(
    joints: ArrayLike, parents: ArrayLike, weights: ArrayLike, rotations: ArrayLike
) -> float:
    """R_vp of a rig in given poses.

    Args:
        joints: (J, 3) float, mesh frame.
        parents: (J,) int, -1 for a root; any order, no cycles.
        weights: (S, J) float >= 0, normalised per vertex here; a vertex without weight stays at rest, and
            keeps its volume.
        rotations: (P, J, 3, 3) float local joint rotations, for column vectors.

    Returns:
        A float in [0, 1]; 1 if every vertex moves rigidly.

    Raises:
        RigRewardError: invalid joints, parents or weights.
        RewardError: weights or rotations that do not fit this rig.
    """
    matrices = skinning_matrices(joints, parents, rotations)
    return volume_of(check_weights(weights, joint_count=matrices.shape[1]), matrices)


def volume_of(weights: NDArray[Any], matrices: NDArray[np.float64]) -> float:
    """R_vp unchecked: weights (S, J) from `check_weights`, matrices (P, J, 3, 4) from `skinning_matrices`."""
    poses, joint_count = matrices.shape[:2]
    turns = np.ascontiguousarray(matrices[..., :3].transpose(1, 0, 2, 3)).reshape(joint_count, poses * 9)
    return float(kept_volume(weights, turns) / (len(weights) * poses))
