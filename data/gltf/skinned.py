"""Reads and writes skinned GLB files: a mesh with its rig in bind pose."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pygltflib
from numpy.typing import NDArray

from data.atomic import write_atomic
from data.gltf.document import read_gltf
from data.gltf.geometry import Flattened, bound_only, flatten
from data.mesh import Mesh, MeshError, normalise
from data.rig import Rig, check_weights
from data.sampling import vertex_normals

INFLUENCES = 4


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

    The file has one node with the mesh and its skin, and a node hierarchy of world-aligned joints in bind
    pose with inverse bind matrices. Each vertex keeps its 4 largest weights, renormalised to sum to 1; a
    vertex without any weight is bound to the root. Normals are area-weighted vertex normals. The write is
    atomic.

    Raises MeshError naming the file if weights are NaN, infinite, negative or for another number of
    vertices; OSError if it cannot be written.
    """
    path = Path(path)
    check_weights(rig.weights, len(rig.joints), str(path))
    if len(rig.weights) != len(mesh.vertices):
        raise MeshError(
            f"{path}: {len(rig.weights)} rows of weights for {len(mesh.vertices)} vertices; "
            "pass one row of weights per vertex of this mesh"
        )
    write_atomic(path, _glb_bytes(mesh, rig))


def top_influences(weights: NDArray[np.float32], count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The `count` largest weights of each row, largest first: (joints, weights), both (V, count).

    weights (V, J) float32, finite and >= 0. Returned rows sum to 1; entries of weight 0 refer to joint 0. A
    row of zeros becomes weight 1 for joint 0, the root.
    """
    kept = min(count, weights.shape[1])
    joints = np.zeros((len(weights), count), dtype=np.int64)
    values = np.zeros((len(weights), count))
    # A stable sort: of equal weights the first joints are kept.
    joints[:, :kept] = np.argsort(-weights, axis=1, kind="stable")[:, :kept]
    values[:, :kept] = np.take_along_axis(weights, joints[:, :kept], axis=1)
    total = values.sum(axis=1, keepdims=True)
    unbound = total[:, 0] <= 0
    values = np.divide(values, total, out=np.zeros_like(values), where=total > 0)
    values[unbound, 0] = 1
    rounded = values.astype(np.float32)
    joints[(rounded == 0) | unbound[:, None]] = 0
    return joints, rounded


def _glb_bytes(mesh: Mesh, rig: Rig) -> bytes:
    count = len(rig.joints)
    vertices = (mesh.vertices.astype(np.float64) / mesh.scale + mesh.centre).astype(np.float32)
    joints = rig.joints.astype(np.float64) / mesh.scale + mesh.centre
    normals = vertex_normals(mesh.vertices, mesh.faces)
    # glTF requires unit normals everywhere; a vertex without a face of positive area has none.
    normals[~(np.abs(normals).sum(axis=1) > 0)] = (0, 0, 1)
    slots, weights = top_influences(rig.weights, INFLUENCES)
    inverse_bind = np.tile(np.eye(4, dtype=np.float32), (count, 1, 1))
    inverse_bind[:, :3, 3] = -joints
    buffer = _Buffer()
    attributes = pygltflib.Attributes(
        POSITION=buffer.add(vertices, pygltflib.VEC3, pygltflib.ARRAY_BUFFER, bounds=True),
        NORMAL=buffer.add(normals, pygltflib.VEC3, pygltflib.ARRAY_BUFFER),
        JOINTS_0=buffer.add(
            slots.astype(np.uint8 if count <= 256 else np.uint16), pygltflib.VEC4, pygltflib.ARRAY_BUFFER
        ),
        WEIGHTS_0=buffer.add(weights, pygltflib.VEC4, pygltflib.ARRAY_BUFFER),
    )
    # The largest value of an index type is reserved (primitive restart).
    index_type = np.uint16 if len(vertices) < 2**16 else np.uint32
    indices = buffer.add(
        mesh.faces.reshape(-1, 1).astype(index_type), pygltflib.SCALAR, pygltflib.ELEMENT_ARRAY_BUFFER
    )
    # glTF stores matrices column by column.
    matrices = buffer.add(inverse_bind.transpose(0, 2, 1).reshape(-1, 16), pygltflib.MAT4, None)
    children: list[list[int]] = [[] for _ in range(count)]
    for joint, parent in enumerate(rig.parents.tolist()):
        if parent >= 0:
            children[parent].append(joint + 1)
    local = joints.copy()
    local[1:] -= joints[rig.parents[1:]]
    nodes = [pygltflib.Node(name=mesh.name, mesh=0, skin=0)]
    nodes += [
        pygltflib.Node(name=rig.names[joint], translation=local[joint].tolist(), children=children[joint])
        for joint in range(count)
    ]
    gltf = pygltflib.GLTF2(
        asset=pygltflib.Asset(version="2.0", generator="tokenrig-rl"),
        scene=0,
        scenes=[pygltflib.Scene(nodes=[0, 1])],
        nodes=nodes,
        meshes=[
            pygltflib.Mesh(
                name=mesh.name, primitives=[pygltflib.Primitive(attributes=attributes, indices=indices)]
            )
        ],
        skins=[
            pygltflib.Skin(
                name="skin", inverseBindMatrices=matrices, skeleton=1, joints=list(range(1, count + 1))
            )
        ],
        accessors=buffer.accessors,
        bufferViews=buffer.views,
        buffers=[pygltflib.Buffer(byteLength=len(buffer.data))],
    )
    gltf.set_binary_blob(bytes(buffer.data))
    return b"".join(gltf.save_to_bytes())


class _Buffer:
    """The binary chunk with its views and accessors, each aligned to 4 bytes."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.views: list[pygltflib.BufferView] = []
        self.accessors: list[pygltflib.Accessor] = []

    def add(self, values: NDArray[Any], kind: str, target: int | None, bounds: bool = False) -> int:
        """Append values (N, width) and return their accessor's index."""
        raw = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<")).tobytes()
        self.views.append(
            pygltflib.BufferView(buffer=0, byteOffset=len(self.data), byteLength=len(raw), target=target)
        )
        self.data += raw + b"\0" * (-len(raw) % 4)
        self.accessors.append(
            pygltflib.Accessor(
                bufferView=len(self.views) - 1,
                componentType=_COMPONENT_TYPES[values.dtype.name],
                count=len(values),
                type=kind,
                min=values.min(axis=0).tolist() if bounds else None,
                max=values.max(axis=0).tolist() if bounds else None,
            )
        )
        return len(self.accessors) - 1


_COMPONENT_TYPES = {
    "uint8": pygltflib.UNSIGNED_BYTE,
    "uint16": pygltflib.UNSIGNED_SHORT,
    "uint32": pygltflib.UNSIGNED_INT,
    "float32": pygltflib.FLOAT,
}
