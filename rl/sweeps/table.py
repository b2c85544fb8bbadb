"""The table of a sweep: trials by their metric, and those without a result; as files and on the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from data.atomic import write_atomic
from rl.child_runs.folder import DATA_FILE, TABLE_FILE
from rl.evaluation_tables import error_cell, measure_cell, measure_label
from rl.sweeps.sweep_file import SweepRecipe
from rl.sweeps.trials import Result, Trial, shown_point

Ranked = Sequence[tuple[Trial, Result]]


def ranked(results: Mapping[Trial, Result], sweep: SweepRecipe) -> Ranked:
    """Trials with their results, the best first; equal ones in the order in which they were tried."""
    sign = -1 if sweep.metric.goal == "maximize" else 1
    return sorted(results.items(), key=lambda item: sign * item[1].value)


def write_tables(sweep: SweepRecipe, best_first: Ranked, missing: Mapping[Trial, str], folder: Path) -> None:
    """Write table.md and table.json to the sweep's directory. missing: why other trials have no result."""
    head, rows = _cells(sweep, best_first)
    parts = [f"# Sweep {sweep.name}", f"{_about(sweep, best_first)}"]
    if rows:
        lines = [head, ["---", "---", *["---:"] * (len(head) - 2)], *rows]
        parts.append("\n".join(f"| {' | '.join(cells)} |" for cells in lines))
    if missing:
        named = [f"* {trial.id} ({shown_point(trial.point)}): {why}" for trial, why in missing.items()]
        parts.append("## Trials without a result\n\n" + "\n".join(named))
    data = {
        "name": sweep.name,
        "method": sweep.method,
        "seed": sweep.seed,
        "metric": asdict(sweep.metric),
        "trials": [
            {**_described(trial), "value": found.value, "standard_error": found.standard_error}
            for trial, found in best_first
        ],
        "missing": [{**_described(trial), "reason": why} for trial, why in missing.items()],
    }
    write_atomic(folder / DATA_FILE, (json.dumps(data, indent=2) + "\n").encode())
    write_atomic(folder / TABLE_FILE, ("\n\n".join(parts) + "\n").encode())


def print_table(sweep: SweepRecipe, best_first: Ranked, console: Console) -> None:
    """Print the table as the page has it."""
    head, rows = _cells(sweep, best_first)
    table = Table(padding=(0, 1))
    for place, name in enumerate(head):
        table.add_column(name, justify="left" if place < 2 else "right", no_wrap=place < 2)
    for cells in rows:
        table.add_row(*cells)
    console.print(f"[bold]Sweep {sweep.name}[/]. {_about(sweep, best_first)}", highlight=False)
    console.print(table)


def result_cell(sweep: SweepRecipe, result: Result) -> str:
    """The metric and its standard error, in its unit."""
    measure = sweep.metric.measure
    error = error_cell(measure, result.standard_error)
    return f"{measure_cell(measure, result.value)} ± {error}"


def _about(sweep: SweepRecipe, best_first: Ranked) -> str:
    count, metric = len(best_first), sweep.metric.name
    return (
        f"{count} trial{'s' * (count != 1)} ({sweep.method}), by `{metric}` on held-out meshes after the "
        "last step; ± standard error over meshes."
    )


def _cells(sweep: SweepRecipe, best_first: Ranked) -> tuple[list[str], list[list[str]]]:
    """The header, and a row for each trial."""
    varied = [each for each in sweep.read_parameters() if each.distribution != "constant"]
    head = ["", "trial", measure_label(sweep.metric.measure), *(each.key for each in varied)]
    rows = [
        [
            str(place),
            trial.id,
            result_cell(sweep, found),
            *(_value(trial.point[each.path]) for each in varied),
        ]
        for place, (trial, found) in enumerate(best_first, start=1)
    ]
    return head, rows


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _described(trial: Trial) -> dict[str, Any]:
    parameters = {".".join(path): value for path, value in trial.point.items()}
    return {"id": trial.id, "parameters": parameters, "output_dir": str(trial.folder)}
