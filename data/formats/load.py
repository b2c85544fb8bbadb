"""Reads mesh files (glTF, VRM, OBJ, PLY, STL, OFF) as one mesh each, with its rig; refuses unusable ones."""

import io
import logging
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import trimesh
from numpy.typing import NDArray

from data.file_content import mesh_suffix, read_head
from data.formats.folders import Pattern, find_files, passed_over
from data.formats.raw_checks import check_raw
from data.gltf.document import read_gltf
from data.gltf.geometry import bound_only, flatten
from data.gltf.skinned import skinned_from
from data.mesh import Mesh, MeshError, UpAxis, normalise, y_up
from data.rig import Rig

# A .vrm file is a GLB.
GLTF_SUFFIXES: tuple[str, ...] = (".glb", ".gltf", ".vrm")
MESH_SUFFIXES: tuple[str, ...] = (*GLTF_SUFFIXES, ".obj", ".ply", ".stl", ".off")
MAX_FACES = 2_000_000
MAX_BYTES = 512 * 2**20

# Exceptions that trimesh's readers have been observed to raise on damaged files.
READER_ERRORS = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    EOFError,
    RecursionError,
    NotImplementedError,
    struct.error,
    trimesh.exchange.stl.HeaderError,
)


@dataclass(frozen=True)
class Refusal:
    """A file that cannot be used: `file`, and `reason`, which includes the fix. str(): "<file>: <reason>"."""

    file: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


class Asset(NamedTuple):
    """What `file` holds: its mesh, its rig if requested and present, and notes on how it was read.

    `skin_error`: why its skin cannot be read, if it has one that cannot.
    """

    mesh: Mesh
    rig: Rig | None
    notes: tuple[str, ...]
    file: str
    skin_error: MeshError | None = None

    @property
    def note(self) -> str:
        """All notes in one line, "<file>: <note>; <note>"; empty if there are none."""
        return f"{self.file}: {'; '.join(self.notes)}" if self.notes else ""


def load_mesh(
    path: str | Path, max_faces: int = MAX_FACES, max_bytes: int = MAX_BYTES, up: UpAxis | None = None
) -> Mesh:
    """Load a mesh file into the mesh frame: GLB, glTF, VRM, OBJ, PLY, STL or OFF.

    Scenes are flattened with their node transforms; a skinned glTF file is read in bind pose, with the same
    geometry as `read_skinned_glb` and the meshes that no joint moves. If its skin cannot be read, its meshes
    stand where their nodes put them. Polygons are triangulated, unreferenced vertices dropped, coincident
    corners of STL triangles merged. The mesh's name is the file's stem. `up`: the axis that points up in an
    OBJ, PLY, STL or OFF file, formats without a convention; "z" turns the mesh to y-up on reading, and the
    mesh's original frame is then the turned one. None means y.
    Raises MeshError "<file>: <reason>; <fix>": unsupported format (such as FBX), missing, empty, truncated,
    compressed, more than `max_faces` faces or `max_bytes` bytes, no faces, non-finite vertices, zero extent
    or area, indices out of range, `up` "z" for a glTF file.
    """
    return load_asset(path, max_faces, max_bytes, rigged=False, up=up).mesh


