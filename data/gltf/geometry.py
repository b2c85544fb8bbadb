"""Triangles, skins and bind poses out of a parsed glTF file."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.gltf.document import Gltf, malformed, node_worlds

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Flattened:
    """A glTF scene as one mesh in the file's world frame, not normalised.

    `vertices` (V, 3) float64, `faces` (F, 3) int64. For a skinned file everything is in bind pose and
    `joints` (J, 3), `parents` (J,) with the root first and parents before children, `weights` (V, J) as
    stored and `names` are filled in; for any other file they are None.
    """

    vertices: Floats
    faces: NDArray[np.int64]
    joints: Floats | None = None
    parents: NDArray[np.int64] | None = None
    weights: NDArray[np.float32] | None = None
    names: tuple[str, ...] | None = None


@dataclass(frozen=True, eq=False)
class _Piece:
    """The triangles of one primitive of one node, vertices in the mesh's own space."""

    node: int
    skin: int | None
    vertices: Floats
    faces: NDArray[np.int64]
    joint_slots: NDArray[np.int64] | None  # (V, 4 n) indices into the skin's joints
    slot_weights: NDArray[np.float64] | None  # (V, 4 n)


@dataclass(frozen=True, eq=False)
class _Skin:
    joint_nodes: list[int]
    inverse_bind: Floats | None  # (n, 4, 4); None: not stored, the skin has no bind pose of its own


def flatten(gltf: Gltf) -> Flattened:
    """All triangles of the default scene with node transforms; in bind pose if any mesh is skinned.

    A skinned file keeps its skinned meshes and what is rigidly attached below a joint (weight 1 for that
    joint); meshes that hang on no joint (a stage, a prop) are left out. Vertices of
    no triangle are dropped. See `read_skinned_glb` for the
    other rules. Raises MeshError naming the file for anything damaged or contradictory.
    """
    # Absurd numbers overflow silently here and are refused as non-finite later.
    with malformed(gltf), np.errstate(all="ignore"):
        order, worlds, parents = node_worlds(gltf)
        pieces = [piece for index in sorted(order) for piece in _pieces(gltf, index)]
        if not pieces:
            raise gltf.error("no triangles in its scene (a point cloud or lines?)", "export a triangle mesh")
        if any(piece.skin is not None for piece in pieces):
            return _flatten_skinned(gltf, pieces, order, worlds, parents)
        parts = [_apply(worlds[piece.node], piece.vertices) for piece in pieces]
        flips = [np.linalg.det(worlds[piece.node][:3, :3]) < 0 for piece in pieces]
        return Flattened(np.concatenate(parts), _joined_faces(pieces, flips))


def _pieces(gltf: Gltf, index: int) -> Iterator[_Piece]:
    node = gltf.item("nodes", index)
    if "mesh" not in node:
        return
    for number, primitive in enumerate(gltf.item("meshes", node["mesh"])["primitives"]):
        attributes = primitive["attributes"]
        mode = primitive.get("mode", 4)
        if mode not in (4, 5, 6) or "POSITION" not in attributes:
            continue
        where = f"meshes[{node['mesh']}].primitives[{number}]"
        vertices = gltf.accessor(attributes["POSITION"]).astype(np.float64)
        if vertices.shape[1] != 3:
            raise gltf.error(f"{where} has positions of {vertices.shape[1]} numbers")
        if not np.isfinite(vertices).all():
            raise gltf.error(f"{where} has positions that are not finite", "repair the mesh")
        if "indices" in primitive:
            indices = gltf.accessor(primitive["indices"])
            if not np.issubdtype(indices.dtype, np.integer) or indices.shape[1] != 1:
                raise gltf.error(f"{where} has indices that are no whole numbers")
            flat = indices[:, 0].astype(np.int64)
        else:
            flat = np.arange(len(vertices))
        if len(flat) and (flat.min() < 0 or flat.max() >= len(vertices)):
            raise gltf.error(
                f"{where} names vertex {max(flat.max(), -flat.min())} but has {len(vertices)}",
                "repair the mesh",
            )
        faces = _triangles(flat, mode)
        if not len(faces):
            continue
        skin = node.get("skin")
        slots = weights = None
        if skin is not None:
            slots, weights = _influences(gltf, attributes, len(vertices), where)
        kept, compact = np.unique(faces, return_inverse=True)
        if len(kept) < len(vertices):
            # Primitives often share one vertex list; stray vertices would distort the bounding box.
            vertices, faces = vertices[kept], compact.reshape(-1, 3)
            slots = None if slots is None else slots[kept]
            weights = None if weights is None else weights[kept]
        yield _Piece(index, skin, vertices, faces, slots, weights)


