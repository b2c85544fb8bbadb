"""Reads rigs from skinned GLB, NPZ, UniRig raw_data.npz, Articulation-XL NPZ and RigNet text."""

import glob
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.formats.load import (
    FOREIGN_SUFFIXES,
    GLTF_SUFFIXES,
    MAX_BYTES,
    MAX_FACES,
    Pattern,
    Refusal,
    load_asset,
)
from data.formats.npz_reader import MAX_NPZ_BYTES, npz_names, read_npz
from data.formats.rig_npz import RiggedMesh, read_rig_npz, sparse_weights
from data.formats.rig_repair import RepairedRig, assemble, repair_rig
from data.formats.rignet_text import read_obj_geometry, read_rignet_text, rignet_mesh
from data.mesh import MeshError, UpAxis

RIG_SUFFIXES: tuple[str, ...] = (*GLTF_SUFFIXES, ".npz", ".txt")
MAX_JOINTS = 256
# This many float32 weights take 1 GiB.
MAX_WEIGHTS = 2**28


@dataclass(frozen=True)
class RigLimits:
    """Size limits per rig. `max_bytes`: of a mesh file; `max_npz_bytes`: of an NPZ file, unpacked."""

    max_faces: int = MAX_FACES
    max_joints: int = MAX_JOINTS
    max_bytes: int = MAX_BYTES
    max_npz_bytes: int = MAX_NPZ_BYTES


def find_rigs(pattern: Pattern) -> list[Path]:
    """The files that match `pattern`, sorted and without duplicates; an empty list if there are none.

    pattern: a file, a folder (searched recursively for rig files, and for files of formats that cannot be
    read, such as FBX, so that they are reported; of text files, those that start like a RigNet rig or are
    empty), a glob pattern, or several of these.
    """
    patterns = [pattern] if isinstance(pattern, str | Path) else list(pattern)
    found: set[Path] = set()
    for one in patterns:
        path = Path(one).expanduser()
        if path.is_dir():
            found.update(file for file in path.rglob("*") if _is_rig_file(file))
        elif path.exists():
            found.add(path)
        else:
            found.update(Path(match) for match in glob.glob(str(path), recursive=True))
    return sorted(file for file in found if file.is_file())


def read_rigs(
    path: str | Path, limits: RigLimits | None = None, up: UpAxis | None = None
) -> Iterator[RepairedRig | Refusal]:
    """The rigs of one file, in order, in the mesh frame; a rig or file that cannot be used gives a Refusal.

    - GLB, glTF, VRM: one skinned mesh in bind pose; meshes that no joint moves are dropped with a note.
    - NPZ (specification, section 13, loaders `npz` and `unirig`): vertices, faces, parents (-1 or None for
      roots), skin, and matrix_local (its translations are used) or joints; joint_names or names. Object
      arrays are read as plain data without running pickle. Unlike the released loader, this one accepts
      joints without matrix_local.
    - Articulation-XL NPZ: one rig, or a list `arr_0` of many: vertices, faces, joints, bones (parent, child),
      root_index, skinning_weights_{value,row,col,shape}, joint_names, uuid.
    - RigNet text: lines `joints name x y z`, `root name`, `skin vertex joint weight …`, `hier parent child`;
      the mesh is the OBJ of the same stem (without "_rig") next to it or in ../obj… for ../rig_info….
    - Files of `write_rig_npz`.

    `repair_rig` lists what is repaired. The mesh's name is the file's stem, or the folder's name for
    raw_data.npz, followed by the rig's uuid or number if the file holds several. An OSError becomes a
    Refusal too. `up`: the axis that points up in NPZ and RigNet files (None: y); "z" turns mesh and joints to
    y-up on reading. glTF files and files of `write_rig_npz` are y-up regardless.
    """
    path, limits = Path(path), limits or RigLimits()
    try:
        yield from _read(path, limits, up)
    except MeshError as problem:
        yield _refusal(path, problem)
    except OSError as problem:
        yield Refusal(str(path), f"cannot be read ({problem.strerror}); check the path")


def _read(path: Path, limits: RigLimits, up: UpAxis | None) -> Iterator[RepairedRig | Refusal]:
    suffix = path.suffix.lower()
    if suffix == ".fbx":
        raise MeshError(f"{path}: FBX is not supported; convert it to GLB, for example with Blender")
    if suffix not in RIG_SUFFIXES:
        raise MeshError(
            f"{path}: unknown rig format {suffix or '(no extension)'}; convert it to GLB, NPZ or RigNet text"
        )
    if not path.stat().st_size:
        raise MeshError(f"{path}: the file is empty; export it again")
    if suffix == ".npz":
        yield from _read_npz(path, limits, up)
    elif suffix == ".txt":
        yield _rignet(path, limits, up)
    else:
        asset = load_asset(path, limits.max_faces, limits.max_bytes)
        if asset.rig is None:
            raise asset.skin_error or MeshError(f"{path}: the mesh has no skin; bind the mesh to a skeleton")
        repaired = _repaired(path, RiggedMesh(asset.mesh, asset.rig, None, str(path)), limits)
        yield replace(repaired, notes=(*asset.notes, *repaired.notes))


