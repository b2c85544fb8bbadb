"""Moves a glTF primitive's stored vertices to their flattened places, with normals, tangents and morphs."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.gltf.document import Gltf
from data.gltf.editing import ARRAY_BUFFER, GltfEditor
from data.gltf.mesh_document import unit_vectors

Floats = NDArray[np.float64]


def bake(gltf: Gltf, editor: GltfEditor, primitive: dict[str, Any], matrices: Floats) -> None:
    """Point `primitive` at new accessors: every vertex and its vectors moved by its own matrix.

    matrices (n, 4, 4): one for each element of the POSITION accessor. Normals are turned by the inverse
    transpose, tangents and displacements by the linear part. The old accessors stay in the document.
    """
    linear = matrices[:, :3, :3]
    attributes = primitive["attributes"]
    normals = _read(gltf, attributes, "NORMAL")
    tangents = _read(gltf, attributes, "TANGENT")
    points = _read(gltf, attributes, "POSITION")
    assert points is not None
    placed = np.einsum("nij,nj->ni", linear, points) + matrices[:, :3, 3]
    attributes["POSITION"] = _write(editor, placed, "VEC3", bounds=True)
    if normals is not None:
        attributes["NORMAL"] = _write(editor, _turned(linear, normals), "VEC3")
    if tangents is not None:
        sign = np.where(np.linalg.det(linear) < 0, -1.0, 1.0)[:, None]
        turned = unit_vectors(np.einsum("nij,nj->ni", linear, tangents[:, :3]), (1, 0, 0))
        attributes["TANGENT"] = _write(editor, np.hstack([turned, tangents[:, 3:] * sign]), "VEC4")
    for target in primitive.get("targets", []):
        moved = _read(gltf, target, "POSITION")
        if moved is not None:
            target["POSITION"] = _write(editor, np.einsum("nij,nj->ni", linear, moved), "VEC3", bounds=True)
        bent = _read(gltf, target, "NORMAL")
        if bent is not None and normals is not None:
            change = _turned(linear, normals + bent) - _turned(linear, normals)
            target["NORMAL"] = _write(editor, change, "VEC3")
        twisted = _read(gltf, target, "TANGENT")
        if twisted is not None:
            target["TANGENT"] = _write(editor, np.einsum("nij,nj->ni", linear, twisted), "VEC3")


def _read(gltf: Gltf, attributes: dict[str, Any], name: str) -> Floats | None:
    return gltf.accessor(attributes[name]).astype(np.float64) if name in attributes else None


def _write(editor: GltfEditor, values: Floats, kind: str, bounds: bool = False) -> int:
    return editor.add_accessor(values.astype(np.float32), kind, ARRAY_BUFFER, bounds)


def _turned(linear: Floats, normals: Floats) -> Floats:
    """Unit normals after `linear` (n, 3, 3), also where that is singular: by its cofactor matrix."""
    x, y, z = linear[:, :, 0], linear[:, :, 1], linear[:, :, 2]
    cofactor = np.stack([np.cross(y, z), np.cross(z, x), np.cross(x, y)], axis=2)
    sign = np.where(np.linalg.det(linear) < 0, -1.0, 1.0)[:, None]
    return unit_vectors(np.einsum("nij,nj->ni", cofactor, normals) * sign).astype(np.float64)
