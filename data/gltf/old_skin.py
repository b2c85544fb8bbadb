"""Takes a file's old skin, with its joints and their animations, out of a glTF document."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.gltf.document import Gltf, node_parents
from data.mesh import MeshError

SKIN_ATTRIBUTE = re.compile(r"(JOINTS|WEIGHTS)_\d+")

_POINTER = re.compile(r"/nodes/(\d+)(/|$)")


@dataclass(frozen=True)
class OldSkins:
    """The skins that a new one replaces, by index, with their joints (node indices)."""

    skins: tuple[int, ...]
    joints: frozenset[int]
    names: tuple[str, ...]


def old_skins(document: dict[str, Any], skinned: Iterable[int]) -> OldSkins:
    """The skins of the nodes `skinned` that no other node uses. What is damaged in them is ignored.

    A joint that another node's skin uses as well, in another scene for example, is not among the joints.
    """
    chosen = set(skinned)
    skins = document.get("skins", [])
    used: dict[bool, set[int]] = {True: set(), False: set()}
    for index, node in enumerate(document.get("nodes", [])):
        if node.get("skin") in range(len(skins)):
            used[index in chosen].add(node["skin"])
    old = sorted(used[True] - used[False])
    shared = {joint for skin in used[False] for joint in _joints(document, skins[skin])}
    joints = {joint for skin in old for joint in _joints(document, skins[skin])} - shared
    names = tuple(str(skins[skin].get("name") or f"skin {skin}") for skin in old)
    return OldSkins(tuple(old), frozenset(joints), names)


def remove_skins(document: dict[str, Any], skins: Iterable[int]) -> None:
    """Delete entries of the list of skins, which no node may use any more, and renumber the others."""
    removed = set(skins)
    kept = [index for index in range(len(document.get("skins", []))) if index not in removed]
    number = {old: new for new, old in enumerate(kept)}
    for node in document.get("nodes", []):
        if node.get("skin") in number:
            node["skin"] = number[node["skin"]]
    if kept:
        document["skins"] = [document["skins"][index] for index in kept]
    else:
        document.pop("skins", None)


def remove_animations(document: dict[str, Any], targets: Iterable[int]) -> tuple[int, int]:
    """Delete the animation channels of the nodes `targets`, and animations without a channel left.

    Returns the numbers of (deleted animations, animations that lost some of their channels). Samplers and
    their data stay.
    """
    nodes = set(targets)
    kept, changed = [], 0
    animations = document.get("animations", [])
    for animation in animations:
        channels = [channel for channel in animation["channels"] if _target(channel) not in nodes]
        if channels:
            changed += len(channels) < len(animation["channels"])
            animation["channels"] = channels
            kept.append(animation)
    if animations:
        document["animations"] = kept
    if animations and not kept:
        del document["animations"]
    return len(animations) - len(kept), changed


def skin_accessors(document: dict[str, Any], skins: Iterable[int], meshes: Iterable[int]) -> set[int]:
    """The accessors of inverse bind matrices of `skins` and of JOINTS_n and WEIGHTS_n of `meshes`."""
    found = {document["skins"][skin].get("inverseBindMatrices") for skin in skins}
    for mesh in meshes:
        for primitive in document["meshes"][mesh]["primitives"]:
            attributes = primitive["attributes"]
            found |= {attributes[name] for name in attributes if SKIN_ATTRIBUTE.fullmatch(name)}
    return {one for one in found if one in range(len(document.get("accessors", [])))}


def empty_damaged_accessors(gltf: Gltf, document: dict[str, Any], accessors: Iterable[int]) -> None:
    """Empty those of `accessors` that nothing uses any more and that cannot be read or hold NaN or infinity.

    Validators check unused accessors, too. An accessor without a buffer view is one of zeros; its index and
    the bytes of the file stay. gltf: the input, `document`: its edited copy.
    """
    for index in sorted(set(accessors) - _used_accessors(document)):
        try:
            sound = bool(np.isfinite(gltf.accessor(index)).all())
        except MeshError:
            sound = False
        if not sound:
            for key in ("bufferView", "byteOffset", "sparse", "min", "max"):
                document["accessors"][index].pop(key, None)


def _used_accessors(document: dict[str, Any]) -> set[Any]:
    primitives = [primitive for mesh in document.get("meshes", []) for primitive in mesh["primitives"]]
    used = {primitive.get("indices") for primitive in primitives}
    for primitive in primitives:
        for attributes in (primitive["attributes"], *primitive.get("targets", [])):
            used |= set(attributes.values())
    used |= {skin.get("inverseBindMatrices") for skin in document.get("skins", [])}
    samplers = [one for animation in document.get("animations", []) for one in animation["samplers"]]
    return used | {sampler[end] for sampler in samplers for end in ("input", "output")}


def take_out_skeleton(
    document: dict[str, Any], joints: frozenset[int], skinned: Collection[int], mirrored: Collection[int]
) -> frozenset[int]:
    """Choose the old joint nodes, and nodes below and above them, that can go; hang what stays elsewhere.

    A node stays if it or a node below it has a mesh, a camera, an extension (such as a light) or, not being a
    joint, extras, or is a joint of a skin that is still in the document. A mesh of `skinned` below a joint (a
    sword in a hand) holds nothing: its new skin places it, so its node moves up to the nearest node that
    stays, or to the scene. Not so if that would change whether its node is mirrored, by which viewers tell
    the outside of its triangles; `mirrored`: the nodes whose world transforms are. Returns the nodes to
    remove; no other node is below them any more.
    """
    nodes = document.get("nodes", [])
    parent = node_parents(nodes)
    ways = [way_up(parent, index) for index in range(len(nodes))]
    held = {index for index in skinned if not joints.isdisjoint(ways[index][1:])}
    while True:
        removed = _without_content(document, joints, ways, held)
        moves = {
            index: next((above for above in ways[index] if above not in removed and above != index), None)
            for index in held
            if parent[index] in removed
        }
        turned = {index for index, goal in moves.items() if (goal in mirrored) != (parent[index] in mirrored)}
        if not turned:
            break
        held -= turned
    for index, goal in sorted(moves.items()):
        nodes[parent[index]]["children"].remove(index)
        if goal is not None:
            nodes[goal].setdefault("children", []).append(index)
            continue
        for scene in document.get("scenes", []):
            if ways[index][-1] in scene.get("nodes", []):
                scene["nodes"].append(index)
    return removed


def _without_content(
    document: dict[str, Any], joints: frozenset[int], ways: list[list[int]], held: Collection[int]
) -> frozenset[int]:
    """The joints, and nodes above and below them, that have no content; meshes of `held` are none."""
    still_used = {joint for skin in document.get("skins", []) for joint in _joints(document, skin)}
    still_used |= {skin["skeleton"] for skin in document.get("skins", []) if "skeleton" in skin}
    related = set(joints)
    staying = set(held)
    for index, node in enumerate(document.get("nodes", [])):
        if not joints.isdisjoint(ways[index]):
            related.add(index)
        if index in joints:
            related.update(ways[index])
        content = "camera" in node or node.get("extensions") or index in still_used
        if index not in held:
            content = content or "mesh" in node or (index not in joints and node.get("extras"))
        if content:
            staying.update(ways[index])
    return frozenset(related - staying)


def way_up(parent: dict[int, int], index: int) -> list[int]:
    """A node and all nodes above it, upwards; `parent` as from `node_parents`."""
    way = [index]
    while way[-1] in parent:
        way.append(parent[way[-1]])
    return way


def _target(channel: dict[str, Any]) -> int | None:
    """The node that an animation channel moves, also by KHR_animation_pointer; None if it moves no node."""
    target = channel["target"]
    if "node" in target:
        return int(target["node"])
    pointer = target.get("extensions", {}).get("KHR_animation_pointer", {}).get("pointer", "")
    found = _POINTER.match(pointer)
    return int(found[1]) if found else None


def _joints(document: dict[str, Any], skin: dict[str, Any]) -> set[int]:
    """The joints of a skin that exist; a damaged list has none."""
    joints = skin.get("joints")
    listed = joints if isinstance(joints, list) else []
    return {joint for joint in listed if joint in range(len(document.get("nodes", [])))}
