"""Builds a valid mesh and rig from raw arrays: repairs what is unambiguous, refuses the rest."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.formats.load import unique_names
from data.formats.rig_npz import RiggedMesh
from data.mesh import Mesh, MeshError, UpAxis, check_triangles, normalise, y_up
from data.rig import Rig, check_weights

# Rounding may leave weights slightly below 0; anything lower is an exporter error.
NEGATIVE_NOISE = 1e-4
# A joint with weight farther out than this (in half sides of the bounding box) means that skeleton and mesh
# use different units.
FARTHEST_JOINT = 10.0


@dataclass(frozen=True)
class RepairedRig:
    """A valid rig with notes on its repairs, such as "2 roots joined"; no notes if none was needed.

    `part`: which rig of its file it is, a number or the file's own identifier; empty if it is the only one.
    """

    rigged: RiggedMesh
    notes: tuple[str, ...]
    part: str = ""


def assemble(
    name: str,
    vertices: ArrayLike,
    faces: ArrayLike,
    joints: ArrayLike,
    parents: Sequence[int],
    weights: NDArray[np.floating],
    names: Sequence[str] | None,
    first_root: int | None = None,
    up: UpAxis | None = None,
) -> tuple[Mesh, Rig, tuple[str, ...]]:
    """Mesh and rig in the mesh frame from raw arrays in any common frame, and notes on the repairs.

    vertices (V, 3), faces (F, 3), joints (J, 3), parents (J,) with -1 for roots, weights (V, J). `up`: the
    axis that points up in the arrays (None: y); "z" turns vertices and joints to y-up.
    Unreferenced vertices are dropped with their weights; `repair_rig` does the rest. Raises MeshError
    naming `name` for arrays of wrong shape or dtype and for whatever `normalise` or `repair_rig` refuses.
    """
    points, triangles = check_triangles(vertices, faces, name)
    positions = np.asarray(joints)
    if positions.ndim != 2 or positions.shape[1] != 3 or not len(positions):
        raise MeshError(f"{name}: the joints have shape {positions.shape}; pass (J, 3)")
    if positions.dtype.kind not in "iuf":
        raise MeshError(f"{name}: the joints have dtype {positions.dtype}; pass numbers")
    if weights.shape != (len(points), len(positions)):
        raise MeshError(
            f"{name}: the skinning weights have shape {weights.shape} for {len(points)} vertices and "
            f"{len(positions)} joints; export the rig again"
        )
    points, positions = y_up(points, up), y_up(positions, up)
    kept, compact = np.unique(triangles, return_inverse=True)
    notes = []
    if len(kept) < len(points):
        notes.append(f"{len(points) - len(kept)} unreferenced vertices dropped")
    mesh = normalise(points[kept], compact.reshape(-1, 3), name)
    with np.errstate(over="ignore", invalid="ignore"):
        framed = ((positions.astype(np.float64) - mesh.centre) * mesh.scale).astype(np.float32)
    rig, repairs = repair_rig(name, framed, parents, weights[kept], names, first_root)
    return mesh, rig, (*notes, *repairs)


def repair_rig(
    name: str,
    joints: NDArray[np.float32],
    parents: Sequence[int],
    weights: NDArray[np.floating],
    names: Sequence[str] | None,
    first_root: int | None = None,
) -> tuple[Rig, tuple[str, ...]]:
    """A valid rig and notes on what was repaired.

    joints (J, 3) float32, mesh frame; parents (J,), -1 or the joint itself for a root; weights (V, J).
    Repairs: rows of weights are normalised to sum to 1 (specification, section 13; a row of zeros stays, so
    that vertex is not bound to any joint); several roots are joined below `first_root` if given, otherwise
    below the one with the most descendants; joints are reordered, as little as necessary, so that parents
    come first; empty and duplicate names become unique.
    Raises MeshError naming `name`: NaN, infinite or negative weights, no weight at all, parents that are out
    of range or form a cycle, joints that are not finite or all coincident, joints with weight far outside the
    mesh.
    """
    count = len(joints)
    notes: list[str] = []
    _check_joints(name, joints, weights)
    linked = _with_one_root(name, parents, count, first_root, notes)
    order = parents_first(name, linked)
    if order != list(range(count)):
        notes.append("joints reordered so that parents come first")
    new_index = np.empty(count, dtype=np.int64)
    new_index[order] = np.arange(count)
    new_parents = np.array(
        [-1 if linked[joint] < 0 else new_index[linked[joint]] for joint in order], dtype=np.int64
    )
    unique = _unique_joint_names(name, names, count, notes)
    normalised = _normalised(name, weights, notes)
    rig = Rig(joints[order], new_parents, normalised[:, order], tuple(unique[joint] for joint in order))
    return rig, tuple(notes)


def _check_joints(name: str, joints: NDArray[np.float32], weights: NDArray[np.floating]) -> None:
    if not np.isfinite(joints).all():
        bad = int(np.flatnonzero(~np.isfinite(joints).all(axis=1))[0])
        raise MeshError(f"{name}: joint {bad} is not finite; repair the skeleton")
    # Poles and targets without weight may stand anywhere.
    bound = (weights > 0).any(axis=0)
    far = np.where(bound, np.abs(joints).max(axis=1), 0)
    if far.max() > FARTHEST_JOINT:
        raise MeshError(
            f"{name}: joint {int(far.argmax())} is {far.max():.0f} half side lengths away from the centre of "
            "the mesh's bounding box; use the same units for mesh and skeleton"
        )
    if len(joints) > 1 and np.ptp(joints, axis=0).max() < 1e-6:
        raise MeshError(f"{name}: all {len(joints)} joints coincide; export the bind pose")


def _with_one_root(
    name: str, parents: Sequence[int], count: int, first_root: int | None, notes: list[str]
) -> list[int]:
    """Parents with a single root, -1; the other roots become its children."""
    if len(parents) != count:
        raise MeshError(f"{name}: {len(parents)} parents for {count} joints; pass one per joint")
    up = [-1 if parent == joint else parent for joint, parent in enumerate(parents)]
    wrong = next((joint for joint, parent in enumerate(up) if not -1 <= parent < count), None)
    if wrong is not None:
        raise MeshError(
            f"{name}: joint {wrong} has parent {up[wrong]}, but there are {count} joints; repair the skeleton"
        )
    roots = [joint for joint, parent in enumerate(up) if parent < 0]
    if not roots:
        raise MeshError(f"{name}: no joint is a root because the parents form a cycle; repair the skeleton")
    if first_root is not None and first_root not in roots:
        raise MeshError(f"{name}: the root, joint {first_root}, has a parent; repair the skeleton")
    if len(roots) > 1:
        sizes = _descendants(up)
        main = first_root if first_root is not None else max(roots, key=lambda root: (sizes[root], -root))
        for root in roots:
            if root != main:
                up[root] = main
        notes.append(f"{len(roots)} roots joined")
    return up


def _descendants(up: list[int]) -> list[int]:
    """The number of descendants of each joint. Terminates even if some parents form a cycle."""
    sizes = [0] * len(up)
    for joint in range(len(up)):
        above, steps = up[joint], 0
        while above >= 0 and steps < len(up):
            sizes[above] += 1
            above, steps = up[above], steps + 1
    return sizes


def parents_first(name: str, up: list[int]) -> list[int]:
    """Joint indices with parents first: of all joints whose parent is placed, the lowest index is next."""
    children: list[list[int]] = [[] for _ in up]
    for joint, parent in enumerate(up):
        if parent >= 0:
            children[parent].append(joint)
    ready, order = [up.index(-1)], []
    while ready:
        joint = heapq.heappop(ready)
        order.append(joint)
        for child in children[joint]:
            heapq.heappush(ready, child)
    if len(order) < len(up):
        lost = min(set(range(len(up))) - set(order))
        raise MeshError(f"{name}: the parents of joint {lost} form a cycle; repair the skeleton")
    return order


def _unique_joint_names(name: str, names: Sequence[str] | None, count: int, notes: list[str]) -> list[str]:
    if names is None:
        return [f"bone_{joint}" for joint in range(count)]
    if len(names) != count:
        raise MeshError(f"{name}: {len(names)} joint names for {count} joints; pass one per joint")
    filled = [text or f"bone_{joint}" for joint, text in enumerate(names)]
    unique = unique_names(filled)
    renamed = sum(old != new for old, new in zip(names, unique, strict=True))
    if renamed:
        notes.append(f"{renamed} empty or duplicate joint names replaced")
    return unique


def _normalised(name: str, weights: NDArray[np.floating], notes: list[str]) -> NDArray[np.float32]:
    values = np.asarray(weights, dtype=np.float32)
    noise = (values < 0) & (values >= -NEGATIVE_NOISE)
    if noise.any():
        values = np.where(noise, np.float32(0), values)
        notes.append(f"{int(noise.sum())} slightly negative weights set to 0")
    check_weights(values, values.shape[1], name)
    total = values.sum(axis=1, dtype=np.float64)
    bound = total > 1e-8
    if not bound.any():
        raise MeshError(f"{name}: all skinning weights are 0; bind the mesh to the skeleton")
    off = int((np.abs(total[bound] - 1) > 1e-3).sum())
    if off:
        notes.append(f"weights of {off} vertices normalised to sum to 1")
    if not bound.all():
        notes.append(f"{int((~bound).sum())} vertices not bound to any joint")
    factor = np.divide(1.0, total, out=np.zeros_like(total), where=bound)
    return (values * factor[:, None]).astype(np.float32)
