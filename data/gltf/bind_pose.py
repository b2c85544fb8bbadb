"""Finds the bind pose of skinned glTF meshes and places it in the world."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.gltf.document import NodeTree
from data.gltf.skins import Skin, invertible

Floats = NDArray[np.float64]

# Placements of a mesh agree if they differ by less than this share of its bounding box.
AGREEMENT = 0.01


@dataclass(frozen=True, eq=False)
class BindPose:
    """The bind pose in the world frame.

    `joints`: the bind matrix (4, 4) of every joint node of the skins. `to_world`: per skin index, the matrix
    (4, 4) from mesh space; `slots`: per skin index, the matrix (n, 4, 4) by which each slot moves its
    vertices, or None if all of them equal `to_world`. `unusable`: joint nodes whose stored inverse bind
    matrix (missing, singular, or of no vertex and wrong) was replaced; `brought_together`: skin indices whose
    own bind pose differs from that of the other skins.
    """

    joints: dict[int, Floats]
    to_world: dict[int, Floats]
    slots: dict[int, Floats | None]
    unusable: list[int]
    brought_together: list[int]


def bind_pose(skins: Sequence[Skin], tree: NodeTree) -> BindPose:
    """Place the bind pose of `skins` where the file shows it (glTF 2.0, section 3.7.3.3).

    Vertex v of joint j is shown at world_j · IBM_j · v, so in bind pose T = world_j · IBM_j is the same for
    all joints that a mesh uses, and bind_j = T · inv(IBM_j). The mesh node's transform plays no part.

    - A file may show another pose, say the first frame of an animation, so that the T of its joints differ.
      T is then that of the joint whose branch moves the most weight, of a chain the uppermost: where the
      character's root stands. It may move no vertex itself if its matrix is plausible (no other scale, not
      far away, the identity only if it nearly agrees): such a root is often at rest while its children are
      animated.
    - Skins that use a common joint are tied together by it. In other poses than the bind pose, skins without
      one are tied by other joints that both list if at least two of those agree; else carried along by the
      nearest placed joint above; else placed by their own joints.
    - Skins whose used joints have no bind pose (no matrices, or all the identity) are posed by the joints.
    - A joint without vertices, or without a usable matrix, keeps its node transform relative to the nearest
      placed joint above it (else below it). Its own matrix counts only if no vertex contradicts it: it is
      neither the identity nor of another scale, and the node pose is not the bind pose.
    """
    placing = _Placing(skins, tree)
    return placing.run()


class _Placing:
    def __init__(self, skins: Sequence[Skin], tree: NodeTree) -> None:
        self.skins, self.tree = skins, tree
        self.bind: dict[int, Floats] = {}
        self.to_world: dict[int, Floats] = {}
        stored = [skin for skin in skins if not skin.node_posed]
        self.stored = sorted(stored, key=lambda skin: (self._depth_of(skin), -skin.mass.sum(), skin.index))
        self.posed = [skin for skin in skins if skin.node_posed]
        self.shown = {skin.index: self._shown(skin) for skin in self.stored}
        self.at_rest = all(self._agree(skin, list(self.shown[skin.index].values())) for skin in self.stored)

    def run(self) -> BindPose:
        for skin in self.stored:
            transform = self._transform(skin)
            self.to_world[skin.index] = transform
            for slot in skin.used:
                if skin.usable[slot]:
                    self.bind.setdefault(skin.nodes[slot], transform @ np.linalg.inv(skin.inverse_bind[slot]))
        for skin in self.posed:
            nodes = [skin.nodes[slot] for slot in skin.used] or skin.nodes
            for node in sorted(nodes, key=self._depth):
                self.bind.setdefault(node, self._carried(node))
        unusable = self._place_others()
        slots = {skin.index: self._slots(skin) for skin in self.skins}
        together = [skin.index for skin in self.stored if slots[skin.index] is not None]
        return BindPose(self.bind, self.to_world, slots, unusable, together)

    def _depth(self, node: int) -> int:
        return sum(1 for _ in self.tree.chain(node))

    def _depth_of(self, skin: Skin) -> int:
        return min(self._depth(skin.nodes[slot]) for slot in skin.used)

    def _shown(self, skin: Skin) -> dict[int, Floats]:
        """T of each used slot, where joint and matrix are invertible."""
        return {
            slot: self.tree.worlds[skin.nodes[slot]] @ skin.inverse_bind[slot]
            for slot in skin.used
            if skin.usable[slot] and invertible(self.tree.worlds[skin.nodes[slot]])
        }

    def _agree(self, skin: Skin, transforms: list[Floats]) -> bool:
        return all(self._close(skin, transforms[0], other) for other in transforms[1:])

    def _close(self, skin: Skin, one: Floats, other: Floats) -> bool:
        """Whether two transforms put the mesh's bounding box at nearly the same place."""
        return _gap(skin, one, other) <= AGREEMENT * _size(skin, one)

    def _ranked(self, skin: Skin, slots: list[int]) -> list[int]:
        """`slots`, those of the branch with the most weight first, and of a chain the uppermost first."""
        below: dict[int, float] = {}
        for slot in skin.used:
            for node in self.tree.chain(skin.nodes[slot]):
                below[node] = below.get(node, 0.0) + skin.mass[slot]
        # Rounded: the sums of a chain must not differ by their order of addition.
        return sorted(
            slots,
            key=lambda slot: (
                -round(below.get(skin.nodes[slot], 0.0), 6),
                self._depth(skin.nodes[slot]),
                skin.nodes[slot],
            ),
        )

    def _transform(self, skin: Skin) -> Floats:
        """T of a skin that stores a bind pose."""
        shown = self.shown[skin.index]
        if not self.at_rest:
            usable = [slot for slot in skin.used if skin.usable[slot]]
            for slot in self._ranked(skin, usable):
                if skin.nodes[slot] in self.bind:
                    return self.bind[skin.nodes[slot]] @ skin.inverse_bind[slot]
            tied = self._tied(skin)
            if tied is not None:
                return tied
            for slot in self._ranked(skin, usable):
                if self._placed_above(skin.nodes[slot]) is not None:
                    return self._carried(skin.nodes[slot]) @ skin.inverse_bind[slot]
        if not shown:
            # All joints are scaled to zero, which hides the mesh in this pose.
            return np.eye(4)
        own = shown[self._ranked(skin, list(shown))[0]]
        return own if self.at_rest else self._root(skin, own)

    def _root(self, skin: Skin, own: Floats) -> Floats:
        """T by the uppermost joint with a bind pose, if it is plausible beside `own`, of a used joint."""
        worlds = self.tree.worlds
        ranked = self._ranked(skin, [slot for slot in range(len(skin.nodes)) if skin.usable[slot]])
        for slot in ranked:
            node = skin.nodes[slot]
            found = worlds[node] @ skin.inverse_bind[slot]
            if skin.mass[slot] > 0 and slot in self.shown[skin.index]:
                return found
            if skin.has_bind_pose(slot):
                places = np.array([worlds[one][:3, 3] for one in skin.nodes])
                near = _size(skin, own) + float(np.linalg.norm(np.ptp(places, axis=0)))
            else:
                # The identity may be right for a root that stands at the origin, and nearly agrees then.
                near = _size(skin, own) / 4 if slot == ranked[0] else 0
            if _same_scale(own, found) and _gap(skin, own, found) <= near:
                self.bind.setdefault(node, found @ np.linalg.inv(skin.inverse_bind[slot]))
                return found
        return own

    def _tied(self, skin: Skin) -> Floats | None:
        """T by the joints that a placed skin lists too, used or not; None unless two of them agree."""
        found = []
        for other in self.stored:
            if other.index not in self.to_world:
                continue
            slot_of = {node: slot for slot, node in reversed(list(enumerate(other.nodes)))}
            for slot, node in enumerate(skin.nodes):
                if node in slot_of and skin.has_bind_pose(slot) and other.has_bind_pose(slot_of[node]):
                    back = np.linalg.inv(other.inverse_bind[slot_of[node]])
                    found.append(self.to_world[other.index] @ back @ skin.inverse_bind[slot])
            if len(found) > 1:
                images = np.einsum("jab,cb->jca", np.stack(found), skin.corners)[:, :, :3]
                gaps = np.linalg.norm(images[:, None] - images[None], axis=3).max(axis=2)
                sizes = np.linalg.norm(images[:, 7] - images[:, 0], axis=1)
                votes = (gaps <= AGREEMENT * sizes[:, None]).sum(axis=1)
                if votes.max() >= max(2, len(found) / 2):
                    return found[int(votes.argmax())]
            found = []
        return None

    def _placed_above(self, node: int) -> int | None:
        """The nearest placed joint strictly above `node` that is not scaled to zero."""
        above = list(self.tree.chain(node))[1:]
        return next((one for one in above if one in self.bind and invertible(self.tree.worlds[one])), None)

    def _carried(self, node: int) -> Floats:
        """The bind matrix of a node that keeps its node transform relative to the nearest placed joint."""
        worlds = self.tree.worlds
        above = self._placed_above(node)
        if above is None:
            below = [
                (chain.index(node), one)
                for one in self.bind
                if node in (chain := list(self.tree.chain(one)))[1:] and invertible(worlds[one])
            ]
            above = min(below)[1] if below else None
        if above is None:
            return worlds[node]
        return self.bind[above] @ np.linalg.inv(worlds[above]) @ worlds[node]

    def _place_others(self) -> list[int]:
        """Place the joints that no usable matrix of a vertex places; return those with a wrong matrix."""
        others = dict.fromkeys(node for skin in self.skins for node in skin.nodes if node not in self.bind)
        stated: dict[int, list[Floats]] = {node: [] for node in others}
        for skin in self.stored:
            own = self.to_world[skin.index]
            for slot, node in enumerate(skin.nodes):
                if node not in stated or not skin.usable[slot]:
                    continue
                stated[node].append(own @ np.linalg.inv(skin.inverse_bind[slot]))
                found = self.tree.worlds[node] @ skin.inverse_bind[slot]
                if not self.at_rest and skin.has_bind_pose(slot) and _same_scale(own, found):
                    self.bind.setdefault(node, stated[node][-1])
        unusable = []
        for node in sorted(others, key=self._depth):
            if node in self.bind:
                continue
            self.bind[node] = self._carried(node)
            away = [float(np.linalg.norm((one - self.bind[node])[:3, 3])) for one in stated[node]]
            if self.stored and min(away, default=np.inf) > AGREEMENT * self._extent():
                unusable.append(node)
        return unusable

    def _extent(self) -> float:
        return max(_size(skin, self.to_world[skin.index]) for skin in self.stored)

    def _slots(self, skin: Skin) -> Floats | None:
        """The matrix by which each slot moves its vertices; None if the skin's own matrix fits them all."""
        if skin.node_posed:
            binds = np.stack([self.bind[node] for node in skin.nodes])
            joints = binds @ skin.inverse_bind
            first = (self._ranked(skin, skin.used) or [0])[0]
            self.to_world[skin.index] = joints[first]
            return joints if any((joints[slot] != joints[first]).any() for slot in skin.used) else None
        own = self.to_world[skin.index]
        matrices = np.stack(
            [
                self.bind[node] @ skin.inverse_bind[slot] if skin.usable[slot] else own
                for slot, node in enumerate(skin.nodes)
            ]
        )
        return None if all(self._close(skin, own, matrices[slot]) for slot in skin.used) else matrices


def _same_scale(one: Floats, other: Floats) -> bool:
    ratio = np.linalg.det(other[:3, :3]) / np.linalg.det(one[:3, :3])
    return bool(0.9**3 < ratio < 1.1**3)


def _gap(skin: Skin, one: Floats, other: Floats) -> float:
    return float(np.linalg.norm((skin.corners @ (one - other).T)[:, :3], axis=1).max())


def _size(skin: Skin, matrix: Floats) -> float:
    """The diagonal of the mesh's bounding box after `matrix`."""
    return float(np.linalg.norm((matrix @ (skin.corners[7] - skin.corners[0]))[:3]))
