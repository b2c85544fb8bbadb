"""Removes nodes from a glTF document and renumbers every reference to the others."""

from collections.abc import Iterator
from typing import Any

# Extensions that hold no node index anywhere. Families by prefix.
_WITHOUT_NODES = (
    "KHR_materials_",
    "KHR_texture_",
    "KHR_lights_punctual",
    "KHR_mesh_quantization",
    "KHR_node_visibility",
    "KHR_xmp",
    "KHR_gaussian_splatting",
    "ADOBE_materials_",
    "AGI_",
    "EXT_lights_",
    "EXT_materials_",
    "EXT_mesh_gpu_instancing",
    "EXT_mesh_features",
    "EXT_mesh_manifold",
    "EXT_structural_metadata",
    "EXT_texture_",
    "FB_geometry_metadata",
    "FB_ngon_encoding",
    "GODOT_single_root",
    "MSFT_packing_",
    "MSFT_texture_",
)


def remove_nodes(document: dict[str, Any], removed: frozenset[int]) -> bool:
    """Remove nodes, given by index, from all scenes, children and from the list of nodes.

    The remaining nodes are renumbered in scenes, children, skins and animations. If the document uses an
    extension that might refer to nodes by number, nothing is renumbered: the nodes leave scenes and children
    only, and the list keeps them. Returns whether they left the list too. No skin may use a removed node.
    """
    nodes = document.get("nodes", [])
    for entry in [*document.get("scenes", []), *nodes]:
        for key in ("nodes", "children"):
            if key in entry:
                entry[key] = [index for index in entry[key] if index not in removed]
                if not entry[key]:
                    del entry[key]
    if any(not name.startswith(_WITHOUT_NODES) for name in _extensions(document)):
        return False
    kept = [index for index in range(len(nodes)) if index not in removed]
    number = {old: new for new, old in enumerate(kept)}
    document["nodes"] = [nodes[index] for index in kept]
    for entry in [*document.get("scenes", []), *document["nodes"], *document.get("skins", [])]:
        for key in ("nodes", "children", "joints"):
            if key in entry:
                entry[key] = [number[index] for index in entry[key]]
        if "skeleton" in entry:
            entry["skeleton"] = number[entry["skeleton"]]
    for animation in document.get("animations", []):
        for channel in animation["channels"]:
            if "node" in channel["target"]:
                channel["target"]["node"] = number[channel["target"]["node"]]
    return True


def _extensions(value: Any) -> Iterator[str]:
    """The names of all extensions in a document, declared or found in any of its objects."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("extensionsUsed", "extensionsRequired") or key == "extensions":
                yield from inner
            if key != "extras":
                yield from _extensions(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _extensions(inner)
