"""Pose augmentation: poses a rigged mesh by linear blend skinning and makes that its new bind pose."""

import numpy as np
from numpy.typing import NDArray

from data.mesh import Mesh
from data.rig import Rig
from data.transforms import in_mesh_frame, random_rotations


def randomly_posed(mesh: Mesh, rig: Rig, rng: np.random.Generator, max_angle: float) -> tuple[Mesh, Rig]:
    """Rotate each joint (the root too) about a random axis by up to `max_angle` radians; see `posed`."""
    return posed(mesh, rig, random_rotations(rng, len(rig.joints), max_angle))


def posed(mesh: Mesh, rig: Rig, rotations: NDArray[np.floating]) -> tuple[Mesh, Rig]:
    """Pose a mesh and its rig by linear blend skinning (LBS); the result is the new bind pose, mesh frame.

    rotations (J, 3, 3): each joint's local rotation for column vectors. Rest frames are world-aligned:
    G_j = G_parent · T(h_j - h_parent) · R_j with h the joints. A vertex is transformed by the mean of
    G_j · T(-h_j) under its normalised weights (specification, section 12.3); a vertex without weights does
    not move. If all vertices coincide in the pose, mesh and rig are returned unchanged.
    Raises ValueError if `rotations` has another shape.
    """
    if np.shape(rotations) != (len(rig.joints), 3, 3):
        raise ValueError(f"rotations have shape {np.shape(rotations)}; pass ({len(rig.joints)}, 3, 3)")
    rest = rig.joints.astype(np.float64)
    rotated = np.array(rotations, dtype=np.float64)
    heads = rest.copy()
    for joint, parent in enumerate(rig.parents.tolist()):
        if parent >= 0:
            heads[joint] = heads[parent] + rotated[parent] @ (rest[joint] - rest[parent])
            rotated[joint] = rotated[parent] @ rotated[joint]
    # x -> rotation x + offset as (J, 12) rows, blended for all vertices in one matrix product.
    offsets = heads - np.einsum("jab,jb->ja", rotated, rest)
    transforms = np.concatenate([rotated.reshape(-1, 9), offsets], axis=1).astype(np.float32)
    total = rig.weights.sum(axis=1, keepdims=True)
    blended = rig.weights @ transforms / np.where(total > 0, total, 1)
    points = mesh.vertices
    moved = np.einsum("vab,vb->va", blended[:, :9].reshape(-1, 3, 3), points) + blended[:, 9:]
    vertices = np.where(total > 0, moved, points)
    if not (vertices.max(axis=0) - vertices.min(axis=0)).max() > 0:
        return mesh, rig
    return in_mesh_frame(mesh, rig, vertices, heads)
