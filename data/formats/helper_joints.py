"""Prunes rigs: removes helper joints without weight, repeated joints and joints far outside the mesh."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from data.formats.rig_repair import parents_first
from data.mesh import Mesh
from data.rig import Rig

# A joint carries weight if a vertex has more than this for it (the threshold of the paper's skin IoU), or if
# it is some vertex's largest. Exporters and painters leave smaller traces behind.
NO_WEIGHT = 0.01
# Joints closer than this (mesh frame) are in the same place: an eighth of a bin of the coordinate tokens.
SAME_PLACE = 1e-3
# A joint further than this (mesh frame) outside the mesh's bounding box is far outside: a tenth of the box's
# longest side. Coordinate tokens cover only the box.
FAR_OUTSIDE = 0.2

# Words of joint names that mark a control. Names never decide about a joint that carries weight.
_CONTROL_WORDS = frozenset({"ik", "pole", "target", "poletarget", "ctrl", "ctl", "control", "controller"})


@dataclass(frozen=True)
class Pruned:
    """How many joints were removed, by kind.

    - `ends`: joints without weight that end a chain of joints with weight, such as "head_end" or "toe_leaf".
    - `controls`: all other joints without weight that no weighted joint needs: IK targets, poles, and roots
      that move the rig as a whole.
    - `repeated`: joints merged with another joint in the same place.
    - `far`: joints far outside the mesh, other than those above.
    """

    ends: int = 0
    controls: int = 0
    repeated: int = 0
    far: int = 0

    @property
    def total(self) -> int:
        return self.ends + self.controls + self.repeated + self.far

    def __add__(self, other: "Pruned") -> "Pruned":
        names = [one.name for one in fields(Pruned)]
        return Pruned(**{name: getattr(self, name) + getattr(other, name) for name in names})


def without_helpers(mesh: Mesh, rig: Rig, keep_ends: bool = False) -> tuple[Rig, Pruned]:
    """The rig without joints that are not ground truth, and how many were removed.

    mesh, rig: same frame, the mesh frame. The rules are applied until none finds a joint, so pruning a pruned
    rig changes nothing:

    1. A branch in which no joint carries weight (more than NO_WEIGHT) is removed, and so is a joint without
       weight whose name marks a control. A joint without weight stays if weighted joints hang below it (a
       neck between a chest and a head, a root with several branches): they turn about it. With `keep_ends`,
       a single end joint stays: its parent's last bone keeps its length.
    2. A root without weight and with one child is removed: it moves the rig as a whole. The child becomes
       the root.
    3. A joint more than FAR_OUTSIDE outside the bounding box is removed, unless all joints with weight are
       that far. If it is the root, the child with the most weight in its branch becomes the root.
    4. Two joints closer than SAME_PLACE are merged. An ancestor is kept; otherwise a joint that is not named
       as a control, then the deeper one (IK chains repeat a limb's joint near the root), then the one with
       more weight in its branch.

    Every removed joint hands its weights and children to the joint that replaces it (its parent, unless said
    otherwise), so the sum of each vertex's weights stays. The other joints keep their places, names and
    order, except that parents come first. A rig without any weight is returned as it is.
    """
    tree = _Tree(mesh, rig)
    if not tree.bound().any():
        return rig, Pruned()
    rules: tuple[Callable[[_Tree], list[_Removal]], ...] = (
        lambda tree: _without_weight(tree, keep_ends),
        _control_root,
        _far_outside,
        _repeated,
    )
    counts: Counter[str] = Counter()
    while True:
        removals = next((found for rule in rules if (found := rule(tree))), [])
        if not removals:
            break
        for kind, joint, heir in removals:
            tree.absorb(joint, heir)
            counts[kind] += 1
    return tree.rig(rig) if counts else rig, Pruned(**counts)


# (kind, joint to remove, joint that takes its weights and children)
_Removal = tuple[str, int, int]


class _Tree:
    """A skeleton with weights from which joints are removed one by one; removed joints keep their index."""

    def __init__(self, mesh: Mesh, rig: Rig) -> None:
        self.parents: list[int] = rig.parents.tolist()
        self.alive = [True] * len(self.parents)
        self.joints = rig.joints.astype(np.float64)
        self.weights = rig.weights.copy()
        self._totals = rig.weights.sum(axis=0, dtype=np.float64)
        self._bound: NDArray[np.bool_] | None = None
        squares = sum(np.subtract.outer(axis, axis) ** 2 for axis in self.joints.T)
        self._close = [(int(a), int(b)) for a, b in np.argwhere(np.triu(squares < SAME_PLACE**2, k=1))]
        self.named_control = [_named_control(name) for name in rig.names]
        low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
        outside = np.maximum(np.maximum(low - self.joints, self.joints - high), 0)
        self.far: NDArray[np.bool_] = np.linalg.norm(outside, axis=1) > FAR_OUTSIDE

    def order(self) -> list[int]:
        """The remaining joints, parents before children."""
        children = self.children()
        order = [next(joint for joint in children if self.parents[joint] < 0)]
        for joint in order:
            order += children[joint]
        return order

    def children(self) -> dict[int, list[int]]:
        children: dict[int, list[int]] = {joint: [] for joint, alive in enumerate(self.alive) if alive}
        for joint in children:
            if self.parents[joint] >= 0:
                children[self.parents[joint]].append(joint)
        return children

    def bound(self) -> NDArray[np.bool_]:
        """Whether each joint (J,) carries weight."""
        if self._bound is None:
            self._bound = _bound(self.weights)
        return self._bound

    def close_pairs(self) -> list[tuple[int, int]]:
        """The pairs of remaining joints in the same place, in no particular order."""
        self._close = [pair for pair in self._close if self.alive[pair[0]] and self.alive[pair[1]]]
        return self._close

    def branch_weights(self) -> NDArray[np.float64]:
        """Each joint's weight (J,), summed over the vertices and over all joints below it."""
        total = self._totals.copy()
        for joint in reversed(self.order()[1:]):
            total[self.parents[joint]] += total[joint]
        return total

    def absorb(self, joint: int, heir: int) -> None:
        """Remove `joint`; `heir`, no further below than a child of it, gets its weights and children."""
        if self.parents[heir] == joint:
            self.parents[heir] = self.parents[joint]
        self.parents = [heir if parent == joint else parent for parent in self.parents]
        self.alive[joint] = False
        if self._totals[joint]:
            self.weights[:, heir] += self.weights[:, joint]
            self.weights[:, joint] = 0
            self._totals[heir] += self._totals[joint]
            self._totals[joint] = 0
            self._bound = None

    def rig(self, rig: Rig) -> Rig:
        """The remaining rig."""
        kept = np.flatnonzero(self.alive)
        new_index = {-1: -1} | {int(joint): index for index, joint in enumerate(kept)}
        up = [new_index[self.parents[joint]] for joint in kept]
        order = parents_first("rig", up)
        place = np.argsort(order)
        parents = np.array([-1 if up[joint] < 0 else place[up[joint]] for joint in order])
        joints = kept[order]
        names = tuple(rig.names[joint] for joint in joints)
        return Rig(rig.joints[joints], parents, self.weights[:, joints], names)


def _bound(weights: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether each joint (J,) carries weight, from weights (V, J)."""
    bound: NDArray[np.bool_] = weights.max(axis=0) > NO_WEIGHT
    largest = weights.argmax(axis=1)
    bound[largest[weights[np.arange(len(largest)), largest] > 0]] = True
    return bound


def _without_weight(tree: _Tree, keep_ends: bool) -> list[_Removal]:
    """Rule 1, children first."""
    order, bound = tree.order(), tree.bound()
    live = bound.copy()
    for joint in reversed(order[1:]):
        live[tree.parents[joint]] |= live[joint]
    # The first joint of the dead branch that a joint belongs to.
    top: dict[int, int] = {}
    for joint in order[1:]:
        if not live[joint]:
            parent = tree.parents[joint]
            top[joint] = joint if live[parent] else top[parent]
    of_control = {top[joint] for joint in top if tree.named_control[joint]}
    sizes = Counter(top.values())
    removals: list[_Removal] = []
    for joint in reversed(order[1:]):
        if joint in top:
            first = top[joint]
            end = bool(bound[tree.parents[first]]) and first not in of_control
            if not (keep_ends and end and sizes[first] == 1):
                removals.append(("ends" if end else "controls", joint, tree.parents[joint]))
        elif tree.named_control[joint] and not bound[joint]:
            removals.append(("controls", joint, tree.parents[joint]))
    return removals


def _control_root(tree: _Tree) -> list[_Removal]:
    """Rule 2."""
    root, children = tree.order()[0], tree.children()
    if len(children[root]) == 1 and not tree.bound()[root]:
        return [("controls", root, children[root][0])]
    return []


def _far_outside(tree: _Tree) -> list[_Removal]:
    """Rule 3, one joint at a time; the root last, so that it hands on what it received."""
    order = tree.order()
    far = [joint for joint in order if tree.far[joint]]
    if not far or not (tree.bound() & ~tree.far).any():
        return []
    joint = far[-1]
    if tree.parents[joint] >= 0:
        return [("far", joint, tree.parents[joint])]
    total = tree.branch_weights()
    return [("far", joint, max(tree.children()[joint], key=lambda child: (total[child], -child)))]


def _repeated(tree: _Tree) -> list[_Removal]:
    """Rule 4, one pair at a time."""
    pairs = tree.close_pairs()
    if not pairs:
        return []
    rank = {joint: number for number, joint in enumerate(tree.order())}
    pair = min(
        (sorted(one, key=rank.__getitem__) for one in pairs), key=lambda one: (rank[one[0]], rank[one[1]])
    )
    above = [_ancestors(tree, joint) for joint in pair]
    if pair[0] in above[1]:
        return [("repeated", pair[1], pair[0])]
    total = tree.branch_weights()
    ranked = sorted(
        zip(pair, above, strict=True),
        key=lambda one: (tree.named_control[one[0]], -len(one[1]), -total[one[0]], one[0]),
    )
    return [("repeated", ranked[1][0], ranked[0][0])]


def _ancestors(tree: _Tree, joint: int) -> list[int]:
    above = []
    while (joint := tree.parents[joint]) >= 0:
        above.append(joint)
    return above


def _named_control(name: str) -> bool:
    """Whether a word of the name marks a control: "IK-toe.L", "KneePoleTarget.R", "HipsCtrl", not "spike"."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return any(word.lower() in _CONTROL_WORDS for word in words)
