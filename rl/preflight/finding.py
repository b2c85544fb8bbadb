"""The result of one check: ok, a warning, or a problem with its fix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """`text`: one sentence, which for a warning or a problem includes the fix. A problem stops the run."""

    check: str
    level: Level
    text: str

    def __str__(self) -> str:
        return f"{self.level:<8} {self.check:<14} {self.text}"


def ok(check: str, text: str) -> Finding:
    """A check that passed."""
    return Finding(check, "ok", text)


def warning(check: str, text: str) -> Finding:
    """The run works, but not as well as it could."""
    return Finding(check, "warning", text)


def problem(check: str, text: str) -> Finding:
    """The run cannot work."""
    return Finding(check, "problem", text)


def counted(count: int, word: str, plural: str = "s") -> str:
    """A number with its noun, such as `1 process` or `2 processes`."""
    return f"{count} {word}{'' if count == 1 else plural}"


def in_bytes(size: float) -> str:
    """A size with three digits, such as `1.23 GiB` or `76.3 MiB`."""
    unit, name = next(
        (unit, name)
        for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (1, "B"))
        if size >= unit or unit == 1
    )
    return f"{size / unit:.3g} {name}" if size < 999 * unit else f"{size / unit:.0f} {name}"


def in_time(seconds: float) -> str:
    """A duration with two or three digits, such as `5.2 s`, `4 min` or `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
