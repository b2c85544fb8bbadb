"""Rigged meshes with joints deleted, limbs cut off, or joints hung below another parent."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from data.mesh import Mesh
from data.rig import Rig
from data.sampling import face_areas
from data.transforms import in_mesh_frame

# A cut is skipped if less than this share of the surface would be left, or if a joint that stays would lie
# further than this outside the box of the surface that stays: tokens reach no further than the box.
LEAST_SURFACE = 0.2
MOST_OUTSIDE = 0.05
# A joint is hung below one of this many nearest joints: limbs torn across the whole mesh teach nothing.
NEAREST_PARENTS = 4


def with_joints_deleted(mesh: Mesh, rig: Rig, rng: np.random.Generator, max_share: float) -> tuple[Mesh, Rig]:
    """Delete random joints, never the root, up to `max_share` of all, with their vertices (`without_joints`).

    How many is uniform from 0 to the greatest number allowed.
    """
    count = int(rng.integers(int(max_share * len(rig.joints) + 1e-9) + 1))
    gone = np.zeros(len(rig.joints), dtype=bool)
    gone[1 + rng.permutation(len(rig.joints) - 1)[:count]] = True
    return without_joints(mesh, rig, gone)


def without_subtree(mesh: Mesh, rig: Rig, rng: np.random.Generator) -> tuple[Mesh, Rig]:
    """Cut off a random joint with all joints below it and their vertices (`without_joints`).

    Only joints with at most half of all joints in their sub-tree are drawn: limbs, not the body.
    """
    below = _below(rig.parents)
    sizes = below.sum(axis=1)
    small = np.flatnonzero(sizes * 2 <= len(sizes))
    small = small[small > 0]
    if not len(small):
        return mesh, rig
    return without_joints(mesh, rig, below[int(rng.choice(small))])


def without_joints(mesh: Mesh, rig: Rig, gone: NDArray[np.bool_]) -> tuple[Mesh, Rig]:
    """Delete joints with the vertices they own; what is left comes back in its own mesh frame.

    gone (J,) bool, not the root. A joint owns the vertices whose greatest weight it has; the faces that use
    one of them go, and so does every vertex that no face uses any more. Children of a deleted joint hang
    below its nearest ancestor that stays. The other weights of a vertex grow to the sum they had before.
    Nothing is done if too little would be left (LEAST_SURFACE), or a joint far outside it (MOST_OUTSIDE).
    """
    if gone.shape != (len(rig.joints),) or gone[0]:
        raise ValueError(f"say for each of {len(rig.joints)} joints whether it goes; the root must stay")
    if not gone.any():
        return mesh, rig
    owners = rig.weights.argmax(axis=1)
    lost = gone[owners] & (rig.weights[np.arange(len(owners)), owners] > 0)
    faces_kept = ~lost[mesh.faces].any(axis=1)
    areas = face_areas(mesh.vertices, mesh.faces)
    if areas[faces_kept].sum() < max(LEAST_SURFACE * areas.sum(), 1e-12):
        return mesh, rig
    faces = mesh.faces[faces_kept]
    used = np.zeros(len(mesh.vertices), dtype=bool)
    used[faces] = True
    place = np.cumsum(used) - 1

    kept = ~gone
    weights = rig.weights[used]
    total = weights.sum(axis=1, keepdims=True)
    weights = weights[:, kept]
    left = weights.sum(axis=1, keepdims=True)
    weights *= np.divide(total, left, out=np.ones_like(total), where=left > 0)
    above = _nearest_kept(rig.parents, kept)
    joint_place = np.cumsum(kept) - 1
    parents = np.where(above[kept] < 0, -1, joint_place[above[kept]])
    names = tuple(name for name, stays in zip(rig.names, kept.tolist(), strict=True) if stays)
    vertices, joints = mesh.vertices[used], rig.joints[kept]
    smaller = replace(mesh, vertices=vertices, faces=place[faces])
    result = in_mesh_frame(smaller, Rig(joints, parents, weights, names), vertices, joints)
    outside = np.abs(result[1].joints) - 1 > MOST_OUTSIDE
    if (outside & (np.abs(joints) <= 1)).any():
        return mesh, rig
    return result


def reparented(rig: Rig, rng: np.random.Generator, max_share: float) -> Rig:
    """Hang up to `max_share` of the joints, one after the other, below another parent; nothing moves.

    How many is uniform from 0 to the greatest number allowed. The new parent is one of the nearest joints
    outside the joint's own sub-tree, so the result is a tree with the same root; joints are reordered where
    a parent would come late. A skinning encoder that sees one bone's weights at a time notices nothing of
    this by itself: it changes what later deletion and posing do to the mesh, so that stage 1 meets shapes
    that the true hierarchy would not give. The paper uses it in stage 1 only; in stage 2 the tree is what
    the model must learn.
    """
    count = len(rig.joints)
    parents = rig.parents.copy()
    for joint in 1 + rng.permutation(count - 1)[: int(rng.integers(int(max_share * count + 1e-9) + 1))]:
        allowed = ~_below(parents)[joint]
        allowed[parents[joint]] = False
        others = np.flatnonzero(allowed)
        if len(others):
            distances = np.linalg.norm(rig.joints[others] - rig.joints[joint], axis=1)
            nearest = others[np.argsort(distances, kind="stable")[:NEAREST_PARENTS]]
            parents[joint] = rng.choice(nearest)
    # A joint is as deep as it has ancestors: parents first, else the old order.
    order = np.argsort(_below(parents).sum(axis=0), kind="stable")
    place = np.argsort(order)
    ordered = np.where(parents[order] < 0, -1, place[parents[order]])
    names = tuple(rig.names[joint] for joint in order.tolist())
    return Rig(rig.joints[order], ordered, rig.weights[:, order], names)


def _below(parents: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(J, J) bool: [a, j] says that joint j is a or below it. Parents in any order, no cycles."""
    below = np.eye(len(parents), dtype=bool)
    joints = np.arange(len(parents))
    above = parents
    while (above >= 0).any():
        inside = above >= 0
        below[above[inside], joints[inside]] = True
        above = np.where(inside, parents[above], -1)
    return below


def _nearest_kept(parents: NDArray[np.int64], kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    above = parents.copy()
    while (lost := (above >= 0) & ~kept[above]).any():
        above[lost] = parents[above[lost]]
    return above
