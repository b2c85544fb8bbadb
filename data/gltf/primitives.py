"""Reads the triangles of glTF primitives, with default morphs applied, and their skinning weights."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.gltf.document import Gltf

Floats = NDArray[np.float64]

# Weights this slightly negative are rounding noise.
NEGATIVE_NOISE = 1e-4


@dataclass(frozen=True, eq=False)
class Primitive:
    """The triangles of one primitive of one node, vertices in mesh space (before any transform).

    `node`, `mesh`, `number`: indices in the document (the primitive's within its mesh). `vertices` (V, 3):
    the referenced ones, stored positions plus default morphs; `kept` (V,): their indices in the POSITION
    accessor, which has `count` elements. `faces` (F, 3). `skin`: the node's skin if the primitive stores
    skinning weights, otherwise None.
    """

    node: int
    mesh: int
    number: int
    skin: int | None
    vertices: Floats
    faces: NDArray[np.int64]
    kept: NDArray[np.int64]
    count: int
    attributes: dict[str, Any]

    @property
    def where(self) -> str:
        """The primitive as error messages name it."""
        return f"meshes[{self.mesh}].primitives[{self.number}]"


def read_primitives(gltf: Gltf, index: int) -> Iterator[Primitive]:
    """The triangle primitives of node `index`, without unreferenced vertices.

    Raises MeshError if positions, indices or morph targets are damaged.
    """
    node = gltf.item("nodes", index)
    if "mesh" not in node:
        return
    mesh = gltf.item("meshes", node["mesh"])
    # glTF 2.0, section 3.7.2.2: the node's weights override the mesh's.
    morphs = node.get("weights", mesh.get("weights", []))
    for number, entry in enumerate(mesh["primitives"]):
        attributes = entry["attributes"]
        mode = entry.get("mode", 4)
        if mode not in (4, 5, 6) or "POSITION" not in attributes:
            continue
        where = f"meshes[{node['mesh']}].primitives[{number}]"
        points = _morphed(gltf, entry, morphs, where)
        if "indices" in entry:
            indices = gltf.accessor(entry["indices"])
            if not np.issubdtype(indices.dtype, np.integer) or indices.shape[1] != 1:
                raise gltf.error(f"{where} has indices that are not integers")
            flat = indices[:, 0].astype(np.int64)
        else:
            flat = np.arange(len(points))
        if len(flat) and (flat.min() < 0 or flat.max() >= len(points)):
            raise gltf.error(
                f"{where} refers to vertex {max(flat.max(), -flat.min())}, but has only {len(points)}",
                "repair the mesh",
            )
        faces = _triangles(flat, mode)
        if not len(faces):
            continue
        # Primitives often share a vertex buffer; unreferenced vertices would distort the bounding box.
        kept, compact = np.unique(faces, return_inverse=True)
        vertices = points[kept]
        if not np.isfinite(vertices).all():
            raise gltf.error(f"{where} has non-finite positions", "repair the mesh")
        weighted = any(key.startswith(("JOINTS_", "WEIGHTS_")) for key in attributes)
        yield Primitive(
            index,
            node["mesh"],
            number,
            node.get("skin") if weighted else None,
            vertices,
            compact.reshape(-1, 3),
            kept,
            len(points),
            attributes,
        )


def _morphed(gltf: Gltf, entry: dict[str, Any], morphs: Any, where: str) -> Floats:
    """Stored positions (V, 3) plus the morph targets' displacements at the default weights."""
    points = gltf.accessor(entry["attributes"]["POSITION"]).astype(np.float64)
    if points.shape[1] != 3:
        raise gltf.error(f"{where} has positions with {points.shape[1]} components")
    for target, weight in zip(entry.get("targets", []), morphs, strict=False):
        if weight == 0 or "POSITION" not in target:
            continue
        moved = gltf.accessor(target["POSITION"]).astype(np.float64)
        if moved.shape != points.shape or not np.isfinite(weight):
            raise gltf.error(f"{where} has a morph target of the wrong shape or a non-finite morph weight")
        points = points + float(weight) * moved
    return points


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


@dataclass(frozen=True, eq=False)
class Influences:
    """Skinning of a primitive's vertices: `slots` (V, 4 n) int64 into the skin's joints, `weights` (V, 4 n).

    Weights are as stored, finite and >= 0; slots of weight 0 are 0. `missing`: the number of vertices with
    NaN for all their weights, which count as 0.
    """

    slots: NDArray[np.int64]
    weights: Floats
    missing: int


def read_influences(gltf: Gltf, primitive: Primitive, joint_count: int) -> Influences:
    """JOINTS_n and WEIGHTS_n of the kept vertices, concatenated over n.

    A vertex that has NaN for all its weights is unbound: converters that normalise a row of zeros write 0/0.
    Raises MeshError if they are damaged: wrong shape or type, NaN beside other weights, infinite or negative
    weights, or slots beyond the skin's `joint_count` joints.
    """
    attributes, where, shape = primitive.attributes, primitive.where, (primitive.count, 4)
    found: list[NDArray[np.int64]] = []
    values: list[Floats] = []
    number = 0
    while f"JOINTS_{number}" in attributes or f"WEIGHTS_{number}" in attributes:
        if f"JOINTS_{number}" not in attributes or f"WEIGHTS_{number}" not in attributes:
            raise gltf.error(f"{where} has only one of JOINTS_{number} and WEIGHTS_{number}")
        joint = gltf.accessor(attributes[f"JOINTS_{number}"])
        weight = gltf.accessor(attributes[f"WEIGHTS_{number}"])
        if joint.shape != shape or weight.shape != shape or joint.dtype.kind not in "ui":
            raise gltf.error(f"{where} has JOINTS_{number} or WEIGHTS_{number} of the wrong shape or type")
        if weight.dtype.kind in "ui":
            # glTF requires integer weights to be normalised; some exporters forget the flag.
            weight = weight / np.iinfo(weight.dtype).max
        found.append(joint.astype(np.int64)[primitive.kept])
        values.append(weight.astype(np.float64)[primitive.kept])
        number += 1
    if not found:
        raise gltf.error(f"{where} has no JOINTS_0 and WEIGHTS_0")
    slots, weights = np.concatenate(found, axis=1), np.concatenate(values, axis=1)
    # Some exporters normalise each set of four by itself, so that a set without weight may stay 0.
    sets = weights.reshape(len(weights), -1, 4)
    unknown = np.asarray(np.isnan(sets).all(axis=2))
    empty = np.asarray((sets == 0).all(axis=2))
    missing = unknown.any(axis=1) & (unknown | empty).all(axis=1)
    weights[missing] = 0
    if not np.isfinite(weights).all():
        raise gltf.error("some skinning weights are NaN or infinite", "repair the weights")
    if weights.size and weights.min() < -NEGATIVE_NOISE:
        raise gltf.error("some skinning weights are negative", "repair the weights")
    weights = np.maximum(weights, 0)
    # Exporters leave arbitrary slots where the weight is 0.
    slots = np.where(weights > 0, slots, 0)
    if slots.size and (slots.max() >= joint_count or slots.min() < 0):
        raise gltf.error(
            f"a vertex is bound to joint {slots.max()} of a skin that has only {joint_count}",
            "repair the skin",
        )
    return Influences(slots, weights, int(missing.sum()))
