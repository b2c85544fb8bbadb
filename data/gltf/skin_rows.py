"""Finds the vertex of the flattened mesh whose weights each stored vertex of a glTF document takes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from data.gltf.document import Gltf, add_outside, scene_tree
from data.gltf.geometry import Flattened, Part

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SkinnedNode:
    """A node whose mesh gets the new skin.

    `to_world` (4, 4): from mesh space to the flattened mesh's frame; None if no single invertible matrix does
    that for all stored vertices. `rows`: for each POSITION accessor of the mesh, the row (n,) int64 of the
    flattened mesh that each stored vertex takes its weights from.
    """

    node: int
    mesh: int
    to_world: Floats | None
    rows: dict[int, NDArray[np.int64]]


def skinned_nodes(gltf: Gltf, flat: Flattened) -> list[SkinnedNode]:
    """Every node with flattened vertices, and the nodes of the default scene with lines and points alone.

    Stored vertices that no triangle uses take the row of the nearest one that is used: of the same accessor,
    or else of the whole flattened mesh.
    """
    parts: dict[int, list[tuple[Part, int]]] = {}
    start = 0
    for part in flat.parts:
        parts.setdefault(part.node, []).append((part, start))
        start += len(part.vertices)
    places = {node: _shared_place([part for part, _ in found]) for node, found in parts.items()}
    place_of_skin = {gltf.item("nodes", node).get("skin"): place for node, place in places.items()}
    tree = scene_tree(gltf)
    # If the default scene shows no triangles, the reader takes all nodes.
    add_outside(gltf, tree, list(parts))
    worlds = tree.worlds
    result = []
    for node in sorted({*parts, *tree.scene}):
        entry = gltf.item("nodes", node)
        if "mesh" not in entry:
            continue
        primitives = gltf.item("meshes", entry["mesh"])["primitives"]
        if node in parts:
            place = places[node]
        elif any(primitive.get("mode", 4) >= 4 for primitive in primitives):
            continue  # triangles that the reader left out
        else:
            tree.require([node])
            place = place_of_skin.get(entry["skin"]) if "skin" in entry else worlds[node]
        rows = _rows(gltf, flat, primitives, parts.get(node, []), worlds[node] if place is None else place)
        result.append(SkinnedNode(node, entry["mesh"], place, rows))
    return result


def mirrored_nodes(gltf: Gltf) -> set[int]:
    """The nodes whose transforms to the world mirror, which turns triangles inside out."""
    tree = scene_tree(gltf)
    add_outside(gltf, tree, list(range(len(gltf.items("nodes")))))
    return {
        node
        for node, world in tree.worlds.items()
        if np.isfinite(world).all() and np.linalg.det(world[:3, :3]) < 0
    }


def _shared_place(parts: list[Part]) -> Floats | None:
    """The invertible matrix to the world that all parts share, None if there is none."""
    first = parts[0].to_world
    if first is None or any(part.to_world is None or (part.to_world != first).any() for part in parts):
        return None
    linear = first[:3, :3]
    return first if abs(np.linalg.det(linear)) > 1e-9 * np.linalg.norm(linear) ** 3 else None


def _rows(
    gltf: Gltf,
    flat: Flattened,
    primitives: list[dict[str, Any]],
    parts: list[tuple[Part, int]],
    place: Floats,
) -> dict[int, NDArray[np.int64]]:
    used: dict[int, list[tuple[Part, int]]] = {}
    for part, start in parts:
        used.setdefault(primitives[part.primitive]["attributes"]["POSITION"], []).append((part, start))
    rows: dict[int, NDArray[np.int64]] = {}
    for primitive in primitives:
        accessor = primitive["attributes"].get("POSITION")
        if accessor is None or accessor in rows:
            continue
        found = np.full(gltf.item("accessors", accessor)["count"], -1, dtype=np.int64)
        for part, start in used.get(accessor, []):
            found[part.vertices] = np.arange(start, start + len(part.vertices))
        missing = np.flatnonzero(found < 0)
        if len(missing):
            stored = gltf.accessor(accessor).astype(np.float64)
            known = np.flatnonzero(found >= 0)
            if len(known):
                found[missing] = found[known[_nearest(stored[known], stored[missing])]]
            else:
                found[missing] = _nearest(flat.vertices, stored @ place[:3, :3].T + place[:3, 3])
        rows[accessor] = found
    return rows


def _nearest(places: Floats, queries: Floats) -> NDArray[np.int64]:
    return np.asarray(cKDTree(places).query(np.nan_to_num(queries))[1], dtype=np.int64)
