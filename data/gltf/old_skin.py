"""Takes a file's old skin, its joints and their animations out of a glTF document."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

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


def skeleton_nodes(document: dict[str, Any], joints: frozenset[int]) -> frozenset[int]:
    """Old joint nodes, and the nodes below and above them, that carry nothing and can go.

    A node carries something if it or a node below it has a mesh, a camera, an extension (such as a light) or,
    not being a joint, extras, or is a joint of a skin that is still in the document.
    """
    nodes = document.get("nodes", [])
    still_used = {joint for skin in document.get("skins", []) for joint in _joints(document, skin)}
    still_used |= {skin["skeleton"] for skin in document.get("skins", []) if "skeleton" in skin}
    parent = {child: index for index, node in enumerate(nodes) for child in node.get("children", [])}
    carrying: set[int] = set()
    related = set(joints)
    for index, node in enumerate(nodes):
        way = [index]
        while way[-1] in parent:
            way.append(parent[way[-1]])
        if not joints.isdisjoint(way):
            related.add(index)
        if index in joints:
            related.update(way)
        own = "mesh" in node or "camera" in node or node.get("extensions") or index in still_used
        if own or (index not in joints and node.get("extras")):
            carrying.update(way)
    return frozenset(related - carrying)


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
