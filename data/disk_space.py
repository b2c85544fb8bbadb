"""Checks that a file system has room before something large is written to it."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from data.command_line import RunFailedError

# Room beyond the size of what is written: metrics, logs, directory entries (bytes).
MARGIN = 1 << 20


def require_space(directory: Path, needed: int, purpose: str) -> None:
    """Raise RunFailedError if the file system of `directory` has less than `needed` bytes free.

    `purpose` is what they are needed for, such as "the next checkpoint".
    """
    free = free_bytes(directory)
    if free < needed + MARGIN:
        raise RunFailedError(
            f"{purpose} needs {readable(needed)} in {directory}, but the disk at {mount_point(directory)} "
            f"has {readable(free)} free; free some space and run the command again"
        )


def free_bytes(directory: Path) -> int:
    """Bytes that this user may still write to the file system of `directory`, which may not exist yet."""
    return shutil.disk_usage(_existing(directory)).free


def mount_point(directory: Path) -> Path:
    """Where the file system of `directory` is mounted."""
    place = _existing(directory).resolve()
    while not os.path.ismount(place):
        place = place.parent
    return place


def system_error(error: BaseException) -> OSError | None:
    """The OSError that an error is, or that safetensors quotes by its number; None if there is none."""
    if isinstance(error, OSError):
        return error
    number = re.search(r"\(os error (\d+)\)", f"{error} {error.__context__ or ''}")
    return None if number is None else OSError(int(number[1]), os.strerror(int(number[1])))


def write_failure(error: BaseException) -> str | None:
    """Why a file could not be written, None if the error is of another kind.

    torch does not raise OSError; it only reports that its file ends too early.
    """
    if (known := system_error(error)) is not None:
        return known.strerror or str(known)
    text = f"{error} {error.__context__ or ''}"
    if isinstance(error, RuntimeError) and re.search(r"inline_container|PytorchStreamWriter|iostream", text):
        return "a file could not be written to its end"
    return None


def readable(size: float) -> str:
    """A size with a unit, such as "1.5 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _existing(directory: Path) -> Path:
    while not directory.exists():
        directory = directory.parent
    return directory
