"""The metrics of a pre-training run: running means, and `metrics.jsonl` across a resume."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TextIO


class RunningMeans:
    """Means of the values added since the last `take`; each name is averaged over its own occurrences."""

    def __init__(self, state: dict[str, list[float]] | None = None) -> None:
        self._sums = {name: (total, int(count)) for name, (total, count) in (state or {}).items()}

    def add(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + value, count + 1)

    def take(self) -> dict[str, float]:
        """The means so far; resets them."""
        means = {name: total / count for name, (total, count) in self._sums.items()}
        self._sums = {}
        return means

    def state(self) -> dict[str, list[float]]:
        """Sums and counts for JSON; the constructor restores them."""
        return {name: [total, count] for name, (total, count) in self._sums.items()}


def open_metrics_file(output: Path, first_step: int, is_main: bool) -> TextIO:
    """`metrics.jsonl`, open for appending after step `first_step`; lines of later steps are dropped.

    Only the main process writes it; the others get a file that discards everything.
    """
    if not is_main:
        return open(os.devnull, "w")
    path = output / "metrics.jsonl"
    kept = [line for line in _lines(path) if _step_of_line(line) <= first_step] if first_step else []
    partial = path.with_name("metrics.partial")
    partial.write_text("".join(f"{line}\n" for line in kept))
    os.replace(partial, path)
    return path.open("a")


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def _step_of_line(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except json.JSONDecodeError:
        return math.inf  # torn when the run was killed
