"""Keeps rolled-out rigs in `output_dir/report/`, so that a page is made again without the policies."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from data.atomic import write_atomic
from data.mesh import Mesh
from data.rig import Rig
from rl.shown_rigs import ShownRig

STORE_FOLDER = "report"


@dataclass(frozen=True, eq=False)
class StoredMesh:
    """A held-out mesh with what was rolled out for it: a rig or the reason for none, and the poses' seed."""

    name: str
    mesh: Mesh
    truth: Rig | None
    shown: ShownRig | str
    pose_seed: int


@dataclass(frozen=True, eq=False)
class StoredRigs:
    """The rigs of one policy; `key` is a digest of all they depend on, `label` says which policy it is."""

    key: str
    label: str
    meshes: list[StoredMesh]


def write_rigs(path: Path, rigs: StoredRigs) -> None:
    """Write an NPZ, atomically."""
    arrays: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for place, item in enumerate(rigs.meshes):
        row: dict[str, Any] = {
            "name": item.name,
            "seed": str(item.pose_seed),
            "mesh": item.mesh.name,
            "centre": item.mesh.centre.tolist(),
            "scale": item.mesh.scale,
        }
        arrays |= {f"{place}.vertices": item.mesh.vertices, f"{place}.faces": item.mesh.faces}
        if item.truth is not None:
            row["truth"] = _add(arrays, f"{place}.truth", item.truth)
        if isinstance(item.shown, str):
            row["reason"] = item.shown
        else:
            row["rig"] = _add(arrays, f"{place}.rig", item.shown.rig)
            row |= {
                "rewards": item.shown.rewards,
                "total": item.shown.total,
                "diagnostics": item.shown.diagnostics,
            }
        rows.append(row)
    about = json.dumps({"key": rigs.key, "label": rigs.label, "meshes": rows})
    content = io.BytesIO()
    np.savez_compressed(content, about=np.array(about), **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content.getvalue())


def read_rigs(path: Path) -> StoredRigs | None:
    """What `write_rigs` wrote; None if there is no such file. ValueError if it is damaged."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            about = json.loads(str(arrays["about"]))
            return StoredRigs(
                about["key"],
                about["label"],
                [_mesh(place, row, arrays) for place, row in enumerate(about["meshes"])],
            )
    except (ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged") from error


def _mesh(place: int, row: dict[str, Any], arrays: Any) -> StoredMesh:
    vertices, faces = arrays[f"{place}.vertices"], arrays[f"{place}.faces"]
    mesh = Mesh(vertices, faces, row["mesh"], np.array(row["centre"]), row["scale"])
    truth = _rig(f"{place}.truth", row["truth"], arrays) if "truth" in row else None
    shown: ShownRig | str = row.get("reason", "")
    if "rig" in row:
        rig = _rig(f"{place}.rig", row["rig"], arrays)
        shown = ShownRig(rig, row["rewards"], row["total"], row["diagnostics"])
    return StoredMesh(row["name"], mesh, truth, shown, int(row["seed"]))


def _add(arrays: dict[str, Any], name: str, rig: Rig) -> Sequence[str]:
    arrays |= {f"{name}.joints": rig.joints, f"{name}.parents": rig.parents, f"{name}.weights": rig.weights}
    return rig.names


def _rig(name: str, names: Sequence[str], arrays: Any) -> Rig:
    joints, parents, weights = (arrays[f"{name}.{part}"] for part in ("joints", "parents", "weights"))
    return Rig(joints, parents, weights, tuple(names))
