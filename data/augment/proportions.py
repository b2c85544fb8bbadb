"""Proportion augmentation: gives the limbs of a rigged mesh other lengths and girths."""

import numpy as np
from numpy.typing import NDArray

from data.mesh import Mesh
from data.rig import Rig
from data.transforms import in_mesh_frame

# Joints within this distance (mesh frame) of each other's mirror image are a pair.
_PAIR_DISTANCE = 0.05
# No factor is more than this many standard deviations from 1, in logarithms.
_MOST_SIGMA = 2.0


def reproportioned(mesh: Mesh, rig: Rig, rng: np.random.Generator, sigma: float) -> tuple[Mesh, Rig]:
    """Draw a length and a girth factor for each limb, log-normal with `sigma`; see `with_proportions`.

    A limb is a chain of joints without branches. Limbs that mirror each other share their factors, so a
    symmetric character stays symmetric.
    """
    limbs = limbs_of(rig)
    count = int(limbs.max()) + 1
    factors = np.exp(sigma * np.clip(rng.standard_normal((count, 2)), -_MOST_SIGMA, _MOST_SIGMA))
    return with_proportions(mesh, rig, *factors[limbs].T)


def with_proportions(
    mesh: Mesh, rig: Rig, lengths: NDArray[np.floating], girths: NDArray[np.floating]
) -> tuple[Mesh, Rig]:
    """Stretch every joint's part along its bone and across it; the result is in its own mesh frame.

    lengths, girths (J,), above 0. Joint j maps its surroundings by A_j = girth I + (length - girth) d dᵀ,
    where d is the direction of its bone, to its only child or, without children, from its parent. A joint
    with several children has no such direction: A_j is √(length · girth) I. Children follow their parents,
    h'_j = h'_parent + A_parent (h_j - h_parent), and a vertex moves to the mean of h'_j + A_j (v - h_j)
    under its normalised weights, as in linear blend skinning; a vertex without weights does not move. If all
    vertices would coincide, mesh and rig are returned unchanged. Raises ValueError for factors of another
    shape.
    """
    for factors in (lengths, girths):
        if np.shape(factors) != (len(rig.joints),):
            raise ValueError(f"factors have shape {np.shape(factors)}; pass ({len(rig.joints)},)")
    rest = rig.joints.astype(np.float64)
    maps = _maps(rest, rig.parents, np.asarray(lengths, np.float64), np.asarray(girths, np.float64))
    heads = rest.copy()
    for joint, parent in enumerate(rig.parents.tolist()):
        if parent >= 0:
            heads[joint] = heads[parent] + maps[parent] @ (rest[joint] - rest[parent])
    offsets = heads - np.einsum("jab,jb->ja", maps, rest)
    transforms = np.concatenate([maps.reshape(-1, 9), offsets], axis=1).astype(np.float32)
    total = rig.weights.sum(axis=1, keepdims=True)
    blended = rig.weights @ transforms / np.where(total > 0, total, 1)
    moved = np.einsum("vab,vb->va", blended[:, :9].reshape(-1, 3, 3), mesh.vertices) + blended[:, 9:]
    vertices = np.where(total > 0, moved, mesh.vertices)
    if not (vertices.max(axis=0) - vertices.min(axis=0)).max() > 0:
        return mesh, rig
    return in_mesh_frame(mesh, rig, vertices, heads)


def _maps(
    rest: NDArray[np.float64],
    parents: NDArray[np.int64],
    lengths: NDArray[np.float64],
    girths: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The linear map of each joint (J, 3, 3), see `with_proportions`."""
    count = len(rest)
    children = np.bincount(parents[1:], minlength=count)
    bone = np.zeros((count, 3))
    inner = np.arange(1, count)
    bone[parents[1:]] = rest[1:] - rest[parents[1:]]  # the only child's, where there is one
    leaf = inner[children[1:] == 0]
    bone[leaf] = rest[leaf] - rest[parents[leaf]]
    size = np.linalg.norm(bone, axis=1)
    straight = (children <= 1) & (size > 1e-6)
    unit = bone / np.where(straight, size, 1)[:, None]
    along = np.where(straight, lengths - girths, 0.0)
    across = np.where(straight, girths, np.sqrt(lengths * girths))
    return across[:, None, None] * np.eye(3) + along[:, None, None] * unit[:, :, None] * unit[:, None, :]


def limbs_of(rig: Rig) -> NDArray[np.int64]:
    """The limb of each joint (J,): 0, 1, …; mirror images share one.

    Mirrored means across the plane x = constant through the root. Only joints of equal depth are paired, and
    limbs by their first joints.
    """
    parents = rig.parents
    count = len(parents)
    children = np.bincount(parents[1:], minlength=count)
    mirrored = rig.joints * np.array([-1, 1, 1]) + np.array([2, 0, 0]) * rig.joints[0, 0]
    depth = np.zeros(count, dtype=np.int64)
    limb = np.zeros(count, dtype=np.int64)
    first: list[int] = [0]
    for joint in range(1, count):
        parent = parents[joint]
        depth[joint] = depth[parent] + 1
        if children[parent] == 1:
            limb[joint] = limb[parent]
            continue
        starts = [start for start in first if depth[start] == depth[joint]]
        gaps = np.linalg.norm(rig.joints[starts] - mirrored[joint], axis=1) if starts else np.empty(0)
        if len(gaps) and gaps.min() < _PAIR_DISTANCE:
            limb[joint] = limb[starts[int(gaps.argmin())]]
        else:
            limb[joint] = limb.max() + 1
            first.append(joint)
    return limb
