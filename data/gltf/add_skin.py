"""Adds a skin to a parsed glTF document and leaves everything else in it as it was."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.gltf.baking import bake
from data.gltf.document import Gltf, malformed, node_parents
from data.gltf.editing import ARRAY_BUFFER, GltfEditor
from data.gltf.geometry import Flattened
from data.gltf.hierarchy import counted
from data.gltf.influences import dropped_weight, top_influences
from data.gltf.node_removal import remove_nodes
from data.gltf.old_skin import (
    SKIN_ATTRIBUTE,
    OldSkins,
    empty_damaged_accessors,
    old_skins,
    remove_animations,
    remove_skins,
    skin_accessors,
    take_out_skeleton,
    way_up,
)
from data.gltf.skin_rows import SkinnedNode, mirrored_nodes, skinned_nodes
from data.mesh import MeshError
from data.rig import Rig

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SkinnedFile:
    """A GLB with the new skin.

    `dropped` (V,) float64: the share of weight that each flattened vertex lost, having more than four
    influences. `replaced`: what was taken out ("the file's skin 'Armature' (24 joints) and 1 animation"),
    None if nothing was. `notes`: what else a user should know, one phrase each.
    """

    glb: bytes
    dropped: NDArray[np.float64]
    replaced: str | None
    notes: tuple[str, ...]


def add_skin(
    gltf: Gltf,
    flat: Flattened,
    rig: Rig,
    keep_skin: bool = False,
    joint_nodes: Sequence[int] | None = None,
    bind: Floats | None = None,
) -> SkinnedFile:
    """Bind the meshes of a document to a rig and return it as a GLB.

    flat: `flatten(gltf)`. rig: in the frame of `flat`, the file's world, with weights for `flat.vertices`.
    Joints become world-aligned nodes at the end of the list of nodes, the root in every scene that shows a
    mesh; default names ("bone_0") that a node has already get a suffix. Each vertex keeps its 4 largest
    weights, renormalised; a vertex without any is bound to the root.

    What the document holds keeps its bytes, indices and order; new data, nodes and skins follow. A skinned
    vertex stands at world(joint) · inverse bind · v, so positions stay as stored and the inverse bind
    matrices hold the way from mesh space to the world: one skin for each such transform. Only where no single
    matrix leads there, because an old skin posed the vertices one by one, are new positions, normals,
    tangents and morph targets written. A mesh that several nodes show is copied if their weights differ; the
    copies share the accessors of the original.

    Old skins of these nodes are replaced: their attributes, joint nodes that carry nothing else, and
    animations of those joints are removed (see `take_out_skeleton`), and the other nodes are renumbered. The
    old accessors stay in the file, unused; damaged ones are emptied. keep_skin: skins, joints and animations
    stay, though no mesh uses them, and the old attributes stay as `_JOINTS_0`, `_WEIGHTS_0`.

    joint_nodes (J,), bind (J, 4, 4): bind to these nodes of the document, whose bind matrices in the world
    are `bind`, instead of new ones. They, their names, hierarchy and animations stay; of the rig only the
    weights count. Joints outside the scenes of their meshes are shown in them.

    Raises MeshError naming the file: the rig has weights for another number of vertices, or the document is
    malformed.
    """
    if len(rig.weights) != len(flat.vertices):
        raise MeshError(
            f"{gltf.path}: {len(rig.weights)} rows of weights for {len(flat.vertices)} vertices; "
            "pass one row of weights per vertex of the flattened mesh"
        )
    own = joint_nodes is not None
    with malformed(gltf):
        nodes = skinned_nodes(gltf, flat)
        editor = GltfEditor(gltf)
        _set_attributes(gltf, editor, flat, nodes, rig.weights, keep_skin)
        chosen = [one.node for one in nodes]
        old = old_skins(editor.json, chosen)
        rigid = [one.node for one in nodes if editor.json["nodes"][one.node].pop("skin", None) is None]
        going: frozenset[int] = frozenset()
        gone, shortened = 0, 0
        if not keep_skin:
            stale = skin_accessors(gltf.json, old.skins, {one.mesh for one in nodes})
            remove_skins(editor.json, old.skins)
            empty_damaged_accessors(gltf, editor.json, stale)
            if not own:
                going = take_out_skeleton(editor.json, old.joints, chosen, mirrored_nodes(gltf))
                gone, shortened = remove_animations(editor.json, old.joints | going)
        notes = [*editor.notes, *_animated_meshes(editor.json, rigid, joint_nodes or ())]
        scenes = _scenes_of(editor.json, set(chosen))
        if joint_nodes is not None:
            _show_joints(editor.json, scenes, joint_nodes)
        else:
            joint_nodes = _add_joints(editor, rig, going)
            for scene in scenes:
                scene.setdefault("nodes", []).append(joint_nodes[0])
            bind = np.tile(np.eye(4), (len(rig.joints), 1, 1))
            bind[:, :3, 3] = rig.joints
        assert bind is not None
        _add_skins(editor, nodes, joint_nodes, bind)
        if going and not remove_nodes(editor.json, going):
            notes.append(
                f"kept {counted(len(going), 'node')} of the old skeleton in the list of nodes, outside every "
                "scene, because an extension in the file may refer to nodes by number"
            )
    replaced = _described(old, gone, shortened) if old.skins and not keep_skin else None
    if own and replaced is not None:
        notes.insert(0, f"new weights for {replaced}")
        replaced = None
    return SkinnedFile(editor.glb(), dropped_weight(rig.weights), replaced, tuple(notes))


def _set_attributes(
    gltf: Gltf,
    editor: GltfEditor,
    flat: Flattened,
    nodes: list[SkinnedNode],
    weights: NDArray[np.float32],
    keep_skin: bool,
) -> None:
    """Give every primitive of `nodes` JOINTS_0 and WEIGHTS_0, in copies of meshes where nodes differ."""
    slots, values = top_influences(weights)
    small = slots.astype(np.uint8 if weights.shape[1] <= 256 else np.uint16)
    matrices = _vertex_matrices(flat) if any(one.to_world is None for one in nodes) else None
    stored = {one.mesh: copy.deepcopy(editor.json["meshes"][one.mesh]["primitives"]) for one in nodes}
    chosen = {one.node for one in nodes}
    taken = {
        node["mesh"]
        for index, node in enumerate(gltf.items("nodes"))
        if "mesh" in node and index not in chosen
    }
    variants: dict[int, list[int]] = {}
    for one in nodes:
        primitives = copy.deepcopy(stored[one.mesh])
        for primitive in primitives:
            accessor = primitive["attributes"].get("POSITION")
            _set_aside(primitive["attributes"], keep_skin)
            if accessor is None:
                continue
            rows = one.rows[accessor]
            if one.to_world is None:
                assert matrices is not None
                bake(gltf, editor, primitive, matrices[rows])
            primitive["attributes"]["JOINTS_0"] = editor.add_accessor(small[rows], "VEC4", ARRAY_BUFFER)
            primitive["attributes"]["WEIGHTS_0"] = editor.add_accessor(values[rows], "VEC4", ARRAY_BUFFER)
        meshes = editor.json["meshes"]
        same = [mesh for mesh in variants.get(one.mesh, []) if meshes[mesh]["primitives"] == primitives]
        if same:
            mesh = same[0]
        elif one.mesh in variants or one.mesh in taken:
            mesh = editor.add("meshes", {**copy.deepcopy(meshes[one.mesh]), "primitives": primitives})
        else:
            mesh = one.mesh
            meshes[mesh]["primitives"] = primitives
        variants.setdefault(one.mesh, []).append(mesh)
        editor.json["nodes"][one.node]["mesh"] = mesh


def _set_aside(attributes: dict[str, Any], keep: bool) -> None:
    """Remove an old skin's attributes, or rename them to application attributes, which viewers ignore."""
    for name in [name for name in attributes if SKIN_ATTRIBUTE.fullmatch(name)]:
        accessor = attributes.pop(name)
        if keep:
            attributes[f"_{name}"] = accessor