def _read_npz(path: Path, limits: RigLimits, up: UpAxis | None) -> Iterator[RepairedRig | Refusal]:
    names = npz_names(path)
    if {"meta", "skin_vertices"} <= names:
        rigged = read_rig_npz(path)
        yield _repaired(path, replace(rigged, source=rigged.source or str(path)), limits)
        return
    arrays = read_npz(path, objects=True, max_bytes=limits.max_npz_bytes)
    stem = path.parent.name if path.name == "raw_data.npz" and path.parent.name else path.stem
    if "arr_0" not in names or "vertices" in names:
        yield _from_arrays(str(path), stem, arrays, limits, up)
        return
    many = arrays["arr_0"]
    if isinstance(many, Mapping):
        many = [many]
    entries = list(many) if isinstance(many, np.ndarray) and many.ndim == 1 else many
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise MeshError(f"{path}: array 'arr_0' is not a list of rigs; save one dictionary per rig")
    if not entries:
        raise MeshError(f"{path}: the list of rigs is empty; export it again")
    for number, entry in enumerate(entries):
        label = f"{path}[{number}]"
        uuid = entry.get("uuid")
        part = uuid if isinstance(uuid, str) and uuid else str(number)
        try:
            yield replace(_from_arrays(label, f"{stem}_{part}", entry, limits, up), part=part)
        except MeshError as problem:
            yield _refusal(label, problem)


def _from_arrays(
    label: str, name: str, arrays: Mapping[str, Any], limits: RigLimits, up: UpAxis | None
) -> RepairedRig:
    """A rig from named arrays (NPZ, UniRig, one entry of Articulation-XL). `label` names it in errors."""
    vertices, faces = _array(label, arrays, "vertices"), _array(label, arrays, "faces")
    joints = _joints(label, arrays)
    _check_limits(label, len(vertices), len(faces), len(joints), limits)
    sparse = "bones" in arrays
    first_root = None
    if sparse:
        parents, first_root = _bone_parents(label, arrays, len(joints))
    else:
        parents = _parents(label, arrays.get("parents"), len(joints))
    weights = _weights(label, arrays, len(vertices), len(joints))
    names = arrays.get("joint_names") if arrays.get("joint_names") is not None else arrays.get("names")
    mesh, rig, notes = assemble(
        label, vertices, faces, joints, parents, weights, _joint_names(label, names), first_root, up
    )
    class_name = "articulation" if sparse else None
    return RepairedRig(RiggedMesh(replace(mesh, name=name), rig, class_name, label), notes)


def _array(label: str, arrays: Mapping[str, Any], key: str) -> NDArray[Any]:
    value = arrays.get(key)
    if value is None:
        raise MeshError(f"{label}: the rig has no {key}; include them in the export")
    array = np.asarray(value) if isinstance(value, np.ndarray) or _rectangular(value) else None
    if array is None or array.dtype.kind not in "iuf" or not array.ndim:
        raise MeshError(f"{label}: the {key} are not an array of numbers; export it again")
    return array


def _rectangular(value: Any) -> bool:
    """Whether a list (of lists) converts to an array: NumPy raises for ragged ones."""
    if not isinstance(value, list | tuple):
        return False
    try:
        np.array(value)
    except ValueError:
        return False
    return True


def _joints(label: str, arrays: Mapping[str, Any]) -> NDArray[Any]:
    if arrays.get("matrix_local") is not None:
        matrices = _array(label, arrays, "matrix_local")
        if matrices.ndim == 3 and matrices.shape[1:] in ((4, 4), (3, 4)):
            return matrices[:, :3, 3]
    if arrays.get("joints") is None:
        raise MeshError(
            f"{label}: the rig has no skeleton (joints or matrix_local); include one in the export"
        )
    return _array(label, arrays, "joints")


def _parents(label: str, value: Any, count: int) -> list[int]:
    """Parents as integers, -1 for roots, from integers or from objects with None for roots."""
    if value is None:
        raise MeshError(f"{label}: the rig has no parents; include them in the export")
    entries = np.atleast_1d(value).tolist() if isinstance(value, np.ndarray | int) else value
    if not isinstance(entries, list | tuple) or len(entries) != count:
        raise MeshError(
            f"{label}: the parents are not a list of {count} entries, one per joint; export it again"
        )
    parents = []
    for joint, entry in enumerate(entries):
        if isinstance(entry, np.generic):
            entry = entry.item()
        if isinstance(entry, bool) or not (
            entry is None or isinstance(entry, int) or (isinstance(entry, float) and entry.is_integer())
        ):
            raise MeshError(f"{label}: the parent of joint {joint} is {entry!r}; use a joint index or -1")
        parents.append(-1 if entry is None else int(entry))
    return parents


