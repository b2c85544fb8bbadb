"""Flattens a glTF scene to one mesh: triangles in the world, joints and skinning weights in bind pose."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from data.gltf.bind_pose import BindPose, bind_pose
from data.gltf.document import Gltf, NodeTree, add_outside, malformed, scene_tree
from data.gltf.hierarchy import Hierarchy, counted, joint_names, listed, node_name
from data.gltf.primitives import Influences, Primitive, read_influences, read_primitives
from data.gltf.skins import joint_nodes, read_skin
from data.mesh import MeshError

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Part:
    """The vertices of a flattened scene that come from one primitive of one node.

    `node`, `mesh`, `primitive`: indices in the document (the primitive's within its mesh). `vertices` (n,)
    int64: indices into the primitive's POSITION accessor. `to_world` (4, 4) float64: flattened vertex =
    to_world · (stored position + default morphs); None if the skin poses the vertices one by one, by
    `matrices` (n, 4, 4). `bound`: whether a joint moves it; False in files without a skin. `name`: the
    node's.
    """

    node: int
    mesh: int
    primitive: int
    vertices: NDArray[np.int64]
    to_world: Floats | None
    bound: bool
    name: str
    matrices: Floats | None = None


@dataclass(frozen=True, eq=False)
class Flattened:
    """A glTF scene flattened to one mesh, in the file's world frame and units.

    `vertices` (V, 3) float64, `faces` (F, 3) int64; `parts`: the origin of the vertices, in their order. A
    skinned file is in bind pose and has `joints` (J, 3) float64, `parents` (J,) int64 with the root first and
    parents before children, `weights` (V, J) float32 as stored (zeros in parts that no joint moves), `names`
    (J,), `joint_nodes` (J,) int64 (node indices) and `bind` (J, 4, 4) float64 (bind matrices in the world
    frame); for any other file these are None. `notes`: what was derived, skipped or chosen, one phrase each.
    `skin_error`: why the skin of a skinned file cannot be read; the geometry is then unskinned.
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
    skin_error: MeshError | None = None


def flatten(gltf: Gltf) -> Flattened:
    """All triangles of the default scene in the world, in bind pose if the file is skinned.

    See `bind_pose` for where skinned meshes and joints stand. A mesh without a skin stands where its node
    does; if it is attached rigidly below a joint, it is carried along into the bind pose and gets weight 1
    for that joint. A skin that cannot be read costs only the rig: `skin_error`, and all meshes stand where
    their nodes do. Unreferenced vertices are dropped; so are meshes hidden by a scale of 0. If the default
    scene shows no triangles, all nodes are read. Raises MeshError naming the file if its geometry is damaged
    or missing.
    """
    # Extreme values overflow silently here and are refused as non-finite later.
    with malformed(gltf), np.errstate(all="ignore"):
        notes: list[str] = []
        tree = scene_tree(gltf)
        primitives = _primitives(gltf, tree)
        if not primitives:
            add_outside(gltf, tree, list(range(len(gltf.items("nodes")))))
            tree.scene[:] = tree.worlds
            primitives = _primitives(gltf, tree)
            if not primitives:
                raise gltf.error(
                    "the scene has no triangles (a point cloud or lines?)", "export a triangle mesh"
                )
            notes.append("the default scene shows no triangles: all nodes were read")
        tree.require(one.node for one in primitives if one.skin is None)
        visible = [one for one in primitives if one.skin is not None or not _hidden(tree.worlds[one.node])]
        if 0 < len(visible) < len(primitives):
            hidden = dict.fromkeys(node_name(gltf, one.node) for one in primitives if one not in visible)
            notes.append(
                f"dropped {counted(len(hidden), 'mesh')} hidden by a scale of 0: {listed(list(hidden))}"
            )
        visible = visible or primitives
        instanced = [
            node_name(gltf, node)
            for node in dict.fromkeys(one.node for one in visible)
            if "EXT_mesh_gpu_instancing" in gltf.item("nodes", node).get("extensions", {})
        ]
        if instanced:
            notes.append(f"one copy was read of each instanced mesh: {listed(instanced)}")
        error = None
        if any(primitive.skin is not None for primitive in visible):
            try:
                with malformed(gltf):
                    return _flatten_skinned(gltf, visible, tree, notes)
            except MeshError as problem:
                error = problem
                reason = str(problem).removeprefix(f"{gltf.path}: ")
                notes.append(f"read the geometry only, the skin cannot be read: {reason}")
        loose = [node_name(gltf, one.node) for one in visible if "JOINTS_0" in one.attributes]
        if loose and error is None:
            notes.append(f"skinning weights without a skin were ignored: {listed(loose)}")
        tree.require(one.node for one in visible)
        transforms = [tree.worlds[primitive.node] for primitive in visible]
        points = [_apply(matrix, one.vertices) for matrix, one in zip(transforms, visible, strict=True)]
        parts = [_part(gltf, one, matrix, False) for matrix, one in zip(transforms, visible, strict=True)]
        return Flattened(
            np.concatenate(points),
            _joined_faces(visible, transforms),
            tuple(parts),
            notes=tuple(notes),
            skin_error=error,
        )


def _primitives(gltf: Gltf, tree: NodeTree) -> list[Primitive]:
    return [primitive for index in sorted(tree.scene) for primitive in read_primitives(gltf, index)]


def _hidden(world: Floats) -> bool:
    """Whether a transform flattens everything to a line or a point."""
    sizes = np.linalg.svd(world[:3, :3], compute_uv=False)
    return bool(sizes[1] <= 1e-9 * max(sizes[0], 1e-30))


def _flatten_skinned(gltf: Gltf, primitives: list[Primitive], tree: NodeTree, notes: list[str]) -> Flattened:
    """The skinned file in bind pose. Raises MeshError if a skin cannot be read."""
    # A copy: joints outside the scene are no part of it if the skin turns out to be damaged.
    tree = NodeTree(tree.scene, dict(tree.worlds), dict(tree.parents), dict(tree.damaged))
    notes = list(notes)
    used = list(dict.fromkeys(primitive.skin for primitive in primitives if primitive.skin is not None))
    nodes = [node for index in used for node in joint_nodes(gltf, index)]
    add_outside(gltf, tree, nodes)
    tree.require(nodes)
    outside = [node_name(gltf, node) for node in dict.fromkeys(nodes) if node not in set(tree.scene)]
    if outside:
        notes.append(f"{counted(len(outside), 'joint')} outside the scene: {listed(outside)}")
    influences = {
        number: read_influences(gltf, primitive, len(joint_nodes(gltf, primitive.skin)))
        for number, primitive in enumerate(primitives)
        if primitive.skin is not None
    }
    users = [(primitives[number], found) for number, found in influences.items()]
    skins = {
        index: read_skin(gltf, index, [user for user in users if user[0].skin == index]) for index in used
    }
    pose = bind_pose(list(skins.values()), tree)
    hierarchy = Hierarchy(nodes, tree)
    names = joint_names(gltf, hierarchy.nodes)
    name_of = dict(zip(hierarchy.nodes, names, strict=True))
    notes.extend(_skin_notes(hierarchy, pose, name_of, list(influences.values())))
    column = {node: number for number, node in enumerate(hierarchy.nodes)}
    points, weights, transforms, parts = [], [], [], []
    for number, primitive in enumerate(primitives):
        rows = np.zeros((len(primitive.vertices), len(column)), dtype=np.float32)
        bound = True
        if primitive.skin is not None:
            skin, found = skins[primitive.skin], influences[number]
            columns = np.array([column[node] for node in skin.nodes])
            np.add.at(rows, (np.arange(len(rows))[:, None], columns[found.slots]), found.weights)
            transform, slots = pose.to_world[skin.index], pose.slots[skin.index]
        else:
            joint, slots, transform = (
                hierarchy.nearest_joint(primitive.node),
                None,
                tree.worlds[primitive.node],
            )
            bound = joint is not None
            if joint is not None:
                rows[:, column[joint]] = 1
                # Its transform relative to the joint in the node pose also holds in the bind pose.
                transform = pose.joints[joint] @ np.linalg.pinv(tree.worlds[joint]) @ transform
        part = _part(gltf, primitive, transform, bound)
        if slots is None:
            points.append(_apply(transform, primitive.vertices))
        else:
            matrices = _blended(influences[number], slots, transform)
            points.append(
                np.einsum("vij,vj->vi", matrices[:, :3, :3], primitive.vertices) + matrices[:, :3, 3]
            )
            part = replace(part, to_world=None, matrices=matrices)
        weights.append(rows)
        transforms.append(transform)
        parts.append(part)
    return Flattened(
        np.concatenate(points),
        _joined_faces(primitives, transforms),
        tuple(parts),
        np.array([pose.joints[node][:3, 3] for node in hierarchy.nodes]),
        np.array([-1 if node is None else column[node] for node in hierarchy.parents], dtype=np.int64),
        np.concatenate(weights),
        names,
        np.array(hierarchy.nodes, dtype=np.int64),
        np.array([pose.joints[node] for node in hierarchy.nodes]),
        tuple(notes),
    )


def _skin_notes(
    hierarchy: Hierarchy, pose: BindPose, names: dict[int, str], influences: list[Influences]
) -> list[str]:
    """What was derived or chosen when the skins were read."""
    notes = []
    if pose.unusable:
        replaced = listed([names[node] for node in pose.unusable])
        notes.append(
            f"placed {counted(len(pose.unusable), 'joint')} without a usable inverse bind matrix by the "
            f"neighbouring joints: {replaced}"
        )
    if pose.brought_together:
        notes.append(
            f"brought {counted(len(pose.brought_together), 'skin')}, bound in another pose, into the pose of "
            "the rest"
        )
    missing = sum(one.missing for one in influences)
    if missing:
        notes.append(f"read {counted(missing, 'vertex')} with NaN weights as unbound")
    if hierarchy.adopted:
        adopted = listed([names[node] for node in hierarchy.adopted])
        notes.append(
            f"no single root: {names[hierarchy.nodes[0]]} was made the parent of "
            f"{counted(len(hierarchy.adopted), 'other top joint')}: {adopted}"
        )
    return notes


def bound_only(flat: Flattened) -> Flattened:
    """A skinned scene without the parts that no joint moves, which a note lists."""
    dropped = [part for part in flat.parts if not part.bound]
    if not dropped or flat.weights is None:
        return flat
    keep = np.concatenate([np.full(len(part.vertices), part.bound) for part in flat.parts])
    new_index = np.cumsum(keep) - 1
    counts: dict[str, int] = {}
    for part in dropped:
        counts[part.name] = counts.get(part.name, 0) + len(part.vertices)
    shown = listed([f"{name} ({counted(count, 'vertex')})" for name, count in counts.items()])
    note = f"excluded {counted(len(counts), 'mesh')} that no joint moves from the rig: {shown}"
    return replace(
        flat,
        vertices=flat.vertices[keep],
        faces=new_index[flat.faces[keep[flat.faces[:, 0]]]],
        parts=tuple(part for part in flat.parts if part.bound),
        weights=flat.weights[keep],
        notes=(*flat.notes, note),
    )


def _blended(influences: Influences, slots: Floats, unbound: Floats) -> Floats:
    """Each vertex's matrix (V, 4, 4) by linear blend skinning of the slots'; `unbound` without weights."""
    total = influences.weights.sum(axis=1, keepdims=True)
    weights = influences.weights / np.where(total > 0, total, 1)
    matrices = np.einsum("vk,vkij->vij", weights, slots[influences.slots])
    matrices[total[:, 0] <= 0] = unbound
    return np.asarray(matrices)


def _part(gltf: Gltf, primitive: Primitive, to_world: Floats, bound: bool) -> Part:
    name = node_name(gltf, primitive.node)
    return Part(primitive.node, primitive.mesh, primitive.number, primitive.kept, to_world, bound, name)


def _apply(matrix: Floats, points: Floats) -> Floats:
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def _joined_faces(primitives: list[Primitive], transforms: list[Floats]) -> NDArray[np.int64]:
    """All faces with vertex offsets; mirrored primitives get the reverse winding to face outward."""
    starts = np.cumsum([0] + [len(primitive.vertices) for primitive in primitives[:-1]])
    return np.concatenate(
        [
            (primitive.faces[:, ::-1] if np.linalg.det(matrix[:3, :3]) < 0 else primitive.faces) + start
            for primitive, matrix, start in zip(primitives, transforms, starts, strict=True)
        ]
    )