def _vertex_matrices(flat: Flattened) -> Floats:
    """The matrix (V, 4, 4) from stored to flattened place of every vertex."""
    found = []
    for part in flat.parts:
        matrices = part.matrices if part.to_world is None else part.to_world[None]
        assert matrices is not None
        found.append(np.broadcast_to(matrices, (len(part.vertices), 4, 4)))
    return np.concatenate(found)


def _scenes_of(document: dict[str, Any], wanted: set[int]) -> list[dict[str, Any]]:
    """The scenes that contain one of the nodes `wanted`."""
    return [
        scene
        for scene in document.get("scenes", [])
        if not wanted.isdisjoint(_with_descendants(document["nodes"], scene.get("nodes", [])))
    ]


def _with_descendants(nodes: list[dict[str, Any]], roots: Sequence[int]) -> set[int]:
    """The nodes `roots` and all nodes below them."""
    found: set[int] = set()
    stack = list(roots)
    while stack:
        index = int(stack.pop())
        if index not in found:
            found.add(index)
            stack.extend(nodes[index].get("children", []))
    return found


def _show_joints(document: dict[str, Any], scenes: list[dict[str, Any]], joints: Sequence[int]) -> None:
    """Show joints in the scenes of their meshes, as glTF requires, if nothing else would appear with them."""
    nodes = document["nodes"]
    parent = node_parents(nodes)
    tops = {}
    for joint in joints:
        top = way_up(parent, int(joint))[-1]
        tops[top] = _with_descendants(nodes, [top])
    for scene in scenes:
        shown = _with_descendants(nodes, scene.get("nodes", []))
        for top, tree in tops.items():
            content = any(key in nodes[index] for index in tree for key in ("mesh", "camera", "extensions"))
            if not content and shown.isdisjoint(tree):
                scene.setdefault("nodes", []).append(top)


