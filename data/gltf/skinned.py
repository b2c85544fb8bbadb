"""Reads and writes skinned GLB files: a mesh with its rig in bind pose."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from data.atomic import write_atomic
from data.gltf.add_skin import add_skin
from data.gltf.document import read_gltf
from data.gltf.geometry import Flattened, Part, bound_only, flatten
from data.gltf.mesh_document import Piece, add_piece, new_document
from data.mesh import Mesh, MeshError, normalise
from data.rig import Rig, check_weights
from data.sampling import vertex_normals


def read_skinned_glb(path: str | Path) -> tuple[Mesh, Rig]:
    """Read a skinned .glb, .gltf or .vrm file in bind pose: mesh and rig, both in the mesh frame.

    - The bind pose stands where the file's joints put it; the transform of a skinned mesh's node plays no
      part (see `data.gltf.bind_pose`). A skin without inverse bind matrices is read in its node pose.
    - All primitives, meshes and skins are merged. A mesh without a skin gets weight 1 for the nearest joint
      above it and is dropped if there is none (`load_mesh` keeps it).
    - Weights are as stored (all JOINTS_n/WEIGHTS_n, not renormalised); NaN counts as 0. Unreferenced vertices
      are dropped.
    - Joints keep the skin's order, except that the root comes first and parents before children. A
      joint's parent is the nearest joint above it. Of several roots, the one with the most descendants
      becomes the parent of the others.

    `load_asset` also returns notes on what was derived, dropped or chosen.
    Raises MeshError naming the file: missing, no skin, a skin that cannot be read, or unusable as a mesh.
    """
    path = Path(path)
    try:
        flat = bound_only(flatten(read_gltf(path)))
    except OSError as problem:
        raise MeshError(f"{path}: cannot be read ({problem.strerror}); check the path") from problem
    return skinned_from(path, flat)


def skinned_from(path: Path, flat: Flattened) -> tuple[Mesh, Rig]:
    """Mesh and rig of a flattened skinned file, both in the mesh frame.

    MeshError if it has no skin or its skin could not be read.
    """
    if flat.skin_error is not None:
        raise flat.skin_error
    if flat.joints is None or flat.parents is None or flat.weights is None or flat.names is None:
        raise MeshError(f"{path}: the mesh has no skin; use load_mesh for meshes without a rig")
    mesh = replace(normalise(flat.vertices, flat.faces, str(path)), name=path.stem)
    with np.errstate(over="ignore"):
        joints = ((flat.joints - mesh.centre) * mesh.scale).astype(np.float32)
    try:
        return mesh, Rig(joints, flat.parents, flat.weights, flat.names)
    except MeshError as problem:
        raise MeshError(f"{path}: {problem}") from problem


def write_skinned_glb(path: str | Path, mesh: Mesh, rig: Rig) -> None:
    """Write mesh and rig as a skinned GLB in the mesh's original frame (mesh.centre, mesh.scale).

    For a mesh without a file; `add_skin` adds a rig to a document. The file has one node with the mesh and
    its skin, and a node hierarchy of world-aligned joints in bind pose with inverse bind matrices. Each
    vertex keeps its 4 largest weights, renormalised to sum to 1; a vertex without any weight is bound to the
    root. Normals are area-weighted vertex normals. The write is atomic.

    Raises MeshError naming the file if weights are NaN, infinite, negative or for another number of
    vertices; OSError if it cannot be written.
    """
    path = Path(path)
    check_weights(rig.weights, len(rig.joints), str(path))
    vertices = mesh.vertices.astype(np.float64) / mesh.scale + mesh.centre
    editor = new_document(path)
    add_piece(editor, Piece(mesh.name, vertices, mesh.faces, vertex_normals(mesh.vertices, mesh.faces)))
    part = Part(0, 0, 0, np.arange(len(vertices)), np.eye(4), False, mesh.name)
    flat = Flattened(vertices, mesh.faces, (part,))
    write_atomic(path, add_skin(editor.finished(), flat, in_original_frame(mesh, rig)).glb)


def in_original_frame(mesh: Mesh, rig: Rig) -> Rig:
    """A rig in the mesh frame, brought to the mesh's original frame."""
    joints = rig.joints.astype(np.float64) / mesh.scale + mesh.centre
    return Rig(joints.astype(np.float32), rig.parents, rig.weights, rig.names)
