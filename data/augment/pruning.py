"""Skeleton augmentations: deletes joints, cuts off limbs, re-parents joints."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from data.mesh import Mesh
from data.rig import Rig
from data.sampling import face_areas
from data.transforms import in_mesh_frame

# Joints are not deleted if less than this share of the surface would remain, or if a remaining joint would
# lie further than this (mesh frame) outside the bounding box of the remaining surface: coordinate tokens
# cover only the box.
MIN_SURFACE = 0.2
MAX_OUTSIDE = 0.05
# A joint is re-parented to one of this many nearest joints: bones across the whole mesh teach nothing.
NEAREST_PARENTS = 4


def with_joints_deleted(mesh: Mesh, rig: Rig, rng: np.random.Generator, max_share: float) -> tuple[Mesh, Rig]:
    """Delete up to `max_share` of the joints, never the root, with their vertices (see `without_joints`).

    The number is uniform from 0 to the maximum.
    """
    count = int(rng.integers(int(max_share * len(rig.joints) + 1e-9) + 1))
    gone = np.zeros(len(rig.joints), dtype=bool)
    gone[1 + rng.permutation(len(rig.joints) - 1)[:count]] = True
    return without_joints(mesh, rig, gone)


def without_subtree(mesh: Mesh, rig: Rig, rng: np.random.Generator) -> tuple[Mesh, Rig]:
    """Cut off a random joint with its descendants and their vertices (see `without_joints`).

    Only joints whose subtree has at most half of all joints are drawn: limbs, not the body.
    """
    subtrees = _descendants(rig.parents)
    sizes = subtrees.sum(axis=1)
    small = np.flatnonzero(sizes * 2 <= len(sizes))
    small = small[small > 0]
    if not len(small):
        return mesh, rig
    return without_joints(mesh, rig, subtrees[int(rng.choice(small))])


def without_joints(mesh: Mesh, rig: Rig, gone: NDArray[np.bool_]) -> tuple[Mesh, Rig]:
    """Delete joints with the vertices they dominate; the result is in its own mesh frame.

    gone (J,) bool, False for the root. A joint dominates the vertices of which it has the largest weight;
    their faces are deleted, then all unreferenced vertices. Children of a deleted joint move to its nearest
    remaining ancestor. A vertex's remaining weights are scaled to their former sum. Mesh and rig are returned
    unchanged if too little surface would remain (MIN_SURFACE) or a joint would lie far outside it
    (MAX_OUTSIDE). Raises ValueError if `gone` has the wrong shape or includes the root.
    """
    if gone.shape != (len(rig.joints),) or gone[0]:
        raise ValueError(
            f"gone must hold one bool for each of {len(rig.joints)} joints and be False for the root"
        )
    if not gone.any():
        return mesh, rig
    dominant = rig.weights.argmax(axis=1)
    lost = gone[dominant] & (rig.weights[np.arange(len(dominant)), dominant] > 0)
    faces_kept = ~lost[mesh.faces].any(axis=1)
    areas = face_areas(mesh.vertices, mesh.faces)
    if areas[faces_kept].sum() < max(MIN_SURFACE * areas.sum(), 1e-12):
        return mesh, rig
    faces = mesh.faces[faces_kept]
    used = np.zeros(len(mesh.vertices), dtype=bool)
    used[faces] = True
    vertex_index = np.cumsum(used) - 1

    kept = ~gone
    weights = rig.weights[used]
    total = weights.sum(axis=1, keepdims=True)
    weights = weights[:, kept]
    left = weights.sum(axis=1, keepdims=True)
    weights *= np.divide(total, left, out=np.ones_like(total), where=left > 0)
    ancestors = _nearest_kept(rig.parents, kept)
    joint_index = np.cumsum(kept) - 1
    parents = np.where(ancestors[kept] < 0, -1, joint_index[ancestors[kept]])
    names = tuple(name for name, keep in zip(rig.names, kept.tolist(), strict=True) if keep)
    vertices, joints = mesh.vertices[used], rig.joints[kept]
    smaller = replace(mesh, vertices=vertices, faces=vertex_index[faces])
    result = in_mesh_frame(smaller, Rig(joints, parents, weights, names), vertices, joints)
    outside = np.abs(result[1].joints) - 1 > MAX_OUTSIDE
    if (outside & (np.abs(joints) <= 1)).any():
        return mesh, rig
    return result


def reparented(rig: Rig, rng: np.random.Generator, max_share: float) -> Rig:
    """Re-parent up to `max_share` of the joints, one after the other; positions do not change.

    The number is uniform from 0 to the maximum. The new parent is one of the nearest joints outside the
    joint's own subtree, so the result is a tree with the same root; joints are reordered so that parents
    come first. A skin encoder sees one bone's weights at a time and is not affected directly, but the
    hierarchy decides what later deletion and posing do to the mesh, so stage 1 sees shapes that the true
    hierarchy would not produce. The paper uses it in stage 1 only: in stage 2 the model must learn the tree.
    """
    count = len(rig.joints)
    parents = rig.parents.copy()
    for joint in 1 + rng.permutation(count - 1)[: int(rng.integers(int(max_share * count + 1e-9) + 1))]:
        allowed = ~_descendants(parents)[joint]
        allowed[parents[joint]] = False
        others = np.flatnonzero(allowed)
        if len(others):
            distances = np.linalg.norm(rig.joints[others] - rig.joints[joint], axis=1)
            nearest = others[np.argsort(distances, kind="stable")[:NEAREST_PARENTS]]
            parents[joint] = rng.choice(nearest)
    # Sorted by depth (number of ancestors), so that parents come first; otherwise in the old order.
    order = np.argsort(_descendants(parents).sum(axis=0), kind="stable")
    new_index = np.argsort(order)
    ordered = np.where(parents[order] < 0, -1, new_index[parents[order]])
    names = tuple(rig.names[joint] for joint in order.tolist())
    return Rig(rig.joints[order], ordered, rig.weights[:, order], names)


def _descendants(parents: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(J, J) bool: [a, j] is True if joint j is a or a descendant of it. Parents in any order, no cycles."""
    below = np.eye(len(parents), dtype=bool)
    joints = np.arange(len(parents))
    above = parents
    while (above >= 0).any():
        inside = above >= 0
        below[above[inside], joints[inside]] = True
        above = np.where(inside, parents[above], -1)
    return below


def _nearest_kept(parents: NDArray[np.int64], kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Each joint's nearest ancestor (J,) that is kept; -1 for the root."""
    above = parents.copy()
    while (lost := (above >= 0) & ~kept[above]).any():
        above[lost] = parents[above[lost]]
    return above
