"""Builds a glTF document from triangles with normals, UVs and colours, one mesh node for each piece."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.gltf.document import Gltf
from data.gltf.editing import ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER, GltfEditor
from data.mesh import UpAxis, y_up


@dataclass(frozen=True, eq=False)
class Piece:
    """Triangles with one material. `vertices` (V, 3), `faces` (F, 3), indices into `vertices`.

    `normals` (V, 3): unit vectors. `uv` (V, 2): from the image's upper left corner, as in glTF. `colours`
    (V, 4) uint8: red, green, blue, alpha. `material`: index in the document's materials.
    """

    name: str
    vertices: NDArray[np.floating]
    faces: NDArray[np.integer]
    normals: NDArray[np.floating] | None = None
    uv: NDArray[np.floating] | None = None
    colours: NDArray[np.uint8] | None = None
    material: int | None = None


def new_document(path: Path) -> GltfEditor:
    """An empty document with one scene; `path` is what error messages name."""
    asset = {"version": "2.0", "generator": "tokenrig-rl"}
    return GltfEditor(Gltf(path, {"asset": asset, "scene": 0, "scenes": [{}]}, None))


def add_piece(editor: GltfEditor, piece: Piece, up: UpAxis | None = None) -> None:
    """Append a node with the piece as its mesh to the document's scene; with `up` "z", turned to y-up."""
    vertices = y_up(piece.vertices, up).astype(np.float32)
    attributes = {"POSITION": editor.add_accessor(vertices, "VEC3", ARRAY_BUFFER, bounds=True)}
    if piece.normals is not None:
        normals = unit_vectors(y_up(piece.normals, up))
        attributes["NORMAL"] = editor.add_accessor(normals, "VEC3", ARRAY_BUFFER)
    if piece.uv is not None:
        attributes["TEXCOORD_0"] = editor.add_accessor(piece.uv.astype(np.float32), "VEC2", ARRAY_BUFFER)
    if piece.colours is not None:
        attributes["COLOR_0"] = editor.add_accessor(piece.colours, "VEC4", ARRAY_BUFFER, normalised=True)
    # The largest value of an index type is reserved (primitive restart).
    index_type = np.uint16 if len(piece.vertices) < 2**16 else np.uint32
    indices = editor.add_accessor(
        piece.faces.reshape(-1, 1).astype(index_type), "SCALAR", ELEMENT_ARRAY_BUFFER
    )
    primitive: dict[str, Any] = {"attributes": attributes, "indices": indices}
    if piece.material is not None:
        primitive["material"] = piece.material
    mesh = editor.add("meshes", {"name": piece.name, "primitives": [primitive]})
    node = editor.add("nodes", {"name": piece.name, "mesh": mesh})
    editor.json["scenes"][0].setdefault("nodes", []).append(node)


def unit_vectors(
    vectors: NDArray[np.floating], otherwise: tuple[float, float, float] = (0, 0, 1)
) -> NDArray[np.float32]:
    """Vectors (V, 3) at length 1, as glTF requires of normals; `otherwise` where they are 0 or not finite."""
    finite = np.nan_to_num(vectors.astype(np.float64), posinf=0, neginf=0)
    length = np.linalg.norm(finite, axis=1, keepdims=True)
    unit = np.divide(finite, length, out=np.zeros_like(finite), where=length > 1e-30)
    unit[length[:, 0] <= 1e-30] = otherwise
    return unit.astype(np.float32)
