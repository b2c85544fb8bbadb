"""Orders the joints of glTF skins into one hierarchy with a single root and unique names."""

from collections.abc import Sequence

from data.gltf.document import Gltf, NodeTree


class Hierarchy:
    """The joint nodes of all skins, root first and parents before children, otherwise in file order.

    `nodes` (J,): node indices. `parents` (J,): each one's parent joint as a node index, None for the root.
    Joints without a joint above them become children of the one of them with the most descendants (the first
    of several): `adopted`.
    """

    def __init__(self, joints: Sequence[int], tree: NodeTree) -> None:
        self._tree = tree
        found = list(dict.fromkeys(joints))
        self._joints = set(found)
        above = {node: self.nearest_joint(tree.parents[node]) for node in found}
        size = dict.fromkeys(found, 0)
        for node in found:
            for one in tree.chain(node):
                if one in self._joints:
                    size[one] += 1
        roots = [node for node in found if above[node] is None]
        root = max(roots, key=lambda node: size[node])
        self.adopted = [node for node in roots if node != root]
        for other in self.adopted:
            above[other] = root
        self.nodes: list[int] = []
        placed: set[int] = set()
        for node in [root, *found]:
            chain = []
            current: int | None = node
            while current is not None and current not in placed:
                chain.append(current)
                placed.add(current)
                current = above[current]
            self.nodes.extend(reversed(chain))
        self.parents = [above[node] for node in self.nodes]

    def nearest_joint(self, node: int) -> int | None:
        """The joint at or above `node`, None if there is none."""
        if node < 0:
            return None
        return next((one for one in self._tree.chain(node) if one in self._joints), None)


def joint_names(gltf: Gltf, nodes: Sequence[int]) -> tuple[str, ...]:
    """Unique joint names: the node's name or "node<index>"; repetitions get ".001", ".002", … .

    Names never collide: "Bone", "Bone.001", "Bone" become "Bone", "Bone.001", "Bone.002".
    """
    given = [node_name(gltf, node) for node in nodes]
    taken, seen = set(given), set[str]()
    result = []
    for name in given:
        unique, number = name, 0
        while unique in seen or (unique != name and unique in taken):
            number += 1
            unique = f"{name}.{number:03d}"
        seen.add(unique)
        result.append(unique)
    return tuple(result)


def node_name(gltf: Gltf, node: int) -> str:
    """The node's name, or "node<index>" if it has none."""
    return str(gltf.item("nodes", node).get("name") or f"node{node}")


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first names, separated by commas, with "…" if there are more."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def counted(number: int, what: str) -> str:
    """The number with its noun: "1 joint", "2 joints", "1 mesh", "2 meshes", "1 vertex", "2 vertices"."""
    plural = {"vertex": "vertices", "mesh": "meshes"}.get(what, f"{what}s")
    return f"{number} {what if number == 1 else plural}"
