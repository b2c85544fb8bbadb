"""Reads and writes the project's own rig files: one rigged mesh per NPZ, plain arrays only."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.atomic import write_atomic
from data.formats.npz_reader import read_npz
from data.mesh import Mesh, MeshError
from data.rig import Rig

FORMAT = "tokenrig-rl rig"
VERSION = 1


@dataclass(frozen=True, eq=False)
class RiggedMesh:
    """A mesh with its rig, both in the mesh frame, weights (V, J).

    `class_name`: the data set's class label, such as "articulation", or None. `source`: the file it was read
    from. Raises MeshError if the weights and the mesh have different numbers of vertices.
    """

    mesh: Mesh
    rig: Rig
    class_name: str | None = None
    source: str = ""

    def __post_init__(self) -> None:
        if len(self.rig.weights) != len(self.mesh.vertices):
            raise MeshError(
                f"{self.mesh.name}: the rig has weights for {len(self.rig.weights)} vertices but the mesh "
                f"has {len(self.mesh.vertices)}; use the rig that was loaded with this mesh"
            )

    @property
    def name(self) -> str:
        return self.mesh.name


def write_rig_npz(path: str | Path, rigged: RiggedMesh) -> None:
    """Write one rig atomically; the same rig always gives the same bytes.

    Arrays (none needs pickle): `meta` JSON as uint8 (format, version, name, names, class_name, source,
    scale); `centre` (3,) float64; `vertices` (V, 3) float32 and `joints` (J, 3) float32, mesh frame;
    `faces` (F, 3) int32; `parents` (J,) int32; the non-zero weights, row by row: `skin_vertices`
    (K,) int32, `skin_joints` (K,) int32, `skin_weights` (K,) float32. OSError if it cannot be written.
    """
    mesh, rig = rigged.mesh, rigged.rig
    meta = {
        "format": FORMAT,
        "version": VERSION,
        "name": mesh.name,
        "names": list(rig.names),
        "class_name": rigged.class_name,
        "source": rigged.source,
        "scale": mesh.scale,
    }
    rows, columns = np.nonzero(rig.weights)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        allow_pickle=False,
        meta=np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8),
        centre=mesh.centre,
        vertices=mesh.vertices,
        faces=mesh.faces.astype(np.int32),
        joints=rig.joints,
        parents=rig.parents.astype(np.int32),
        skin_vertices=rows.astype(np.int32),
        skin_joints=columns.astype(np.int32),
        skin_weights=rig.weights[rows, columns],
    )
    write_atomic(path, buffer.getvalue())


def read_rig_npz(path: str | Path) -> RiggedMesh:
    """Read a file of `write_rig_npz`. Raises MeshError naming the file if it is missing, damaged or in
    another format."""
    path = Path(path)
    try:
        arrays = read_npz(path)
    except OSError as problem:
        raise MeshError(f"{path}: cannot be read ({problem.strerror}); check the path") from problem
    meta = _meta(path, arrays)
    try:
        vertices, joints = arrays["vertices"], arrays["joints"]
        weights = sparse_weights(
            arrays["skin_vertices"],
            arrays["skin_joints"],
            arrays["skin_weights"],
            (len(vertices), len(joints)),
            str(path),
        )
        mesh = Mesh(vertices, arrays["faces"], meta["name"], arrays["centre"], meta["scale"])
        if np.abs(mesh.vertices).max() > 1 + 1e-5:
            raise MeshError(f"{path}: the vertices are outside the mesh frame; prepare the rig again")
        rig = Rig(joints, arrays["parents"], weights, tuple(meta["names"]))
    except KeyError as problem:
        raise MeshError(f"{path}: {problem} is missing; prepare the rig again") from problem
    except MeshError as problem:
        text = str(problem)
        raise MeshError(text if text.startswith(str(path)) else f"{path}: {text}") from problem
    return RiggedMesh(mesh, rig, meta["class_name"], meta["source"])


def sparse_weights(
    rows: Any, columns: Any, values: Any, shape: tuple[int, int], name: str
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Dense weights (V, J) float32 from entries (K,) at (row, column); duplicate entries are summed.

    Raises MeshError naming `name`: arrays of unequal length, indices not integer or outside `shape`.
    """
    rows, columns, values = np.asarray(rows), np.asarray(columns), np.asarray(values)
    if rows.ndim != 1 or rows.shape != columns.shape or rows.shape != values.shape:
        raise MeshError(
            f"{name}: the sparse weights have {rows.shape} rows, {columns.shape} columns and {values.shape} "
            "values; export the weights again"
        )
    if not all(np.issubdtype(index.dtype, np.integer) for index in (rows, columns)) or (
        values.dtype.kind not in "iuf"
    ):
        raise MeshError(
            f"{name}: the sparse weights need integer indices and numeric values; export the weights again"
        )
    for index, count, what in ((rows, shape[0], "vertex"), (columns, shape[1], "joint")):
        if len(index) and (index.min() < 0 or index.max() >= count):
            wrong = int(index.min() if index.min() < 0 else index.max())
            raise MeshError(
                f"{name}: a weight refers to {what} {wrong}, but the rig has only {count}; export the "
                "weights again"
            )
    dense = np.zeros(shape, dtype=np.float32)
    np.add.at(dense, (rows, columns), values.astype(np.float32))
    return dense


def _meta(path: Path, arrays: dict[str, Any]) -> dict[str, Any]:
    raw = arrays.get("meta")
    try:
        meta = json.loads(raw.tobytes()) if isinstance(raw, np.ndarray) else None
    except ValueError as problem:
        raise MeshError(f"{path}: the metadata is damaged; prepare the rig again") from problem
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise MeshError(f"{path}: not a prepared rig; create one with `python -m data.prepare`")
    if meta.get("version") != VERSION:
        raise MeshError(
            f"{path}: format version {meta.get('version')} is not supported, only {VERSION}; prepare the rig "
            "again"
        )
    kinds = {"name": str, "names": list, "class_name": str | None, "source": str, "scale": float}
    for key, kind in kinds.items():
        if key not in meta or not isinstance(meta[key], kind):
            raise MeshError(f"{path}: the metadata entry {key!r} is damaged; prepare the rig again")
    if not all(isinstance(name, str) for name in meta["names"]):
        raise MeshError(f"{path}: the metadata entry 'names' is damaged; prepare the rig again")
    return meta
