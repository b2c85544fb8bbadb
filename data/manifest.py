"""Manifest of a checkpoint: sizes and SHA-256 of its files, written last; finds damaged and missing files."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.atomic import write_atomic
from data.file_content import stand_in_at

MANIFEST_FILE = "manifest.json"
FORMAT_VERSION = 1
_CHUNK = 1 << 22
# Reading this much takes long enough for a progress bar (bytes).
_MUCH = 2 << 30


def write_manifest(folder: Path, contents: Mapping[str, Any]) -> None:
    """Write `manifest.json` for all files in `folder` and below it, once they are safely on the disk.

    `contents` are further entries, such as the step and library versions. Raises OSError.
    """
    files = {str(path.relative_to(folder)): path for path in _files(folder)}
    for path in files.values():
        sync(path)
    described = {
        name: {"bytes": path.stat().st_size, "sha256": digest}
        for (name, path), digest in zip(files.items(), _hashes(list(files.values())), strict=True)
    }
    manifest = {"format": FORMAT_VERSION, **contents, "files": described}
    write_atomic(folder / MANIFEST_FILE, json.dumps(manifest, indent=2).encode())
    sync(folder / MANIFEST_FILE)
    for directory in {path.parent for path in files.values()} | {folder}:
        sync(directory)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder; None if it has none. ValueError if it is not a manifest of this format."""
    path = folder / MANIFEST_FILE
    if not path.exists():
        return None
    manifest = json.loads(path.read_bytes())
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise ValueError("it lists no files")
    if manifest.get("format") != FORMAT_VERSION:
        raise ValueError(f"its format is {manifest.get('format')}, this version reads {FORMAT_VERSION}")
    return manifest


def damage(folder: Path, manifest: Mapping[str, Any], content: bool = True) -> str | None:
    """What is wrong with the files that a manifest lists, such as "optimizer.pt is missing"; None if nothing.

    Sizes first; with `content` every file is also read and its SHA-256 compared.
    """
    listed: dict[str, Any] = manifest["files"]
    for name, entry in listed.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        size = path.stat().st_size
        if size != entry["bytes"]:
            found = stand_in_at(path)
            return found or f"{name} has {size:,} bytes instead of {entry['bytes']:,}"
    if not content:
        return None
    total = sum(entry["bytes"] for entry in listed.values())
    with tqdm(
        total=total,
        desc=f"checking {folder.name}",
        unit="B",
        unit_scale=True,
        file=sys.stderr,
        disable=total < _MUCH,
        leave=False,
    ) as bar:
        hashes = _hashes([folder / name for name in listed], bar.update)
    for (name, entry), digest in zip(listed.items(), hashes, strict=True):
        if digest != entry["sha256"]:
            return f"{name} does not have the content that was saved (its SHA-256 differs)"
    return None


def sync(path: Path) -> None:
    """Wait until a file's content, or a directory's entries, are on the disk. OSError if that fails."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def folder_bytes(folder: Path) -> int:
    """Size of all files in a folder and below it."""
    return sum(path.stat().st_size for path in _files(folder))


def file_hash(path: Path, progress: Callable[[int], object] = lambda count: None) -> str:
    """SHA-256 of a file in hexadecimal; `progress` receives the number of bytes read since its last call."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            total.update(chunk)
            progress(len(chunk))
    return total.hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST_FILE)


def _hashes(paths: list[Path], progress: Callable[[int], object] = lambda count: None) -> list[str]:
    """Several files at once: hashing releases Python's lock, and a file's hash uses one core."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda path: file_hash(path, progress), paths))