def _bone_parents(label: str, arrays: Mapping[str, Any], count: int) -> tuple[list[int], int | None]:
    """Parents (J,) from Articulation-XL's bones (B, 2) as (parent, child), and its root_index."""
    bones = np.asarray(arrays["bones"])
    parents = [-1] * count
    if bones.size:
        if bones.ndim != 2 or bones.shape[1] != 2 or not np.issubdtype(bones.dtype, np.integer):
            raise MeshError(f"{label}: the bones have shape {bones.shape}; store integers (B, 2)")
        if bones.min() < 0 or bones.max() >= count:
            raise MeshError(
                f"{label}: a bone refers to a joint beyond the rig's {count} joints; export it again"
            )
    for parent, child in bones.reshape(-1, 2).tolist():
        if parents[child] not in (-1, parent):
            raise MeshError(
                f"{label}: joint {child} has two parents, {parents[child]} and {parent}; repair the skeleton"
            )
        parents[child] = parent
    root = arrays.get("root_index")
    if root is None:
        return parents, None
    entry = np.asarray(root).reshape(-1)
    if entry.size != 1 or not np.issubdtype(entry.dtype, np.integer) or not 0 <= entry[0] < count:
        raise MeshError(f"{label}: root_index {root!r} is not one of the {count} joints; export it again")
    return parents, int(entry[0])


def _weights(label: str, arrays: Mapping[str, Any], vertices: int, joints: int) -> NDArray[np.floating]:
    if arrays.get("skinning_weights_value") is not None:
        shape = np.asarray(arrays.get("skinning_weights_shape", (vertices, joints))).tolist()
        if shape != [vertices, joints]:
            raise MeshError(
                f"{label}: the skinning weights have shape {shape} for {vertices} vertices and {joints} "
                "joints; export it again"
            )
        keys = [f"skinning_weights_{part}" for part in ("row", "col", "value")]
        rows, columns, values = (_array(label, arrays, key) for key in keys)
        return sparse_weights(rows, columns, values, (vertices, joints), label)
    if arrays.get("skin") is None:
        raise MeshError(f"{label}: the rig has no skinning weights; bind the mesh to the skeleton")
    return _array(label, arrays, "skin")


def _joint_names(label: str, value: Any) -> list[str] | None:
    """Joint names as strings ("" for missing ones), or None if the file has none."""
    if value is None:
        return None
    entries = np.atleast_1d(value).tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(entries, list | tuple):
        raise MeshError(f"{label}: the joint names are not a list; store one string per joint")
    names = []
    for entry in entries:
        if isinstance(entry, bytes):
            entry = entry.decode("utf-8", "replace")
        if entry is not None and not isinstance(entry, str):
            raise MeshError(f"{label}: {entry!r} is not a joint name; use strings")
        names.append(entry or "")
    return names


def _rignet(path: Path, limits: RigLimits, up: UpAxis | None) -> RepairedRig:
    text = read_rignet_text(path)
    mesh_path = rignet_mesh(path)
    if mesh_path.stat().st_size > limits.max_bytes:
        raise MeshError(
            f"{mesh_path}: the file is larger than {limits.max_bytes / 2**20:.0f} MiB; simplify the mesh"
        )
    vertices, faces = read_obj_geometry(mesh_path)
    _check_limits(str(path), len(vertices), len(faces), len(text.names), limits)
    shape = (len(vertices), len(text.names))
    weights = sparse_weights(text.skin_vertices, text.skin_joints, text.skin_weights, shape, str(path))
    mesh, rig, notes = assemble(
        str(path), vertices, faces, text.joints, text.parents, weights, text.names, up=up
    )
    return RepairedRig(RiggedMesh(replace(mesh, name=path.stem), rig, "rignet", str(path)), notes)


def _repaired(path: Path, rigged: RiggedMesh, limits: RigLimits) -> RepairedRig:
    """Check and repair a rig that is already in the mesh frame."""
    mesh, rig = rigged.mesh, rigged.rig
    _check_limits(str(path), len(mesh.vertices), len(mesh.faces), len(rig.joints), limits)
    repaired, notes = repair_rig(str(path), rig.joints, rig.parents.tolist(), rig.weights, rig.names)
    return RepairedRig(replace(rigged, rig=repaired), notes)


def _check_limits(label: str, vertices: int, faces: int, joints: int, limits: RigLimits) -> None:
    for what, count, limit in (("faces", faces, limits.max_faces), ("joints", joints, limits.max_joints)):
        if count > limit:
            raise MeshError(
                f"{label}: the rig has {count} {what}, over the limit of {limit}; simplify it or raise the "
                "limit"
            )
    if vertices * joints > MAX_WEIGHTS:
        raise MeshError(
            f"{label}: {vertices} vertices times {joints} joints are too many weights; simplify the mesh"
        )


def _refusal(label: str | Path, problem: MeshError) -> Refusal:
    return Refusal(str(label), str(problem).removeprefix(f"{label}: "))


def _is_rig_file(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix != ".txt" or not path.is_file():
        return suffix in (*RIG_SUFFIXES, *FOREIGN_SUFFIXES)
    with path.open("rb") as file:
        words = file.read(200).split()
    return not words or words[0] in (b"joints", b"root", b"hier", b"skin")
