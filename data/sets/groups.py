"""Groups of rigs, such as families, from a JSON or CSV file or from the rigs' folders and classes."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from data.file_content import refuse_stand_in
from data.mesh import MeshError

# Fields of an entry that say which rig it describes.
ID_FIELDS = ("file", "path", "filename", "name", "rig", "source", "uuid", "id")
# Groups that need no file.
RIG_FIELDS = ("folder", "class")
_DEFAULT_FIELD = "group"
# Extensions that a listed file may have, also before its conversion to one that is read.
_EXTENSIONS = frozenset((".glb", ".gltf", ".vrm", ".npz", ".txt", ".obj", ".ply", ".stl", ".fbx", ".blend"))


class GroupedRig(Protocol):
    """What identifies a rig: see `PreparedEntry`."""

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def part(self) -> str: ...
    @property
    def class_name(self) -> str | None: ...


@dataclass(frozen=True)
class Groups:
    """Which group each rig belongs to. Create with `read_groups`.

    `label`: how the groups were requested, option first. `own`: one of RIG_FIELDS, or None for the entries of
    a file. `exact`: groups by the entries' identifiers; `loose`: by the last parts of these, with and without
    file extension. An identifier with several groups is ambiguous. `entries`: the identifiers of each entry.
    """

    label: str
    own: str | None
    exact: Mapping[str, set[str]]
    loose: Mapping[str, set[str]]
    entries: tuple[tuple[str, ...], ...] = ()

    def of(self, rig: GroupedRig) -> str | None:
        """The rig's group, or None. Raises MeshError if it matches entries of different groups only."""
        if self.own == "folder":
            path = _file(rig)
            return (path.parent.parent if path.name == "raw_data.npz" else path.parent).name or None
        if self.own == "class":
            return rig.class_name
        ambiguous: tuple[str, set[str]] | None = None
        for key in _keys(rig):
            for known in (self.exact, self.loose):
                found = known.get(key, set())
                if len(found) == 1:
                    return next(iter(found))
                if found and ambiguous is None:
                    ambiguous = key, found
        if ambiguous is not None:
            key, found = ambiguous
            shown = " and ".join(repr(group) for group in sorted(found)[:2])
            raise MeshError(
                f"{self.label}: {rig.source} matches entries {key!r} of the groups {shown}; list the "
                "files with their folders"
            )
        return None

    def unknown(self, rigs: Sequence[GroupedRig], others: Sequence[str]) -> list[str]:
        """The first identifier of each entry that describes none of the rigs and `others`, source files."""
        keys = {key for rig in (*rigs, *map(_Source, others)) for key in _keys(rig)}
        return [entry[0] for entry in self.entries if not any(keys & _forms(one) for one in entry)]

    def of_all(self, rigs: Sequence[GroupedRig]) -> dict[str, str | None]:
        """The group of each rig by its name. Raises MeshError if no rig has one."""
        groups = {rig.name: self.of(rig) for rig in rigs}
        if rigs and not any(group is not None for group in groups.values()):
            if self.own == "class":
                raise MeshError(f"{self.label}: no rig has a class; group by folder or by a file")
            listed = next(iter(self.exact), None)
            shown = f"the file lists {listed!r}" if listed else "the file lists no rig"
            raise MeshError(
                f"{self.label}: none of the {len(rigs)} rigs is listed; {shown}, a rig is "
                f"{rigs[0].source!r}: list file names, paths or rig names"
            )
        return groups


@dataclass(frozen=True)
class _Source:
    """A file that gave no rig."""

    source: str
    name: str = ""
    part: str = ""
    class_name: str | None = None


def read_groups(text: str, option: str = "--group") -> Groups:
    """The groups that `option` requests: "folder", "class", FILE or FIELD:FILE.

    - "folder": the name of the folder of the rig's file (of raw_data.npz: of the folder above).
    - "class": the class label of the rig's format.
    - FILE: a JSON object {rig: group} or {group: [rig, …]}, a CSV file with two columns, rig and group, or
      entries as below with the field "group".
    - FIELD:FILE: a JSON file with a list of objects (at the top level or one level below) or an object of
      objects {rig: {…}}, or a CSV file with a header. Each entry has FIELD and at least one of ID_FIELDS.

    Rigs are identified by file name, path or its last parts (with or without extension), rig name, or uuid.
    Values may be strings, numbers or booleans; an entry with an empty or no value gives no group.
    Raises MeshError: a file that is missing or damaged, a field that no entry has.
    """
    if text in RIG_FIELDS:
        return Groups(f"{option} {text}", text, {}, {})
    name: str | None = None
    path = Path(text).expanduser()
    if not path.is_file() and ":" in text:
        name, _, file = text.partition(":")
        path = Path(file).expanduser()
    if not path.is_file():
        problem = f"{path} is a folder" if path.is_dir() else f"there is no file {path}"
        raise MeshError(
            f"{option} {text!r}: {problem}; pass FILE, FIELD:FILE, or one of {', '.join(RIG_FIELDS)}"
        )
    try:
        refuse_stand_in(path)
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as problem:
        raise MeshError(f"{path}: cannot be read ({problem}); pass a JSON or CSV file") from problem
    if path.suffix.lower() == ".csv":
        pairs = _csv_pairs(path, content, name)
    else:
        pairs = _json_pairs(path, content, name)
    exact: dict[str, set[str]] = {}
    loose: dict[str, set[str]] = {}
    for identifiers, group in pairs:
        for identifier in identifiers:
            whole = str(PurePosixPath(identifier.replace("\\", "/")))
            exact.setdefault(whole, set()).add(group)
            for key in _forms(identifier) - {whole}:
                loose.setdefault(key, set()).add(group)
    entries = tuple(tuple(identifiers) for identifiers, _ in pairs)
    return Groups(f"{option} {text}", None, exact, loose, entries)


