"""The rig in bind pose (`Rig`: joints, parents, skinning weights) and its canonical joint order."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.mesh import MeshError


@dataclass(frozen=True, eq=False)
class Rig:
    """A skeleton with skinning weights, in bind pose and in the frame of its mesh (usually the mesh frame).

    `joints` (J, 3) float32. `parents` (J,) int64: -1 for the single root at index 0, parents[i] < i.
    `weights` (V, J) float32, finite and >= 0, one row per vertex of the mesh; rows need not sum to 1
    (the decoder's are a sigmoid per bone). `names`: J joint names, "bone_<i>" by default.
    Raises MeshError if any of this is violated.
    """

    joints: NDArray[np.float32]
    parents: NDArray[np.int64]
    weights: NDArray[np.float32]
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        joints = np.ascontiguousarray(self.joints, dtype=np.float32)
        parents = np.asarray(self.parents)
        weights = np.ascontiguousarray(self.weights, dtype=np.float32)
        if joints.ndim != 2 or joints.shape[1] != 3 or not len(joints):
            raise MeshError(f"rig: joints have shape {joints.shape}; pass (J, 3) with at least one joint")
        count = len(joints)
        if parents.shape != (count,) or not np.issubdtype(parents.dtype, np.integer):
            raise MeshError(
                f"rig: parents have shape {parents.shape}, dtype {parents.dtype}; pass {count} integers"
            )
        parents = parents.astype(np.int64)
        if parents[0] != -1 or (parents[1:] < 0).any():
            raise MeshError("rig: the single root (parent -1) must be joint 0; join or reorder the roots")
        late = np.flatnonzero(parents >= np.arange(count))
        if len(late):
            raise MeshError(
                f"rig: joint {late[0]} comes before its parent {parents[late[0]]}; order parents first"
            )
        if not np.isfinite(joints).all():
            bad = int(np.flatnonzero(~np.isfinite(joints).all(axis=1))[0])
            raise MeshError(f"rig: joint {bad} is not finite; repair the skeleton")
        check_weights(weights, count)
        names = tuple(self.names) or tuple(f"bone_{i}" for i in range(count))
        if len(names) != count:
            raise MeshError(f"rig: {len(names)} names for {count} joints; pass one per joint")
        object.__setattr__(self, "joints", joints)
        object.__setattr__(self, "parents", parents)
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "names", names)


def check_weights(weights: NDArray[np.floating], joint_count: int, name: str = "rig") -> None:
    """Raise MeshError, naming `name`, unless weights are (V, joint_count), finite and >= 0."""
    if weights.ndim != 2 or weights.shape[1] != joint_count:
        raise MeshError(f"{name}: weights have shape {weights.shape}; pass (V, {joint_count})")
    if not np.isfinite(weights).all():
        row = int(np.flatnonzero(~np.isfinite(weights).all(axis=1))[0])
        raise MeshError(
            f"{name}: the skinning weights of vertex {row} are NaN or infinite; repair the weights"
        )
    if weights.size and weights.min() < 0:
        row = int(np.flatnonzero((weights < 0).any(axis=1))[0])
        raise MeshError(f"{name}: vertex {row} has a negative skinning weight; repair the weights")


def depth_first(rig: Rig) -> Rig:
    """The same rig in canonical joint order, see `depth_first_order`; weight columns and names follow."""
    return reorder(rig, depth_first_order(rig.joints, rig.parents))


def depth_first_order(joints: NDArray[np.floating], parents: NDArray[np.int64]) -> NDArray[np.int64]:
    """Canonical joint order, the order of the skeleton tokens (specification, section 10): (J,) int64.

    joints (J, 3), parents (J,), both as in `Rig`. Entry i is the index of the joint that comes i-th. Depth
    first from the root; children are visited in order of their (y, z, x), ties in their old order. The
    coordinates are compared as given, not as quantised for the tokens: joints that fall into one bin keep the
    order of their exact positions.
    """
    children: list[list[int]] = [[] for _ in parents]
    for joint, parent in enumerate(parents.tolist()):
        if parent >= 0:
            children[parent].append(joint)
    keys = [(y, z, x) for x, y, z in joints.tolist()]
    order: list[int] = []
    stack = [0]
    while stack:
        joint = stack.pop()
        order.append(joint)
        stack.extend(sorted(children[joint], key=lambda child: (keys[child], child), reverse=True))
    return np.array(order, dtype=np.int64)


def reorder(rig: Rig, order: NDArray[np.int64]) -> Rig:
    """The rig with joint order[i] at index i; `order` (J,) is a permutation that keeps parents first."""
    parents = reordered_parents(rig.parents, order)
    return Rig(rig.joints[order], parents, rig.weights[:, order], tuple(rig.names[i] for i in order))


def reordered_parents(parents: NDArray[np.int64], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Parents (J,), -1 for the root, after joint order[i] has moved to index i."""
    new_index = np.empty(len(order), dtype=np.int64)
    new_index[order] = np.arange(len(order))
    old = parents[order]
    return np.where(old < 0, -1, new_index[old])
