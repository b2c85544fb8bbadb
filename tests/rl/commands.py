"""Helpers for tests of the real commands: paths, a time limit, and readers of a run's files."""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
# Seconds; guards against hangs only.
TIMEOUT = 600


def metrics(output: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without timings."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if "second" not in key and "time" not in key}
        for line in lines
    ]


def without_worker_failures(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Metrics of a run with Ray as those of one without, which has no workers to lose: none failed."""
    names = {"workers/restarts", "workers/hung", "workers/quarantined"}
    for line in lines:
        assert {name: line[name] for name in names} == dict.fromkeys(names, 0)
    return [{key: value for key, value in line.items() if key not in names} for line in lines]


def steps(output: Path) -> list[int]:
    return [line["step"] for line in metrics(output)]


def evaluation(path: Path) -> dict[str, Any]:
    values = json.loads(path.read_text())
    return {key: values[key] for key in ("per_mesh", "mean", "standard_error", "diagnostics")}
