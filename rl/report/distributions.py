"""Histograms of rewards over single held-out rigs, and diagnostics against rewards, before and after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rewards.diagnostics import DIAGNOSTIC_NAMES
from rl.report.read_run import RunFiles
from rl.report.viewer_data import AFTER, BEFORE

BINS = 24
MOST_POINTS = 3000  # of a scatter plot, over all runs

Rows = list[dict[str, float]]


def evaluated_rigs(runs: Sequence[RunFiles]) -> Iterator[tuple[int, str, Rows]]:
    """(place of the run, before or after, the rows of its rigs) of each evaluation that has rows."""
    for place, run in enumerate(runs):
        for stage, evaluation in ((BEFORE, run.before), (AFTER, run.after)):
            rows = [row for rigs in (evaluation.per_rig.values() if evaluation else ()) for row in rigs]
            if rows:
                yield place, stage, rows


def measures(runs: Sequence[RunFiles]) -> list[str]:
    """What a rig is scored by: the total, then the rewards of all runs; nothing without evaluations."""
    names = dict.fromkeys(key for _, _, rows in evaluated_rigs(runs) for row in rows for key in row)
    others = [key for key in names if key not in ("total", "valid", *DIAGNOSTIC_NAMES)]
    return ["total", *others] if names else []


def histograms(runs: Sequence[RunFiles]) -> list[dict[str, Any]]:
    """One histogram per measure with common bins; a series has the share of its rigs in each bin."""
    charts = []
    for name in measures(runs):
        columns = [
            (place, stage, [row[name] for row in rows if name in row])
            for place, stage, rows in evaluated_rigs(runs)
        ]
        columns = [column for column in columns if column[2]]
        together = np.concatenate([values for _, _, values in columns])
        low, high = float(together.min()), float(together.max())
        edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
        series = [
            {
                "run": place,
                "stage": stage,
                "rigs": len(values),
                "mean": float(np.mean(values)),
                "shares": [float(f"{share:.4g}") for share in np.histogram(values, edges)[0] / len(values)],
            }
            for place, stage, values in columns
        ]
        charts.append({"title": name, "edges": [float(f"{edge:.6g}") for edge in edges], "series": series})
    return charts


def scatters(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """Diagnostics and measures of valid rigs: columns by name for each evaluation, an even part of many."""
    names = measures(runs)
    columns = [*names, *DIAGNOSTIC_NAMES]
    series = []
    evaluated = list(evaluated_rigs(runs))
    for place, stage, rows in evaluated:
        valid = [row for row in rows if row["valid"] and all(name in row for name in DIAGNOSTIC_NAMES)]
        part = valid[:: max(1, -(-len(valid) * len(evaluated) // MOST_POINTS))]
        if part:
            values = {
                name: [float(f"{row[name]:.5g}") for row in part]
                for name in columns
                if all(name in row for row in part)
            }
            series.append({"run": place, "stage": stage, "values": values})
    return {"measures": names, "diagnostics": list(DIAGNOSTIC_NAMES) if series else [], "series": series}
