"""Adds a rig to a mesh file of any readable format and gives the file back whole, as a GLB."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from data.file_content import mesh_suffix, read_head
from data.formats.as_gltf import as_gltf
from data.formats.load import GLTF_SUFFIXES
from data.gltf.add_skin import SkinnedFile, add_skin
from data.gltf.document import read_gltf
from data.gltf.geometry import Flattened, bound_only, flatten
from data.gltf.skinned import in_original_frame
from data.mesh import Mesh, MeshError, UpAxis
from data.rig import Rig, check_weights


def rigged_file(
    path: str | Path,
    mesh: Mesh,
    rig: Rig,
    keep_skin: bool = False,
    own_joints: bool = False,
    up: UpAxis | None = None,
) -> SkinnedFile:
    """The file at `path` with `rig` added, as a GLB (see `add_skin`); its frame and unit are kept.

    mesh: as loaded from `path`. rig: in its mesh frame, one row of weights per vertex of it. keep_skin: an
    old skin stays in the document. own_joints: the rig's joints are those of the file's own skeleton, in the
    order of `load_asset`; these nodes and their animations stay and only get new weights. up: as the mesh
    was loaded; an OBJ, PLY, STL or OFF file that is z-up is turned, since a GLB is y-up.

    The stored vertices of an OBJ, PLY, STL or OFF file take the weights of the mesh's vertex at their place.

    Raises MeshError naming the file: it does not match the mesh or the rig, or cannot be read. OSError.
    """
    path = Path(path)
    check_weights(rig.weights, len(rig.joints), str(path))
    if mesh_suffix(path, read_head(path)) in GLTF_SUFFIXES:
        gltf = read_gltf(path)
        notes: list[str] = []
        flat = flatten(gltf)
        if len(flat.vertices) != len(mesh.vertices):
            flat = bound_only(flat)
        rows = np.arange(len(mesh.vertices))
        if len(flat.vertices) != len(rows) or _distance(mesh, flat, rows).max() > _resolution(mesh, flat):
            raise MeshError(f"{path}: the file does not hold the mesh that was rigged; load it again")
    else:
        gltf, notes = as_gltf(path, up)
        flat = flatten(gltf)
        rows = _rows_by_place(path, mesh, flat)
    placed = in_original_frame(mesh, Rig(rig.joints, rig.parents, rig.weights[rows], rig.names))
    if not own_joints:
        result = add_skin(gltf, flat, placed, keep_skin)
    elif flat.joint_nodes is None or flat.bind is None or flat.names != rig.names:
        raise MeshError(f"{path}: the rig's joints are not those of the file; rig it with new joints")
    else:
        result = add_skin(gltf, flat, placed, keep_skin, flat.joint_nodes.tolist(), flat.bind)
    return SkinnedFile(result.glb, result.dropped, result.replaced, (*notes, *result.notes))


def _rows_by_place(path: Path, mesh: Mesh, flat: Flattened) -> NDArray[np.int64]:
    """The mesh's vertex at the place of each flattened vertex."""
    rows = np.asarray(cKDTree(mesh.vertices).query(_in_mesh_frame(mesh, flat))[1], dtype=np.int64)
    away = int((_distance(mesh, flat, rows) > _resolution(mesh, flat)).sum())
    if away:
        raise MeshError(
            f"{path}: {away} of {len(rows)} vertices are not on the mesh that was rigged; load it again"
        )
    return rows


def _in_mesh_frame(mesh: Mesh, flat: Flattened) -> NDArray[np.float64]:
    return (flat.vertices - mesh.centre) * mesh.scale


def _distance(mesh: Mesh, flat: Flattened, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.abs(_in_mesh_frame(mesh, flat) - mesh.vertices[rows]).max(axis=1)


def _resolution(mesh: Mesh, flat: Flattened) -> float:
    """How far rounding to float32 can move a vertex, in the mesh frame."""
    return float(2 * np.finfo(np.float32).eps * (1 + np.abs(flat.vertices).max() * mesh.scale))
