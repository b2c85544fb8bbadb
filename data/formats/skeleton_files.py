"""Reads skeletons without their meshes: the rig of a GLB, glTF, VRM or prepared NPZ file, or plain JSON."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.file_content import mesh_suffix, read_head, refuse_stand_in
from data.formats.load import GLTF_SUFFIXES
from data.formats.rig_npz import read_rig_npz
from data.formats.rig_repair import parents_first
from data.gltf.document import read_gltf
from data.gltf.geometry import flatten
from data.mesh import MeshError, UpAxis, y_up

_KEYS = ("joints", "parents", "names")
_EXAMPLE = '{"joints": [[x, y, z], …], "parents": [-1, 0, …], "names": […]}'


@dataclass(frozen=True, eq=False)
class FileSkeleton:
    """A skeleton in its file's own frame and unit.

    joints: (J, 3) float64, finite. parents: (J,) int64, -1 for the single root at index 0, parents[i] < i.
    names: J names. notes: what was derived or chosen in reading, one phrase each.
    """

    joints: NDArray[np.float64]
    parents: NDArray[np.int64]
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read_skeleton_file(path: str | Path, up: UpAxis | None = None) -> FileSkeleton:
    """Read a skeleton from a .glb, .gltf or .vrm file with a skin, a prepared rig (.npz) or a .json file.

    - GLB, glTF, VRM: the bind pose in the file's world frame, as `load_asset` reads it.
    - NPZ: as written by `python -m data.prepare`, in the frame of the file that was prepared.
    - JSON: an object with `joints` (J, 3), `parents` (J,), -1 or null for the root, and optional `names`.

    `up`: the axis that points up in a JSON file, as in `load_mesh`; "z" turns its joints to y-up. Prepared
    rigs and glTF files are y-up already. Joints keep the file's order as far as parents come before their
    children.

    Raises MeshError naming the file: missing, of another format, damaged, without a skin, or (JSON) with an
    invalid entry, several roots or a cycle.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    try:
        if suffix not in (".npz", ".json"):
            suffix = mesh_suffix(path, read_head(path))
        if suffix in GLTF_SUFFIXES:
            return _read_gltf_skeleton(path)
        if suffix == ".npz":
            rigged = read_rig_npz(path)
            joints = rigged.rig.joints.astype(np.float64) / rigged.mesh.scale + rigged.mesh.centre
            return FileSkeleton(joints, rigged.rig.parents, rigged.rig.names)
        if suffix == ".json":
            found = _read_json(path)
            return replace(found, joints=y_up(found.joints, up).astype(np.float64))
    except OSError as problem:
        raise MeshError(f"{path}: cannot be read ({problem.strerror}); check the path") from problem
    raise MeshError(
        f"{path}: no skeletons are read from {suffix or 'files without an extension'}; use GLB, glTF or VRM "
        "with a skin, a prepared rig (.npz) or JSON"
    )


def _read_gltf_skeleton(path: Path) -> FileSkeleton:
    flat = flatten(read_gltf(path))
    if flat.skin_error is not None:
        raise flat.skin_error
    if flat.joints is None or flat.parents is None or flat.names is None:
        raise MeshError(f"{path}: no mesh in the file has a skin; use a file with a skinned mesh or JSON")
    if not np.isfinite(flat.joints).all():
        raise MeshError(f"{path}: a joint is not finite; repair the skeleton")
    return FileSkeleton(flat.joints, flat.parents, flat.names, flat.notes)


def _read_json(path: Path) -> FileSkeleton:
    refuse_stand_in(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as problem:
        raise MeshError(f"{path}: the JSON cannot be parsed ({problem}); write {_EXAMPLE}") from problem
    if not isinstance(content, dict):
        raise MeshError(f"{path}: the JSON is not an object; write {_EXAMPLE}")
    unknown = [key for key in content if key not in _KEYS]
    missing = [key for key in _KEYS[:2] if key not in content]
    if unknown:
        raise MeshError(f"{path}: the key {unknown[0]!r} is unknown; use {', '.join(_KEYS)}")
    if missing:
        raise MeshError(f"{path}: the key {missing[0]!r} is missing; write {_EXAMPLE}")
    joints = _joints(path, content["joints"])
    parents = _parents(path, content["parents"], len(joints))
    names = _names(path, content.get("names"), len(joints))
    order = parents_first(str(path), parents)
    place = {joint: index for index, joint in enumerate(order)}
    return FileSkeleton(
        joints[order],
        np.array([place.get(parents[joint], -1) for joint in order], dtype=np.int64),
        tuple(names[joint] for joint in order),
    )


def _joints(path: Path, given: Any) -> NDArray[np.float64]:
    if not isinstance(given, list) or not given:
        raise MeshError(f"{path}: 'joints' is not a list of positions; write {_EXAMPLE}")
    for index, joint in enumerate(given):
        if not isinstance(joint, list) or len(joint) != 3 or not all(_is_number(value) for value in joint):
            raise MeshError(f"{path}: joint {index} is not [x, y, z] with three finite numbers; fix it")
    return np.array(given, dtype=np.float64)


def _is_number(value: Any) -> bool:
    # JSON's reader accepts NaN and Infinity, and integers beyond the range of floats.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


def _parents(path: Path, given: Any, count: int) -> list[int]:
    if not isinstance(given, list) or len(given) != count:
        found = f"{len(given)} entries" if isinstance(given, list) else "no list"
        raise MeshError(f"{path}: 'parents' has {found} for {count} joints; give one parent per joint")
    parents = [-1 if parent is None else parent for parent in given]
    for joint, parent in enumerate(parents):
        if isinstance(parent, bool) or not isinstance(parent, int) or not -1 <= parent < count:
            raise MeshError(
                f"{path}: joint {joint} has parent {given[joint]!r}; use the index of a joint, 0 to "
                f"{count - 1}, or -1 for the root"
            )
    roots = [joint for joint, parent in enumerate(parents) if parent == -1]
    if len(roots) != 1:
        found = (
            f"{len(roots)} joints without a parent ({', '.join(map(str, roots[:4]))})" if roots else "no root"
        )
        raise MeshError(f"{path}: the skeleton has {found}; give exactly one joint the parent -1")
    return parents


def _names(path: Path, given: Any, count: int) -> list[str]:
    if given is None:
        return [f"bone_{joint}" for joint in range(count)]
    if not isinstance(given, list) or len(given) != count:
        found = f"{len(given)} entries" if isinstance(given, list) else "no list"
        raise MeshError(f"{path}: 'names' has {found} for {count} joints; give one name per joint or none")
    seen: set[str] = set()
    for joint, name in enumerate(given):
        if not isinstance(name, str) or not name:
            raise MeshError(f"{path}: joint {joint} has the name {name!r}; use a non-empty text")
        if name in seen:
            raise MeshError(f"{path}: two joints are named {name!r}; make the names unique")
        seen.add(name)
    return given