def _triangles(flat: NDArray[np.int64], mode: int) -> NDArray[np.int64]:
    """Faces (F, 3) of a triangle list (4), strip (5) or fan (6)."""
    if mode == 4:
        return flat[: len(flat) // 3 * 3].reshape(-1, 3)
    count = max(len(flat) - 2, 0)
    first = np.arange(count)
    if mode == 6:
        return np.stack([flat[first + 1], flat[first + 2], np.full(count, flat[0] if count else 0)], axis=1)
    odd = first % 2
    return np.stack([flat[first], flat[first + 1 + odd], flat[first + 2 - odd]], axis=1)


def _influences(
    gltf: Gltf, attributes: dict[str, Any], count: int, where: str
) -> tuple[NDArray[np.int64] | None, NDArray[np.float64] | None]:
    """JOINTS_n and WEIGHTS_n of all n, side by side, or None if the primitive has none."""
    slots: list[NDArray[np.int64]] = []
    weights: list[NDArray[np.float64]] = []
    number = 0
    while f"JOINTS_{number}" in attributes or f"WEIGHTS_{number}" in attributes:
        if f"JOINTS_{number}" not in attributes or f"WEIGHTS_{number}" not in attributes:
            raise gltf.error(f"{where} has only one of JOINTS_{number} and WEIGHTS_{number}")
        joint = gltf.accessor(attributes[f"JOINTS_{number}"])
        weight = gltf.accessor(attributes[f"WEIGHTS_{number}"])
        if joint.shape != (count, 4) or weight.shape != (count, 4) or joint.dtype.kind not in "ui":
            raise gltf.error(f"{where} has JOINTS_{number} or WEIGHTS_{number} of the wrong shape or type")
        if weight.dtype.kind in "ui":
            # Integer weights are normalised by definition; some files forget the flag.
            weight = weight / np.iinfo(weight.dtype).max
        slots.append(joint.astype(np.int64))
        weights.append(weight.astype(np.float64))
        number += 1
    if not slots:
        return None, None
    return np.concatenate(slots, axis=1), np.concatenate(weights, axis=1)


def _flatten_skinned(
    gltf: Gltf, pieces: list[_Piece], order: list[int], worlds: dict[int, Floats], parents: dict[int, int]
) -> Flattened:
    used = list(dict.fromkeys(piece.skin for piece in pieces if piece.skin is not None))
    skins = {index: _skin(gltf, index, worlds) for index in used}
    to_world, bind = _bind_poses(gltf, pieces, skins, worlds)
    hierarchy = _Hierarchy(gltf, skins, order, parents)
    place = {node: number for number, node in enumerate(hierarchy.nodes)}
    joints = np.array([bind[node][:3, 3] for node in hierarchy.nodes])
    vertices, weights, flips, kept = [], [], [], []
    for piece in pieces:
        rows = np.zeros((len(piece.vertices), len(place)), dtype=np.float32)
        skin = None if piece.skin is None else skins[piece.skin]
        if skin is not None and piece.joint_slots is not None and piece.slot_weights is not None:
            slots = _checked_slots(gltf, piece, len(skin.joint_nodes))
            columns = np.array([place[node] for node in skin.joint_nodes])
            np.add.at(rows, (np.arange(len(rows))[:, None], columns[slots]), piece.slot_weights)
            if skin.inverse_bind is None:
                stack = np.stack([worlds[node] for node in skin.joint_nodes])
                points, transform = _posed(piece, slots, stack), np.eye(4)
            else:
                assert piece.skin is not None
                points, transform = piece.vertices, to_world[piece.skin]
        else:
            holder = hierarchy.holder(piece.node)
            if holder is None:
                continue
            rows[:, place[holder]] = 1
            points = piece.vertices
            # Where the piece lies relative to its joint in the node pose, carried over to the bind pose.
            transform = bind[holder] @ _inverse(gltf, worlds[holder], f"nodes[{holder}]") @ worlds[piece.node]
        vertices.append(_apply(transform, points))
        weights.append(rows)
        flips.append(bool(np.linalg.det(transform[:3, :3]) < 0))
        kept.append(piece)
    all_weights = np.concatenate(weights)
    return Flattened(
        np.concatenate(vertices),
        _joined_faces(kept, flips),
        joints,
        np.array([-1 if up is None else place[up] for up in hierarchy.up], dtype=np.int64),
        all_weights,
        hierarchy.names(),
    )


def _skin(gltf: Gltf, index: int, worlds: dict[int, Floats]) -> _Skin:
    skin = gltf.item("skins", index)
    nodes = list(skin["joints"])
    if not nodes:
        raise gltf.error(f"skins[{index}] has no joints")
    for node in nodes:
        if node not in worlds:
            raise gltf.error(f"skins[{index}] uses nodes[{node}] as a joint, which is not in the scene")
    if "inverseBindMatrices" not in skin:
        return _Skin(nodes, None)
    flat = gltf.accessor(skin["inverseBindMatrices"]).astype(np.float64)
    if flat.shape[1] != 16 or len(flat) < len(nodes):
        raise gltf.error(f"skins[{index}] has {len(flat)} inverse bind matrices for {len(nodes)} joints")
    if not np.isfinite(flat).all():
        raise gltf.error(f"skins[{index}] has inverse bind matrices that are not finite")
    return _Skin(nodes, flat[: len(nodes)].reshape(-1, 4, 4).transpose(0, 2, 1))


def _bind_poses(
    gltf: Gltf, pieces: list[_Piece], skins: dict[int, _Skin], worlds: dict[int, Floats]
) -> tuple[dict[int, Floats], dict[int, Floats]]:
    """Per skin the matrix from its mesh space to the world, and per joint node its bind matrix there."""
    to_world: dict[int, Floats] = {}
    bind: dict[int, Floats] = {}
    for index, skin in skins.items():
        if skin.inverse_bind is None:
            to_world[index] = np.eye(4)
            for node in skin.joint_nodes:
                bind.setdefault(node, worlds[node])
            continue
        inverses = [
            _inverse(gltf, matrix, f"inverse bind matrix {number} of skins[{index}]")
            for number, matrix in enumerate(skin.inverse_bind)
        ]
        shared = next((number for number, node in enumerate(skin.joint_nodes) if node in bind), None)
        if shared is not None:
            # A joint two skins share has one place: it ties the second mesh space to the first.
            to_world[index] = bind[skin.joint_nodes[shared]] @ skin.inverse_bind[shared]
        else:
            holder = next(piece.node for piece in pieces if piece.skin == index)
            to_world[index] = _upright(worlds[holder], worlds[skin.joint_nodes[0]] @ skin.inverse_bind[0])
        for node, inverse in zip(skin.joint_nodes, inverses, strict=True):
            bind.setdefault(node, to_world[index] @ inverse)
    return to_world, bind


def _upright(mesh_world: Floats, shown: Floats) -> Floats:
    """The bind pose's place in the world: the mesh node's transform, if viewers show it roughly so.

    glTF ignores that transform for skinned meshes, but nearly every exporter leaves the object's own
    orientation in it. `shown` is what viewers do to the first joint's vertices, which an animation's
    first frame may tilt; a difference of more than 45 degrees means that the node's transform is stale.
    """
    rotations = []
    for matrix in (mesh_world, shown):
        u, s, vt = np.linalg.svd(matrix[:3, :3])
        if s[-1] < 1e-9 * max(s[0], 1e-30):
            return shown
        rotations.append(u @ vt)
    cosine = (np.trace(rotations[0].T @ rotations[1]) - 1) / 2
    return mesh_world if cosine > np.sqrt(0.5) else shown


class _Hierarchy:
    """The joint nodes of all skins, root first and parents before children, otherwise in file order."""

    def __init__(
        self, gltf: Gltf, skins: dict[int, _Skin], order: list[int], parents: dict[int, int]
    ) -> None:
        self._gltf, self._parents = gltf, parents
        found = list(dict.fromkeys(node for skin in skins.values() for node in skin.joint_nodes))
        self._joints = set(found)
        above = {node: self.holder(parents[node]) for node in found}
        roots = [node for node in found if above[node] is None]
        size = dict.fromkeys(found, 1)
        for node in reversed(order):
            if node in self._joints and above[node] is not None:
                size[above[node]] += size[node]  # type: ignore[index]
        root = max(roots, key=lambda node: size[node])
        for other in roots:
            if other != root:
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
        self.up = [above[node] for node in self.nodes]

    def holder(self, node: int) -> int | None:
        """The joint at or above `node`."""
        while node >= 0 and node not in self._joints:
            node = self._parents[node]
        return node if node >= 0 else None

    def names(self) -> tuple[str, ...]:
        """Node names, or "node<index>", made unique."""
        seen: dict[str, int] = {}
        result = []
        for node in self.nodes:
            name = str(self._gltf.item("nodes", node).get("name") or f"node{node}")
            seen[name] = seen.get(name, 0) + 1
            result.append(name if seen[name] == 1 else f"{name}.{seen[name] - 1:03d}")
        return tuple(result)


def _checked_slots(gltf: Gltf, piece: _Piece, count: int) -> NDArray[np.int64]:
    """Joint slots with those of weight 0 set to 0: files leave anything there."""
    assert piece.joint_slots is not None
    assert piece.slot_weights is not None
    if not np.isfinite(piece.slot_weights).all():
        raise gltf.error("it has skin weights that are NaN or infinite", "repair the weights")
    if piece.slot_weights.size and piece.slot_weights.min() < 0:
        raise gltf.error("it has negative skin weights", "repair the weights")
    slots = np.where(piece.slot_weights > 0, piece.joint_slots, 0)
    if slots.size and slots.max() >= count:
        raise gltf.error(
            f"a vertex is bound to joint {slots.max()} of a skin with {count}", "repair the skin"
        )
    return slots


def _posed(piece: _Piece, slots: NDArray[np.int64], matrices: Floats) -> Floats:
    """Linear blend skinning in the node pose, for skins that store no bind pose."""
    assert piece.slot_weights is not None
    total = piece.slot_weights.sum(axis=1, keepdims=True)
    weights = piece.slot_weights / np.where(total > 0, total, 1)
    blended = np.einsum("vk,vkij->vij", weights, matrices[slots])
    blended[total[:, 0] <= 0] = matrices[0]
    return np.einsum("vij,vj->vi", blended[:, :3, :3], piece.vertices) + blended[:, :3, 3]


def _inverse(gltf: Gltf, matrix: Floats, what: str) -> Floats:
    try:
        inverse = np.asarray(np.linalg.inv(matrix), dtype=np.float64)
    except np.linalg.LinAlgError:
        inverse = np.full((4, 4), np.nan)
    if not np.isfinite(inverse).all():
        raise gltf.error(f"the {what} cannot be inverted", "give every joint a scale other than 0")
    return inverse


def _apply(matrix: Floats, points: Floats) -> Floats:
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def _joined_faces(pieces: list[_Piece], flips: list[Any]) -> NDArray[np.int64]:
    """All faces, with offsets; mirrored pieces are turned so that they face outward again."""
    starts = np.cumsum([0] + [len(piece.vertices) for piece in pieces[:-1]])
    return np.concatenate(
        [
            (piece.faces[:, ::-1] if flip else piece.faces) + start
            for piece, flip, start in zip(pieces, flips, starts, strict=True)
        ]
    )
