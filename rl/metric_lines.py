"""Reads the lines of a run's metrics.jsonl, without those that are damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_metric_lines(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The lines that have a step, and the numbers of damaged lines; nothing if there is no such file.

    An unfinished last line counts as neither: a run may be writing it.
    """
    if not path.is_file():
        return [], []
    found, damaged = [], []
    lines = path.read_bytes().splitlines(keepends=True)
    for number, text in enumerate(lines, start=1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            found.append(line)
        elif text.endswith(b"\n"):
            damaged.append(number)
    return found, damaged
