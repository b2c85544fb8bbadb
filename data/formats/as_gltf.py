"""Turns an OBJ, PLY, STL or OFF file into a glTF document with its materials, UVs and colours."""

import io
from pathlib import Path

import numpy as np
import trimesh
from numpy.typing import NDArray

from data.file_content import mesh_suffix, read_head
from data.formats.load import READER_ERRORS, quiet
from data.formats.mtl import add_image
from data.formats.obj_document import add_obj
from data.formats.raw_checks import check_raw
from data.gltf.document import Gltf
from data.gltf.editing import GltfEditor
from data.gltf.mesh_document import Piece, add_piece, new_document
from data.mesh import MeshError, UpAxis
from data.welding import coincident_distance, vertex_normals, weld


class _Recorder(trimesh.resolvers.FilePathResolver):
    """Finds the files beside a mesh file, and remembers their contents."""

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self.contents: dict[str, bytes] = {}

    def get(self, name: str) -> bytes:
        content: bytes = super().get(name)
        self.contents[name] = content
        return content


def as_gltf(path: Path, up: UpAxis | None = None) -> tuple[Gltf, list[str]]:
    """A document with the meshes of a file that `load_mesh` accepts, in the file's frame and unit, y-up.

    Also returns notes, such as on images that are missing. Raises MeshError naming the file if it is damaged,
    OSError if it cannot be read.
    """
    editor = new_document(path)
    file_type = mesh_suffix(path, read_head(path))[1:]
    if file_type == "obj":
        check_raw(path, file_type, path.read_bytes())
        notes = add_obj(editor, path, up)
    else:
        notes = _add_other(editor, path, file_type, up)
    return editor.finished(), notes


def _add_other(editor: GltfEditor, path: Path, file_type: str, up: UpAxis | None) -> list[str]:
    data = check_raw(path, file_type, path.read_bytes())
    resolver = _Recorder(str(path))
    try:
        with quiet():
            mesh = trimesh.load_mesh(
                io.BytesIO(data), file_type=file_type, process=False, maintain_order=True, resolver=resolver
            )
            if mesh.visual.kind == "face":
                # A vertex has one colour in glTF.
                mesh.unmerge_vertices()
                mesh.visual = trimesh.visual.ColorVisuals(
                    mesh, vertex_colors=np.repeat(mesh.visual.face_colors, 3, axis=0)
                )
            stored = "vertex_normals" in mesh._cache and file_type != "stl"
            given = np.array(mesh.vertex_normals) if stored else None
    except READER_ERRORS as problem:
        raise MeshError(f"{path}: the file is damaged ({problem}); export it again") from problem
    vertices, faces = np.asarray(mesh.vertices, dtype=np.float64), np.asarray(mesh.faces, dtype=np.int64)
    # The normals of an STL file belong to its faces: without vertex normals, viewers shade flat.
    normals = None if file_type == "stl" else _smooth(vertices, faces) if given is None else given
    uv = getattr(mesh.visual, "uv", None)
    uv = None if uv is None or np.shape(uv) != (len(vertices), 2) else np.asarray(uv) * [1, -1] + [0, 1]
    colours = np.asarray(mesh.visual.vertex_colors, dtype=np.uint8) if mesh.visual.kind == "vertex" else None
    material, notes = None, []
    texture = None
    images = [(name, content) for name, content in resolver.contents.items() if content]
    if uv is not None and images:
        texture = add_image(editor, images[-1][1], images[-1][0])
    elif uv is not None:
        notes.append("the file has UVs but no image that could be read")
    # These formats have no back sides.
    pbr: dict[str, object] = {"metallicFactor": 0.0, "roughnessFactor": 1.0}
    if texture is not None:
        pbr["baseColorTexture"] = {"index": texture}
    material = editor.add("materials", {"name": path.stem, "pbrMetallicRoughness": pbr, "doubleSided": True})
    add_piece(editor, Piece(path.stem, vertices, faces, normals, uv, colours, material), up)
    return notes


def _smooth(vertices: NDArray[np.float64], faces: NDArray[np.int64]) -> NDArray[np.float32]:
    """Area-weighted normals of the vertices, the same for all vertices at one place."""
    points = vertices.astype(np.float32)
    first, place = weld(points, coincident_distance(points))
    return vertex_normals(vertices[first], place[faces])[place]