def load_asset(
    path: str | Path,
    max_faces: int = MAX_FACES,
    max_bytes: int = MAX_BYTES,
    rigged: bool = True,
    up: UpAxis | None = None,
) -> Asset:
    """Like `load_mesh`, with the rig if the file is skinned (mesh frame, bind pose, file's joint order).

    With a rig, meshes that no joint moves are dropped, which a note reports: they are no part of the truth.
    Without `rigged`, the rig is not read and every mesh is kept: they are all to be rigged.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if path.is_dir():
        raise MeshError(f"{path}: this is a folder; name a mesh file in it")
    if suffix == ".fbx":
        raise MeshError(f"{path}: FBX is not supported; convert it to GLB, for example with Blender")
    if suffix not in MESH_SUFFIXES:
        if suffix in (".zip", ".7z", ".rar"):
            raise MeshError(f"{path}: the file is an archive; unpack it")
        known = ", ".join(known[1:].upper() for known in MESH_SUFFIXES)
        raise MeshError(f"{path}: unknown format {suffix or '(no extension)'}; convert it to one of {known}")
    if up == "z" and suffix in GLTF_SUFFIXES:
        raise MeshError(
            f"{path}: glTF files are y-up by their standard, so up=z does not apply; omit it, and if the "
            "model lies on its back, export it again with y up"
        )
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise MeshError(
                f"{path}: the file is {size / 2**20:.0f} MiB, over the limit of {max_bytes / 2**20:.0f} MiB; "
                "simplify the mesh or raise the limit"
            )
        if size == 0:
            raise MeshError(f"{path}: the file is empty; export it again")
        suffix = mesh_suffix(path, read_head(path))
        if suffix in GLTF_SUFFIXES:
            flat = flatten(read_gltf(path))
            _check_size(path, len(flat.faces), max_faces)
            if rigged and flat.joints is not None:
                flat = bound_only(flat)
                return Asset(*skinned_from(path, flat), flat.notes, str(path))
            vertices, faces, notes, skin_error = flat.vertices, flat.faces, flat.notes, flat.skin_error
        else:
            vertices, faces = _read_other(path, suffix[1:])
            _check_size(path, len(faces), max_faces)
            vertices = y_up(vertices, up).astype(np.float64)
            notes, skin_error = (), None
        mesh = normalise(*_compact(vertices, faces, path), str(path))
    except OSError as problem:
        raise MeshError(f"{path}: cannot be read ({problem.strerror}); check the path") from problem
    return Asset(replace(mesh, name=path.stem), None, notes, str(path), skin_error)


def find_meshes(pattern: Pattern) -> list[Path]:
    """The files that match `pattern`, sorted and without duplicates; an empty list if there are none.

    pattern: a file, a folder (searched recursively for mesh files, and for FBX files so that they are
    reported; hidden files are ignored), a glob pattern ("**" for any depth), or several of these.
    """
    return find_files(pattern, _is_mesh_file)


def meshes_passed_over(pattern: Pattern) -> list[str]:
    """A line for each folder in `pattern` with files that `find_meshes` passes over; see `passed_over`."""
    return passed_over(pattern, _is_mesh_file)


def _is_mesh_file(path: Path) -> bool:
    return path.suffix.lower() in (*MESH_SUFFIXES, ".fbx")


def load_meshes(
    pattern: Pattern, max_faces: int = MAX_FACES, max_bytes: int = MAX_BYTES, up: UpAxis | None = None
) -> tuple[list[Mesh], list[Refusal]]:
    """Load every file of `find_meshes(pattern)`: the usable meshes, with unique names, and the refusals.

    `up` applies to files of formats without a convention (see `load_mesh`); glTF files are y-up regardless.
    """
    assets, refusals = load_assets(pattern, max_faces, max_bytes, rigged=False, up=up)
    return [asset.mesh for asset in assets], refusals


def load_assets(
    pattern: Pattern,
    max_faces: int = MAX_FACES,
    max_bytes: int = MAX_BYTES,
    rigged: bool = True,
    up: UpAxis | None = None,
) -> tuple[list[Asset], list[Refusal]]:
    """`load_asset` of every file of `find_meshes(pattern)`, with unique mesh names, and the refusals."""
    assets: list[Asset] = []
    refusals: list[Refusal] = []
    for path in find_meshes(pattern):
        try:
            axis = None if path.suffix.lower() in GLTF_SUFFIXES else up
            assets.append(load_asset(path, max_faces, max_bytes, rigged, axis))
        except MeshError as problem:
            refusals.append(Refusal(str(path), str(problem).removeprefix(f"{path}: ")))
    names = unique_names([asset.mesh.name for asset in assets])
    renamed = [
        asset._replace(mesh=replace(asset.mesh, name=name)) for asset, name in zip(assets, names, strict=True)
    ]
    return renamed, refusals


def unique_names(names: list[str]) -> list[str]:
    """The names with "_2", "_3", … appended to duplicates, never colliding with another name."""
    taken, result = set(names), []
    seen: set[str] = set()
    for name in names:
        unique, number = name, 2
        while unique in seen or (unique != name and unique in taken):
            unique, number = f"{name}_{number}", number + 1
        seen.add(unique)
        result.append(unique)
    return result


def _read_other(path: Path, file_type: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Vertices (V, 3) and triangles (F, 3) of an OBJ, PLY, STL or OFF file, by trimesh after raw checks."""
    data = check_raw(path, file_type, path.read_bytes())
    try:
        with quiet():
            loaded = trimesh.load_mesh(
                io.BytesIO(data), file_type=file_type, process=False, maintain_order=True
            )
            vertices, faces = np.asarray(loaded.vertices, dtype=np.float64), np.asarray(loaded.faces)
    except READER_ERRORS as problem:
        raise MeshError(
            f"{path}: the file is damaged and cannot be read ({problem}); export it again"
        ) from problem
    if not faces.size:
        raise MeshError(f"{path}: the mesh has no faces (a point cloud?); export a triangle mesh")
    if file_type == "stl":
        # STL has no shared vertices: every triangle stores its own three corners.
        vertices, inverse = np.unique(vertices, axis=0, return_inverse=True)
        faces = inverse.reshape(-1)[faces]
    return vertices, faces.astype(np.int64)


def _compact(
    vertices: NDArray[np.float64], faces: NDArray[np.int64], path: Path
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Drop unreferenced vertices, which would distort the bounding box."""
    if faces.min() < 0 or faces.max() >= len(vertices):
        wrong = int(faces.min() if faces.min() < 0 else faces.max())
        raise MeshError(
            f"{path}: a face refers to vertex {wrong}, but the mesh has only {len(vertices)} vertices; "
            "repair it"
        )
    kept, compact = np.unique(faces, return_inverse=True)
    return vertices[kept], compact.reshape(-1, 3)


def _check_size(path: Path, faces: int, max_faces: int) -> None:
    if faces > max_faces:
        raise MeshError(
            f"{path}: the mesh has {faces} faces, over the limit of {max_faces}; simplify the mesh or raise "
            "the limit"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Silence trimesh's warnings and logging: whatever matters becomes a MeshError."""
    logger = logging.getLogger("trimesh")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