def _forms(identifier: str) -> set[str]:
    """An identifier, its last part, and both without file extension."""
    whole = PurePosixPath(identifier.replace("\\", "/"))
    bare = _without_extension(whole)
    return {str(whole), str(bare), bare.name} | ({whole.name} - {"raw_data.npz"})


def _json_pairs(path: Path, content: str, name: str | None) -> list[tuple[list[str], str]]:
    try:
        loaded = json.loads(content)
    except ValueError as problem:
        raise MeshError(f"{path}: not a JSON file ({problem}); pass a JSON or CSV file") from problem
    entries = list(_json_entries(loaded))
    if entries:
        return _from_entries(path, entries, name)
    if not isinstance(loaded, dict):
        raise MeshError(f"{path}: holds no entries; pass an object {{rig: group}} or a list of objects")
    if name is None and loaded and all(_strings(value) for value in loaded.values()):
        return [([rig], group) for group, rigs in loaded.items() for rig in rigs]
    if name is not None:
        raise MeshError(f"{path}: its entries have no fields; add {name!r}, or pass {path} without it")
    return [([rig], group) for rig, value in loaded.items() if (group := _group(path, rig, value))]


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _json_entries(loaded: Any) -> Iterator[dict[str, Any]]:
    """The objects in a list at the top level or one level below, or in an object of objects by name."""
    if isinstance(loaded, list):
        yield from (entry for entry in loaded if isinstance(entry, dict))
    elif isinstance(loaded, dict):
        for key, value in loaded.items():
            if isinstance(value, list):
                yield from (entry for entry in value if isinstance(entry, dict))
            elif isinstance(value, dict):
                yield {"id": key} | value


def _csv_pairs(path: Path, content: str, name: str | None) -> list[tuple[list[str], str]]:
    try:
        rows = [row for row in csv.reader(io.StringIO(content, newline=""), strict=True) if any(row)]
    except csv.Error as problem:
        raise MeshError(f"{path}: not a CSV file ({problem}); separate columns by commas") from problem
    if not rows:
        raise MeshError(f"{path}: the file is empty; list a rig and its group in each row")
    if name is None and all(len(row) == 2 for row in rows):
        if rows[0][0].strip().lower() in ID_FIELDS:  # the header
            rows = rows[1:]
        return [([row[0].strip()], row[1].strip()) for row in rows if row[0].strip() and row[1].strip()]
    header = [title.strip() for title in rows[0]]
    return _from_entries(path, [dict(zip(header, row, strict=False)) for row in rows[1:]], name)


def _from_entries(
    path: Path, entries: Sequence[dict[str, Any]], name: str | None
) -> list[tuple[list[str], str]]:
    wanted = name or _DEFAULT_FIELD
    if not any(wanted in entry for entry in entries):
        fields = list(dict.fromkeys(key for entry in entries for key in entry))
        near = get_close_matches(wanted, fields, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise MeshError(
            f"{path}: no entry has the field {wanted!r}; {hint}add it, or pass FIELD:{path} with one of "
            f"{', '.join(map(str, fields[:30])) or '(no fields)'}"
        )
    pairs = []
    for entry in entries:
        identifiers = [entry[key] for key in ID_FIELDS if isinstance(entry.get(key), str) and entry[key]]
        if not identifiers:
            continue
        if group := _group(path, identifiers[0], entry.get(wanted)):
            pairs.append((identifiers, group))
    return pairs


def _group(path: Path, entry: str, value: Any) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str | int | float):
        raise MeshError(f"{path}: the group of {entry!r} is {value!r}; use one string or number per rig")
    return str(value).strip() or None


def _file(rig: GroupedRig) -> PurePosixPath:
    """The rig's source file, without the number of its entry."""
    text = rig.source.replace("\\", "/")
    return PurePosixPath(text.rpartition("[")[0] if rig.part and text.endswith("]") else text)


def _without_extension(path: PurePosixPath) -> PurePosixPath:
    return path.with_suffix("") if path.suffix.lower() in _EXTENSIONS else path


def _keys(rig: GroupedRig) -> Iterator[str]:
    """What may identify the rig in a file, most specific first."""
    if rig.part:
        yield from (rig.part, rig.name)
    path = _file(rig)
    # UniRig's folders are named after the rigs, the files are not.
    shown = (path, path.parent) if path.name == "raw_data.npz" else (path, _without_extension(path))
    for one in shown:
        shortest = 2 if one.name == "raw_data.npz" else 1
        for start in range(len(one.parts) - shortest + 1):
            yield PurePosixPath(*one.parts[start:]).as_posix()
    yield rig.name