def _add_joints(editor: GltfEditor, rig: Rig, going: frozenset[int]) -> list[int]:
    """Append the rig's joints as nodes, translated only, and return their indices."""
    taken = {node.get("name") for index, node in enumerate(editor.entries("nodes")) if index not in going}
    joints = rig.joints.astype(np.float64)
    local = joints.copy()
    local[1:] -= joints[rig.parents[1:]]
    nodes = []
    # Names that somebody chose are kept: they may repeat, and animations are matched by them.
    default = all(name == f"bone_{joint}" for joint, name in enumerate(rig.names))
    for joint, given in enumerate(rig.names):
        name, number = given, 1
        while default and name in taken:
            name, number = f"{given}.{number:03d}", number + 1
        nodes.append(editor.add("nodes", {"name": name, "translation": local[joint].tolist()}))
    for joint, parent in enumerate(rig.parents.tolist()):
        if parent >= 0:
            editor.json["nodes"][nodes[parent]].setdefault("children", []).append(nodes[joint])
    return nodes


def _add_skins(
    editor: GltfEditor, nodes: list[SkinnedNode], joint_nodes: Sequence[int], bind: Floats
) -> None:
    """One skin for each transform from mesh space to the world, over the same joints."""
    inverse = np.linalg.inv(bind)
    root = _common_root(editor.json["nodes"], joint_nodes)
    skins: dict[bytes, int] = {}
    for one in nodes:
        matrices = inverse if one.to_world is None else inverse @ one.to_world
        matrices[:, 3] = (0, 0, 0, 1)
        # glTF stores matrices column by column. Adding 0 turns -0 into 0.
        columns = matrices.transpose(0, 2, 1).reshape(-1, 16).astype(np.float32) + np.float32(0)
        key = columns.tobytes()
        if key not in skins:
            skin: dict[str, Any] = {
                "name": "rig",
                "inverseBindMatrices": editor.add_accessor(columns, "MAT4"),
                "joints": [int(node) for node in joint_nodes],
            }
            if root is not None:
                skin["skeleton"] = root
            skins[key] = editor.add("skins", skin)
        editor.json["nodes"][one.node]["skin"] = skins[key]


def _common_root(nodes: list[dict[str, Any]], joints: Sequence[int]) -> int | None:
    """The first joint, if all others are below it."""
    return int(joints[0]) if _with_descendants(nodes, joints[:1]).issuperset(joints) else None


def _animated_meshes(document: dict[str, Any], rigid: list[int], joints: Sequence[int]) -> list[str]:
    """A note if animations move the nodes `rigid`: their meshes had no skin before and now ignore nodes.

    Animations of `joints`, which stay, still move them.
    """
    nodes = document["nodes"]
    parent = node_parents(nodes)
    moved = {
        channel["target"].get("node")
        for animation in document.get("animations", [])
        for channel in animation["channels"]
        if channel["target"]["path"] in ("translation", "rotation", "scale")
    }.difference(joints)
    count = sum(not moved.isdisjoint(way_up(parent, node)) for node in rigid)
    if not count:
        return []
    return [
        f"animations that move nodes no longer move {counted(count, 'mesh')}: a skin moves a mesh by joints"
    ]


def _described(old: OldSkins, animations: int, shortened: int) -> str:
    names = ", ".join(f"'{name}'" for name in old.names)
    parts = [f"the file's skin{'s' * (len(old.skins) > 1)} {names} ({counted(len(old.joints), 'joint')})"]
    if animations:
        parts.append(counted(animations, "animation"))
    if shortened:
        parts.append(f"the joints' channels of {counted(shortened, 'animation')}")
    return ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else parts[0]
