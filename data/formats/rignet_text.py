"""Reads RigNet's text rigs and the OBJ meshes whose vertices they refer to."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.file_content import refuse_stand_in
from data.formats.raw_checks import check_raw
from data.mesh import MeshError


@dataclass(frozen=True)
class RigNetText:
    """A rig as stored in the text file, joints in file order.

    `names`, `joints` (J, 3) in the mesh's units, `parents` (J,) with -1 for the one root; sparse weights
    `skin_weights` (K,) for `skin_joints` (K,) at `skin_vertices` (K,), which count the OBJ's vertices from 0.
    """

    names: list[str]
    joints: NDArray[np.float64]
    parents: list[int]
    skin_vertices: NDArray[np.int64]
    skin_joints: NDArray[np.int64]
    skin_weights: NDArray[np.float64]


@dataclass
class _Lines:
    """The content of the lines read so far."""

    joints: dict[str, list[float]] = field(default_factory=dict)
    parent_of: dict[str, str] = field(default_factory=dict)
    root: str | None = None
    vertices: list[int] = field(default_factory=list)
    bound: list[str] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def take(self, words: Sequence[str]) -> str | None:
        """Read one line. Returns a contradiction as text; raises ValueError if it is not a line of a rig."""
        kind, *rest = words
        if kind == "joints" and len(rest) == 4:
            if rest[0] in self.joints:
                return f"two joints are named {rest[0]!r}; rename one"
            self.joints[rest[0]] = [float(word) for word in rest[1:]]
        elif kind == "root" and len(rest) == 1:
            if self.root is not None:
                return "the file has two roots; keep one"
            self.root = rest[0]
        elif kind == "hier" and len(rest) == 2:
            if self.parent_of.setdefault(rest[1], rest[0]) != rest[0]:
                return f"joint {rest[1]!r} has two parents; repair the skeleton"
        elif kind == "skin" and len(rest) % 2 == 1:
            self.vertices += [int(rest[0])] * (len(rest) // 2)
            self.bound += rest[1::2]
            self.weights += [float(word) for word in rest[2::2]]
        else:
            raise ValueError
        return None


def read_rignet_text(path: Path) -> RigNetText:
    """Read lines `joints name x y z`, `root name`, `skin vertex joint weight …`, `hier parent child`.

    The format has one root, so a joint without a parent that is not the root means that lines are missing.
    Raises MeshError naming the file: any other line, duplicate names (the hierarchy would be ambiguous), two
    parents, unknown joints, or no joints, root or weights. A file truncated after a complete `skin` line
    cannot be distinguished from a complete one unless the hierarchy follows, which is how RigNet writes it.
    """
    refuse_stand_in(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as problem:
        raise MeshError(f"{path}: not a text file; export it again") from problem
    lines = _Lines()
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        try:
            contradiction = lines.take(words) if words else None
        except ValueError as problem:
            raise MeshError(
                f"{path}: line {number}, {line[:40]!r}, cannot be read (truncated or not a RigNet rig); "
                "export it again"
            ) from problem
        if contradiction:
            raise MeshError(f"{path}: {contradiction}")
    return _checked(path, lines)


def _checked(path: Path, lines: _Lines) -> RigNetText:
    if not lines.joints or lines.root is None or not lines.weights:
        missing = "joints" if not lines.joints else "root" if lines.root is None else "skinning weights"
        raise MeshError(f"{path}: no {missing} found (truncated or not a RigNet rig); export it again")
    index_of = {name: index for index, name in enumerate(lines.joints)}
    used = (lines.root, *lines.parent_of, *lines.parent_of.values(), *lines.bound)
    unknown = next((name for name in used if name not in index_of), None)
    if unknown is not None:
        raise MeshError(f"{path}: joint {unknown!r} is used but never defined; export it again")
    if lines.root in lines.parent_of:
        raise MeshError(f"{path}: root {lines.root!r} has a parent; repair the skeleton")
    orphan = next((name for name in index_of if name != lines.root and name not in lines.parent_of), None)
    if orphan is not None:
        raise MeshError(
            f"{path}: joint {orphan!r} has no parent and is not the root (truncated?); export it again"
        )
    try:
        vertices = np.array(lines.vertices, dtype=np.int64)
    except OverflowError as problem:
        raise MeshError(
            f"{path}: vertex index {max(lines.vertices)} is too large; export it again"
        ) from problem
    return RigNetText(
        list(index_of),
        np.array(list(lines.joints.values())),
        [index_of[lines.parent_of[name]] if name in lines.parent_of else -1 for name in index_of],
        vertices,
        np.array([index_of[name] for name in lines.bound], dtype=np.int64),
        np.array(lines.weights),
    )


def rignet_mesh(path: Path) -> Path:
    """The OBJ file of a RigNet text: the same stem without "_rig", next to it or in ../obj… for ../rig_info….

    Raises MeshError naming the text if there is none.
    """
    folders = [path.parent]
    if "rig_info" in path.parent.name:
        folders.append(path.parent.with_name(path.parent.name.replace("rig_info", "obj")))
    for folder in folders:
        for stem in (path.stem, path.stem.removesuffix("_rig")):
            if (folder / f"{stem}.obj").is_file():
                return folder / f"{stem}.obj"
    tried = " or ".join(str(folder) for folder in folders)
    raise MeshError(f"{path}: the mesh {path.stem}.obj is not in {tried}; copy it there")


def read_obj_geometry(path: Path) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """All vertices (V, 3) float64 of an OBJ in file order and its faces (F, 3) int64, triangulated as fans.

    Unlike `load_mesh` it keeps unreferenced vertices, because RigNet's indices count them. Raises MeshError
    naming the file.
    """
    vertices: list[list[bytes]] = []
    faces: list[tuple[int, int, int]] = []
    for line in check_raw(path, "obj", path.read_bytes()).splitlines():
        kind, *words = line.split()
        if kind == b"v":
            vertices.append(words)
            continue
        first, *corners = (int(word) - 1 for word in words)
        faces += [(first, corners[i], corners[i + 1]) for i in range(len(corners) - 1)]
    try:
        return np.array(vertices).astype(np.float64), np.array(faces, dtype=np.int64)
    except ValueError as problem:
        raise MeshError(f"{path}: a vertex cannot be read ({problem}); export it again") from problem
