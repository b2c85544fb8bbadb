"""Folders of prepared rigs: reads and writes the manifest, and loads one rig at a time as a data set."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, overload

from data.atomic import write_atomic
from data.formats.helper_joints import Pruned
from data.formats.load import Refusal
from data.formats.rig_npz import RiggedMesh, read_rig_npz
from data.mesh import MeshError

MANIFEST = "manifest.json"
RIGS = "rigs"
FORMAT = "tokenrig-rl rigs"
VERSION = 2
SPLITS = ("train", "eval")
NOT_PRUNED = Pruned()


@dataclass(frozen=True)
class PreparedEntry:
    """One rig of a manifest. `file` is relative to the folder; `notes` list the repairs.

    `digest`: SHA-256 of mesh, skeleton and weights, in hexadecimal. `pruned`: the joints that were removed.
    `part`: which rig of its source file it is, empty if it is the only one. `group`: the group by which it
    was split, or None.
    """

    name: str
    file: str
    split: str
    vertices: int
    faces: int
    joints: int
    class_name: str | None
    source: str
    digest: str
    notes: tuple[str, ...] = ()
    pruned: Pruned = NOT_PRUNED
    part: str = ""
    group: str | None = None


@dataclass(frozen=True)
class Manifest:
    """The rigs of a prepared folder, the seed of their split, and the refused files with their reasons."""

    seed: int
    rigs: tuple[PreparedEntry, ...]
    refused: tuple[Refusal, ...]

    @property
    def pruned(self) -> Pruned:
        """The joints removed from all rigs."""
        return sum((rig.pruned for rig in self.rigs), NOT_PRUNED)


def write_manifest(folder: str | Path, manifest: Manifest) -> None:
    """Write `manifest.json` atomically."""
    pruned = asdict(manifest.pruned)
    content = {"format": FORMAT, "version": VERSION, "pruned": pruned, **asdict(manifest)}
    write_atomic(Path(folder) / MANIFEST, (json.dumps(content, indent=1) + "\n").encode())


def read_manifest(folder: str | Path) -> Manifest:
    """Read a folder's manifest. Raises MeshError naming the file if it is missing, damaged or of another
    version."""
    path = Path(folder) / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise MeshError(
            f"{path}: cannot be read ({problem.strerror}); create the folder with `python -m data.prepare`"
        ) from problem
    except ValueError as problem:
        raise MeshError(f"{path}: the manifest is damaged ({problem}); prepare the folder again") from problem
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise MeshError(f"{path}: not a manifest of prepared rigs; run `python -m data.prepare`")
    if content.get("version") != VERSION:
        raise MeshError(
            f"{path}: format version {content.get('version')} is not supported, only {VERSION}; prepare the "
            "folder again"
        )
    try:
        rigs = tuple(entry_from(rig) for rig in content["rigs"])
        refused = tuple(Refusal(str(one["file"]), str(one["reason"])) for one in content["refused"])
        return Manifest(int(content["seed"]), rigs, refused)
    except (LookupError, TypeError, ValueError) as problem:
        raise MeshError(f"{path}: an entry is damaged ({problem}); prepare the folder again") from problem


def entry_from(values: dict[str, Any]) -> PreparedEntry:
    """An entry from its JSON values. Raises LookupError, TypeError or ValueError if they are invalid."""
    typed = {"notes": tuple(values["notes"]), "pruned": Pruned(**values.get("pruned", {}))}
    entry = PreparedEntry(**(values | typed))
    if entry.split not in SPLITS or not re.fullmatch(rf"{RIGS}/[\w-][\w.-]*\.npz", entry.file, re.ASCII):
        raise ValueError(f"split {entry.split!r}, file {entry.file!r}")
    return entry


def is_prepared(folder: str | Path) -> bool:
    """Whether `folder` looks like a prepared folder; its manifest may still be damaged."""
    return (Path(folder) / MANIFEST).is_file() and (Path(folder) / RIGS).is_dir()


class PreparedRigs(Sequence[RiggedMesh]):
    """The rigs of one split of a folder made by `python -m data.prepare`, loaded on access.

    `split`: "train", "eval" or None for both. Raises MeshError if the folder has no manifest or no rig in
    this split, so that no run starts on an empty set; accessing an unreadable rig raises MeshError too.
    """

    def __init__(self, folder: str | Path, split: Literal["train", "eval"] | None = "train") -> None:
        self.folder = Path(folder)
        rigs = read_manifest(folder).rigs
        self.entries = tuple(rig for rig in rigs if split is None or rig.split == split)
        if not self.entries:
            fix = "run `python -m data.prepare` with more rigs or a different --eval"
            where = f" in the {split!r} split" if split and rigs else ""
            raise MeshError(f"{self.folder}: no rigs{where}; {fix}")

    def __len__(self) -> int:
        return len(self.entries)

    @overload
    def __getitem__(self, index: int) -> RiggedMesh: ...
    @overload
    def __getitem__(self, index: slice) -> list[RiggedMesh]: ...
    def __getitem__(self, index: int | slice) -> RiggedMesh | list[RiggedMesh]:
        if isinstance(index, slice):
            return [self._read(entry) for entry in self.entries[index]]
        return self._read(self.entries[index])

    def _read(self, entry: PreparedEntry) -> RiggedMesh:
        return read_rig_npz(self.folder / entry.file)
