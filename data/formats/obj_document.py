"""Turns an OBJ file into a glTF document: objects, materials, UVs, normals and vertex colours."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.formats.mtl import add_materials
from data.gltf.editing import GltfEditor
from data.gltf.mesh_document import Piece, add_piece, unit_vectors
from data.mesh import MeshError, UpAxis
from data.welding import vertex_normals

Floats = NDArray[np.float64]


@dataclass
class _Group:
    """The faces of one object with one material: position, UV and normal index of each corner, -1 if none."""

    name: str
    material: str | None
    corners: list[tuple[int, int, int]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)


@dataclass
class _Contents:
    positions: list[list[float]] = field(default_factory=list)
    colours: list[list[float]] = field(default_factory=list)
    uv: list[list[float]] = field(default_factory=list)
    normals: list[list[float]] = field(default_factory=list)
    libraries: list[str] = field(default_factory=list)
    groups: dict[tuple[str, str | None], _Group] = field(default_factory=dict)


def add_obj(editor: GltfEditor, path: Path, up: UpAxis | None = None) -> list[str]:
    """Add the meshes and materials of an OBJ file that `load_mesh` accepts; return notes on what is missing.

    One node for each object and material. Polygons become fans. Normals that the file does not have are
    area-weighted vertex normals, across UV seams too. Raises MeshError for numbers that cannot be read.
    """
    try:
        contents = _read(path.read_bytes().decode("utf-8", "replace"), path.stem)
    except ValueError as problem:
        raise MeshError(f"{path}: a line cannot be read ({problem}); export the file again") from problem
    materials, notes = add_materials(editor, path, contents.libraries)
    positions = np.array(contents.positions, dtype=np.float64)
    groups = [group for group in contents.groups.values() if group.sizes]
    smooth = vertex_normals(positions, np.concatenate([_triangles(group)[0] for group in groups]))
    given = np.array(contents.normals, dtype=np.float64).reshape(-1, 3)
    uv = np.array(contents.uv, dtype=np.float64).reshape(-1, 2)
    coloured = len(contents.colours) == len(positions)
    colours = np.clip(np.array(contents.colours or [[0, 0, 0]]), 0, 1)
    for group in groups:
        rows = _triangles(group)[1]
        corners = np.array(group.corners, dtype=np.int64)
        corners[corners[:, 1] >= len(uv), 1] = -1
        corners[corners[:, 2] >= len(given), 2] = -1
        kept, compact = np.unique(corners[rows.reshape(-1)], axis=0, return_inverse=True)
        place, texture, normal = kept.T
        found = smooth[place].astype(np.float64)
        found[normal >= 0] = given[normal[normal >= 0]]
        mapped = np.zeros((len(kept), 2))
        mapped[texture >= 0] = uv[texture[texture >= 0]] * [1, -1] + [0, 1]
        painted = None
        if coloured:
            opaque = np.full((len(kept), 1), 255.0)
            painted = np.round(np.hstack([colours[place] * 255, opaque])).astype(np.uint8)
        add_piece(
            editor,
            Piece(
                group.name,
                positions[place],
                compact.reshape(-1, 3),
                unit_vectors(found),
                mapped if (texture >= 0).any() else None,
                painted,
                None if group.material is None else materials.get(group.material),
            ),
            up,
        )
    return notes


def _read(text: str, stem: str) -> _Contents:
    contents = _Contents()
    name, material = stem, None
    for line in text.replace("\\\r\n", " ").replace("\\\n", " ").splitlines():
        key, _, rest = line.partition("#")[0].strip().partition(" ")
        words = rest.split()
        if key == "v":
            contents.positions.append(_three(words))
            if len(words) >= 6:
                contents.colours.append(_three(words[3:]))
        elif key == "vt" and words:
            contents.uv.append([float(words[0]), float(words[1]) if len(words) > 1 else 0.0])
        elif key == "vn":
            contents.normals.append(_three(words))
        elif key == "f":
            group = contents.groups.setdefault((name, material), _Group(name, material))
            group.corners.extend(_corner(word, contents) for word in words)
            group.sizes.append(len(words))
        elif key == "o":
            name = rest.strip() or stem
        elif key == "usemtl":
            material = rest.strip()
        elif key == "mtllib":
            contents.libraries.append(rest.strip())
    return contents


def _three(words: list[str]) -> list[float]:
    return [float(word) for word in [*words[:3], "0", "0", "0"][:3]]


def _corner(word: str, contents: _Contents) -> tuple[int, int, int]:
    """Indices from 0; negative ones in the file count back from the last element read so far."""
    parts = [*word.split("/"), "", ""]
    counts = (len(contents.positions), len(contents.uv), len(contents.normals))
    place, texture, normal = (
        -1 if not part else int(part) - 1 if int(part) > 0 else count + int(part)
        for part, count in zip(parts[:3], counts, strict=True)
    )
    return place, texture, normal


def _triangles(group: _Group) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The fans of all polygons: position indices (F, 3), and rows of the group's corners (F, 3)."""
    sizes = np.array(group.sizes)
    starts = np.cumsum(sizes) - sizes
    count = sizes - 2
    first = np.repeat(starts, count)
    step = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    rows = np.stack([first, first + step + 1, first + step + 2], axis=1)
    return np.array(group.corners, dtype=np.int64)[:, 0][rows], rows
