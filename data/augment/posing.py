"""A random pose of a rigged mesh taken as its new bind pose."""

import numpy as np
from numpy.typing import NDArray

from data.mesh import Mesh
from data.rig import Rig
from data.transforms import in_mesh_frame, random_rotations


def randomly_posed(mesh: Mesh, rig: Rig, rng: np.random.Generator, max_angle: float) -> tuple[Mesh, Rig]:
    """Turn each joint, the root too, about a random axis by up to `max_angle` radians; see `posed`."""
    return posed(mesh, rig, random_rotations(rng, len(rig.joints), max_angle))


def posed(mesh: Mesh, rig: Rig, rotations: NDArray[np.floating]) -> tuple[Mesh, Rig]:
    """The mesh and rig in a pose, by linear blend skinning, as a new bind pose in the mesh frame.

    rotations (J, 3, 3): each joint's local rotation for column vectors. Rest frames are aligned with the
    world's axes: G_j = G_parent · T(h_j - h_parent) · R_j, h the joints; a vertex moves by the mean of
    G_j · T(-h_j), weighted by its weights divided by their sum. A vertex without weight stays.
    """
    if np.shape(rotations) != (len(rig.joints), 3, 3):
        raise ValueError(f"rotations have shape {np.shape(rotations)}; give ({len(rig.joints)}, 3, 3)")
    rest = rig.joints.astype(np.float64)
    turns = np.array(rotations, dtype=np.float64)
    heads = rest.copy()
    for joint, parent in enumerate(rig.parents.tolist()):
        if parent >= 0:
            heads[joint] = heads[parent] + turns[parent] @ (rest[joint] - rest[parent])
            turns[joint] = turns[parent] @ turns[joint]
    # x -> turn x + offset, as (J, 12): blended per vertex in one product.
    offsets = heads - np.einsum("jab,jb->ja", turns, rest)
    maps = np.concatenate([turns.reshape(-1, 9), offsets], axis=1).astype(np.float32)
    total = rig.weights.sum(axis=1, keepdims=True)
    blended = rig.weights @ maps / np.where(total > 0, total, 1)
    points = mesh.vertices
    moved = np.einsum("vab,vb->va", blended[:, :9].reshape(-1, 3, 3), points) + blended[:, 9:]
    vertices = np.where(total > 0, moved, points)
    if not (vertices.max(axis=0) - vertices.min(axis=0)).max() > 0:
        return mesh, rig
    return in_mesh_frame(mesh, rig, vertices, heads)
