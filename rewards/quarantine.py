"""Quarantined meshes: those that stopped reward workers twice, listed in `quarantine.json` of a run."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

QUARANTINE_FILE = "quarantine.json"


@dataclass(frozen=True)
class QuarantinedMesh:
    """A mesh that is no longer scored.

    Attributes:
        name: of the mesh.
        key: digest of its content (`RewardMesh.key`): a repaired file is another mesh.
        stage: what the workers did when they stopped: prepare, decode or score.
        reasons: one for each worker that it stopped.
        times: UTC times of the same, ISO 8601.
        file: where the mesh comes from, if known.
        step: training step at which it was quarantined; None outside training.
    """

    name: str
    key: str
    stage: str
    reasons: tuple[str, ...]
    times: tuple[str, ...]
    file: str | None = None
    step: int | None = None

    def sentence(self) -> str:
        """Why its rigs have no score."""
        return f"'{self.name}' is quarantined: it stopped {len(self.reasons)} workers ({self.reasons[-1]})"


class QuarantineFile:
    """The list of quarantined meshes on disk; written by the process that owns the reward service.

    Raises:
        ValueError: the file exists and is not such a list.
    """

    def __init__(self, path: Path | None, honour: bool = True) -> None:
        self.path = path
        self.step: int | None = None
        self.meshes = read_quarantine(path) if path is not None and honour else []

    def add(self, mesh: QuarantinedMesh, file: str | None) -> QuarantinedMesh:
        """Add a mesh that is not listed yet, with the current step, and write the file."""
        listed = replace(mesh, file=file, step=self.step)
        self.meshes.append(listed)
        if self.path is not None:
            write_quarantine(self.path, self.meshes)
        return listed


def read_quarantine(path: Path) -> list[QuarantinedMesh]:
    """The meshes listed in a file; none if there is no file.

    Raises ValueError for a file that is not such a list.
    """
    if not path.exists():
        return []
    try:
        rows = json.loads(path.read_text())["meshes"]
        return [
            QuarantinedMesh(**{**row, "reasons": tuple(row["reasons"]), "times": tuple(row["times"])})
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a list of quarantined meshes ({error}); repair it, or delete it to try all "
            "meshes again"
        ) from error


def write_quarantine(path: Path, meshes: Sequence[QuarantinedMesh]) -> None:
    """Write the list atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as file:
        json.dump({"meshes": [asdict(mesh) for mesh in meshes]}, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
