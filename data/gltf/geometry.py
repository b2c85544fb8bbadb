"""Extracts triangles, skinning weights and bind poses from a parsed glTF file."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.gltf.document import Gltf, malformed, node_worlds

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Part:
    """The vertices of a flattened scene that come from one primitive of one node.

    `node`, `mesh`, `primitive`: indices in the document (the primitive's within its mesh). `vertices` (n,)
    int64: indices into the primitive's POSITION accessor. `to_world` (4, 4) float64: flattened vertex =
    to_world · (stored position + default morphs); None if the skin poses the vertices one by one. `bound`:
    whether a joint moves it; False in files without a skin.
    """

    node: int
    mesh: int
    primitive: int
    vertices: NDArray[np.int64]
    to_world: Floats | None
    bound: bool


@dataclass(frozen=True, eq=False)
class Flattened:
    """A glTF scene flattened to one mesh, in the file's world frame and units.

    `vertices` (V, 3) float64, `faces` (F, 3) int64; `parts`: the origin of the vertices, in their order. A
    skinned file is in bind pose and has `joints` (J, 3) float64, `parents` (J,) int64 with the root first and
    parents before children, `weights` (V, J) float32 as stored, `names` (J,), `joint_nodes` (J,) int64 (node
    indices) and `bind` (J, 4, 4) float64 (bind matrices in the world frame); for any other file these are
    None. `notes`: what was derived, dropped or chosen, one phrase each.
    """

    vertices: Floats
    faces: NDArray[np.int64]
    parts: tuple[Part, ...]
    joints: Floats | None = None
    parents: NDArray[np.int64] | None = None
    weights: NDArray[np.float32] | None = None
    names: tuple[str, ...] | None = None
    joint_nodes: NDArray[np.int64] | None = None
    bind: Floats | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Primitive:
    """The triangles of one primitive of one node, vertices in mesh space (before the node transform)."""

    node: int
    mesh: int
    number: int  # within its mesh
    kept: NDArray[np.int64]  # (V,) indices into the POSITION accessor
    skin: int | None
    vertices: Floats
    faces: NDArray[np.int64]
    joint_slots: NDArray[np.int64] | None  # (V, 4 n) indices into the skin's joints
    slot_weights: NDArray[np.float64] | None  # (V, 4 n)


@dataclass(frozen=True, eq=False)
class _Skin:
    joint_nodes: list[int]
    inverse_bind: Floats | None  # (n, 4, 4); None: not stored, so the node pose is the bind pose


def flatten(gltf: Gltf) -> Flattened:
    """All triangles of the default scene with node transforms applied; in bind pose if any mesh is skinned.

    Of a skinned file, skinned meshes and meshes rigidly attached below a joint (weight 1 for that joint) are
    kept; meshes attached to no joint (a stage, say) are dropped. So are unreferenced vertices. See
    `read_skinned_glb` for the other rules. Raises MeshError naming the file if it is damaged or inconsistent.
    """
    # Extreme values overflow silently here and are refused as non-finite later.
    with malformed(gltf), np.errstate(all="ignore"):
        order, worlds, parents = node_worlds(gltf)
        primitives = [primitive for index in sorted(order) for primitive in _primitives(gltf, index)]
        if not primitives:
            raise gltf.error("the scene has no triangles (a point cloud or lines?)", "export a triangle mesh")
        if any(primitive.skin is not None for primitive in primitives):
            return _flatten_skinned(gltf, primitives, order, worlds, parents)
        parts = [_apply(worlds[primitive.node], primitive.vertices) for primitive in primitives]
        flips = [bool(np.linalg.det(worlds[primitive.node][:3, :3]) < 0) for primitive in primitives]
        origins = tuple(_part(primitive, worlds[primitive.node], False) for primitive in primitives)
        return Flattened(np.concatenate(parts), _joined_faces(primitives, flips), origins)


def _part(primitive: _Primitive, to_world: Floats | None, bound: bool) -> Part:
    return Part(primitive.node, primitive.mesh, primitive.number, primitive.kept, to_world, bound)


def _primitives(gltf: Gltf, index: int) -> Iterator[_Primitive]:
    """The triangle primitives of node `index`, without unreferenced vertices."""
    node = gltf.item("nodes", index)
    if "mesh" not in node:
        return
    for number, entry in enumerate(gltf.item("meshes", node["mesh"])["primitives"]):
        attributes = entry["attributes"]
        mode = entry.get("mode", 4)
        if mode not in (4, 5, 6) or "POSITION" not in attributes:
            continue
        where = f"meshes[{node['mesh']}].primitives[{number}]"
        vertices = gltf.accessor(attributes["POSITION"]).astype(np.float64)
        if vertices.shape[1] != 3:
            raise gltf.error(f"{where} has positions with {vertices.shape[1]} components")
        if not np.isfinite(vertices).all():
            raise gltf.error(f"{where} has non-finite positions", "repair the mesh")
        if "indices" in entry:
            indices = gltf.accessor(entry["indices"])
            if not np.issubdtype(indices.dtype, np.integer) or indices.shape[1] != 1:
                raise gltf.error(f"{where} has indices that are not integers")
            flat = indices[:, 0].astype(np.int64)
        else:
            flat = np.arange(len(vertices))
        if len(flat) and (flat.min() < 0 or flat.max() >= len(vertices)):
            raise gltf.error(
                f"{where} refers to vertex {max(flat.max(), -flat.min())}, but has only {len(vertices)}",
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
            # Primitives often share a vertex buffer; unreferenced vertices would distort the bounding box.
            vertices, faces = vertices[kept], compact.reshape(-1, 3)
            slots = None if slots is None else slots[kept]
            weights = None if weights is None else weights[kept]
        yield _Primitive(index, node["mesh"], number, kept, skin, vertices, faces, slots, weights)


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
    """JOINTS_n and WEIGHTS_n concatenated over n, both (V, 4 n), or None if the primitive has none."""
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
            # glTF requires integer weights to be normalised; some exporters forget the flag.
            weight = weight / np.iinfo(weight.dtype).max
        slots.append(joint.astype(np.int64))
        weights.append(weight.astype(np.float64))
        number += 1
    if not slots:
        return None, None
    return np.concatenate(slots, axis=1), np.concatenate(weights, axis=1)


def _flatten_skinned(
    gltf: Gltf,
    primitives: list[_Primitive],
    order: list[int],
    worlds: dict[int, Floats],
    parents: dict[int, int],
) -> Flattened:
    used = list(dict.fromkeys(primitive.skin for primitive in primitives if primitive.skin is not None))
    skins = {index: _skin(gltf, index, worlds) for index in used}
    to_world, bind = _bind_poses(gltf, primitives, skins, worlds)
    hierarchy = _Hierarchy(gltf, skins, order, parents)
    column = {node: number for number, node in enumerate(hierarchy.nodes)}
    joints = np.array([bind[node][:3, 3] for node in hierarchy.nodes])
    vertices, weights, flips, kept, parts = [], [], [], [], []
    for primitive in primitives:
        rows = np.zeros((len(primitive.vertices), len(column)), dtype=np.float32)
        skin = None if primitive.skin is None else skins[primitive.skin]
        if skin is not None and primitive.joint_slots is not None and primitive.slot_weights is not None:
            slots = _checked_slots(gltf, primitive, len(skin.joint_nodes))
            columns = np.array([column[node] for node in skin.joint_nodes])
            np.add.at(rows, (np.arange(len(rows))[:, None], columns[slots]), primitive.slot_weights)
            if skin.inverse_bind is None:
                stack = np.stack([worlds[node] for node in skin.joint_nodes])
                points, transform = _node_posed(primitive, slots, stack), np.eye(4)
                origin = None
            else:
                assert primitive.skin is not None
                points, transform = primitive.vertices, to_world[primitive.skin]
                origin = transform
        else:
            joint = hierarchy.nearest_joint(primitive.node)
            if joint is None:
                continue
            rows[:, column[joint]] = 1
            points = primitive.vertices
            # Its transform relative to the joint in the node pose also holds in the bind pose.
            to_joint = _inverse(gltf, worlds[joint], f"nodes[{joint}]")
            transform = origin = bind[joint] @ to_joint @ worlds[primitive.node]
        vertices.append(_apply(transform, points))
        weights.append(rows)
        flips.append(bool(np.linalg.det(transform[:3, :3]) < 0))
        kept.append(primitive)
        parts.append(_part(primitive, origin, True))
    all_weights = np.concatenate(weights)
    return Flattened(
        np.concatenate(vertices),
        _joined_faces(kept, flips),
        tuple(parts),
        joints,
        np.array([-1 if node is None else column[node] for node in hierarchy.parents], dtype=np.int64),
        all_weights,
        hierarchy.names(),
        np.array(hierarchy.nodes, dtype=np.int64),
        np.array([bind[node] for node in hierarchy.nodes]),
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
    gltf: Gltf, primitives: list[_Primitive], skins: dict[int, _Skin], worlds: dict[int, Floats]
) -> tuple[dict[int, Floats], dict[int, Floats]]:
    """Each skin's matrix (4, 4) from mesh space to world, and each joint node's bind matrix in the world."""
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
            # A joint shared by two skins has one position, which aligns the second mesh space with the first.
            to_world[index] = bind[skin.joint_nodes[shared]] @ skin.inverse_bind[shared]
        else:
            node = next(primitive.node for primitive in primitives if primitive.skin == index)
            to_world[index] = _upright(worlds[node], worlds[skin.joint_nodes[0]] @ skin.inverse_bind[0])
        for node, inverse in zip(skin.joint_nodes, inverses, strict=True):
            bind.setdefault(node, to_world[index] @ inverse)
    return to_world, bind


def _upright(mesh_world: Floats, shown: Floats) -> Floats:
    """The bind pose's transform to the world: the mesh node's, if it agrees roughly with what viewers show.

    glTF ignores the node transform of a skinned mesh, but nearly every exporter stores the object's
    orientation there. `shown` is the transform that viewers apply to the first joint's vertices; the first
    frame of an animation may tilt it. If they differ by more than 45 degrees, the node transform is stale.
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
    """The joint nodes of all skins, root first and parents before children, otherwise in file order.

    `nodes` (J,): node indices. `parents` (J,): each one's parent joint as a node index, None for the root.
    Joints without a joint above them become children of the root with the most descendants.
    """

    def __init__(
        self, gltf: Gltf, skins: dict[int, _Skin], order: list[int], parents: dict[int, int]
    ) -> None:
        self._gltf, self._node_parents = gltf, parents
        found = list(dict.fromkeys(node for skin in skins.values() for node in skin.joint_nodes))
        self._joints = set(found)
        above = {node: self.nearest_joint(parents[node]) for node in found}
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
        self.parents = [above[node] for node in self.nodes]

    def nearest_joint(self, node: int) -> int | None:
        """The joint at or above `node`, None if there is none."""
        while node >= 0 and node not in self._joints:
            node = self._node_parents[node]
        return node if node >= 0 else None

    def names(self) -> tuple[str, ...]:
        """Unique joint names: the node name or "node<index>", with ".001", ".002", … after duplicates."""
        seen: dict[str, int] = {}
        result = []
        for node in self.nodes:
            name = str(self._gltf.item("nodes", node).get("name") or f"node{node}")
            seen[name] = seen.get(name, 0) + 1
            result.append(name if seen[name] == 1 else f"{name}.{seen[name] - 1:03d}")
        return tuple(result)


def _checked_slots(gltf: Gltf, primitive: _Primitive, count: int) -> NDArray[np.int64]:
    """Joint slots (V, 4 n), set to 0 where the weight is 0: exporters leave arbitrary values there."""
    assert primitive.joint_slots is not None
    assert primitive.slot_weights is not None
    if not np.isfinite(primitive.slot_weights).all():
        raise gltf.error("some skinning weights are NaN or infinite", "repair the weights")
    if primitive.slot_weights.size and primitive.slot_weights.min() < 0:
        raise gltf.error("some skinning weights are negative", "repair the weights")
    slots = np.where(primitive.slot_weights > 0, primitive.joint_slots, 0)
    if slots.size and slots.max() >= count:
        raise gltf.error(
            f"a vertex is bound to joint {slots.max()} of a skin that has only {count}", "repair the skin"
        )
    return slots


def _node_posed(primitive: _Primitive, slots: NDArray[np.int64], matrices: Floats) -> Floats:
    """Vertices (V, 3) by linear blend skinning in the node pose, for skins that store no bind pose."""
    assert primitive.slot_weights is not None
    total = primitive.slot_weights.sum(axis=1, keepdims=True)
    weights = primitive.slot_weights / np.where(total > 0, total, 1)
    blended = np.einsum("vk,vkij->vij", weights, matrices[slots])
    blended[total[:, 0] <= 0] = matrices[0]
    return np.einsum("vij,vj->vi", blended[:, :3, :3], primitive.vertices) + blended[:, :3, 3]


def _inverse(gltf: Gltf, matrix: Floats, what: str) -> Floats:
    try:
        inverse = np.asarray(np.linalg.inv(matrix), dtype=np.float64)
    except np.linalg.LinAlgError:
        inverse = np.full((4, 4), np.nan)
    if not np.isfinite(inverse).all():
        raise gltf.error(f"the {what} cannot be inverted", "set every joint's scale to a non-zero value")
    return inverse


def _apply(matrix: Floats, points: Floats) -> Floats:
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def _joined_faces(primitives: list[_Primitive], flips: list[bool]) -> NDArray[np.int64]:
    """All faces with vertex offsets; mirrored primitives get the reverse winding to face outward."""
    starts = np.cumsum([0] + [len(primitive.vertices) for primitive in primitives[:-1]])
    return np.concatenate(
        [
            (primitive.faces[:, ::-1] if flip else primitive.faces) + start
            for primitive, flip, start in zip(primitives, flips, starts, strict=True)
        ]
    )
