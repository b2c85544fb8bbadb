"""The tables of the page: runs, recipes with their differences, results, failures and kept rollouts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from data.typed_recipe import flat, to_mapping
from rl.evaluation_results import Evaluation, compare
from rl.evaluation_tables import change_cells, describe, measure_cell, measure_label, measure_sections
from rl.recipe import Recipe, check_recipe
from rl.report.html import escaped, folded, paragraph, table
from rl.report.read_run import RunFiles
from rl.rollout_store import ROWS_FILE, KeptRollout
from rl.run_files import ROLLOUTS_FOLDER

MOST_ROLLOUTS = 200
_COMPARED = "Valid rigs, compared with the ground truth"
_MISSING = "–"
# Keys that differ between any two runs and say nothing about them.
_OF_EVERY_RUN = ("output_dir", "resume", "train.run_name")


def runs_table(runs: Sequence[RunFiles]) -> str:
    """Each run with its state and what is missing."""
    rows = [[_run(place, run), escaped(state(run)), _notes(run)] for place, run in enumerate(runs)]
    return table(["run", "state", "notes"], rows, "text")


def state(run: RunFiles) -> str:
    """How far the run has come."""
    steps = f"{run.last_step} of {run.most_steps} steps" if run.most_steps else f"{run.last_step} steps"
    done = f"{'finished' if run.finished else 'not finished'}: {steps}"
    if run.best is None:
        return done
    value = measure_cell(run.best.by, run.best.value)
    return f"{done}; best policy by {run.best.by} on held-out meshes: step {run.best.step} ({value})"


def _run(place: int, run: RunFiles) -> str:
    return f'<span class="run run{place % 8}">{escaped(run.name)}</span>'


def _notes(run: RunFiles) -> str:
    return "".join(f"<div>{escaped(note)}</div>" for note in run.notes) or _MISSING


def recipe_tables(runs: Sequence[RunFiles]) -> str:
    """Keys in which the runs differ from each other (several) or from the defaults (one); then all keys."""
    keys = list(dict.fromkeys(key for run in runs for key in run.values))
    defaults = flat(to_mapping(check_recipe(Recipe())))
    differing = [key for key in keys if key not in _OF_EVERY_RUN and _differs(key, runs, defaults)]
    head = ["key", *(_run(place, run) for place, run in enumerate(runs))]
    if len(runs) == 1:
        head = ["key", "value", "default"]
    rows = [_recipe_row(key, runs, defaults) for key in differing]
    what = "differ between the runs" if len(runs) > 1 else "differ from the defaults"
    shown = table(head, rows, "text code") if rows else paragraph(f"No keys {what}.")
    title = (
        f"{len(differing)} keys {what}"
        if len(differing) != 1
        else f"1 key {what.replace('differ', 'differs')}"
    )
    every = [_recipe_row(key, runs, defaults) for key in keys]
    marked = [place for place, key in enumerate(keys) if key in differing]
    whole = table(head, every, "text code", marked)
    return f"<h3>{escaped(title)}</h3>{shown}{folded(f'All {len(keys)} keys', whole)}"


def _differs(key: str, runs: Sequence[RunFiles], defaults: Mapping[str, Any]) -> bool:
    values = [run.values.get(key, _MISSING) for run in runs]
    if len(runs) == 1:
        values.append(defaults.get(key, _MISSING))
    return any(value != values[0] for value in values)


def _recipe_row(key: str, runs: Sequence[RunFiles], defaults: Mapping[str, Any]) -> list[str]:
    cells = [escaped(_value(run.values.get(key, _MISSING))) for run in runs]
    if len(runs) == 1:
        cells.append(escaped(_value(defaults.get(key, _MISSING))))
    return [escaped(key), *cells]


def _value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def results_table(runs: Sequence[RunFiles]) -> str:
    """Before, after and their paired difference; of one run a row per measure, of several a row per run."""
    shown = [(place, run) for place, run in enumerate(runs) if run.before or run.after]
    if not shown:
        return paragraph("No run has been evaluated yet.")
    sections: dict[str, dict[str, None]] = {}
    for _, run in shown:
        for found in filter(None, (run.before, run.after)):
            for title, columns in measure_sections([found]):
                kind = _COMPARED if title.startswith("valid") else title
                sections.setdefault(kind, {}).update(dict.fromkeys(columns))
    parts = [_evaluated(runs, shown)]
    for title, names in sections.items():
        body = _by_run(list(names), shown) if len(runs) > 1 else _by_measure(list(names), shown[0][1])
        if title in ("", _COMPARED):
            parts.append((f"<h3>{title}</h3>" if title else "") + body)
        else:
            parts.append(folded(f"The same {title}, which count with the worst value", body))
    return "".join(parts)


def _evaluated(runs: Sequence[RunFiles], shown: Sequence[tuple[int, RunFiles]]) -> str:
    """What was evaluated, once if all runs were evaluated alike."""
    said = {run.name: describe(found) for _, run in shown if (found := run.before or run.after) is not None}
    different = dict.fromkeys(said.values())
    lines = (
        [f"{name}: {text}." for name, text in said.items()]
        if len(different) > 1
        else [f"{one}." for one in different]
    )
    if len(runs) > 1:
        lines.append("Each cell: before → after, and the difference ± s.e.")
    return "".join(map(paragraph, lines))


def _by_measure(names: Sequence[str], run: RunFiles) -> str:
    rows = [[escaped(measure_label(name)), *_cells(name, run)] for name in names]
    weighty = [place for place, name in enumerate(names) if name == "total"]
    return table(["", "before", "after", "difference ± s.e."], rows, "numbers", weighty)


def _by_run(names: Sequence[str], shown: Sequence[tuple[int, RunFiles]]) -> str:
    rows = []
    for place, run in shown:
        cells = [_cells(name, run) for name in names]
        rows.append(
            [_run(place, run), *(f"{before} → {after}<div>{change}</div>" for before, after, change in cells)]
        )
    return table(["", *(escaped(measure_label(name)) for name in names)], rows, "numbers runs")


def _cells(name: str, run: RunFiles) -> tuple[str, str, str]:
    """Before, after and difference of a measure, as HTML."""
    before, after = (
        escaped(measure_cell(name, found.mean.get(name)) if found else _MISSING)
        for found in (run.before, run.after)
    )
    if run.before is None or run.after is None:
        return before, after, _MISSING
    change = compare(run.before, run.after).get(name)
    text = escaped(change_cells(name, change)[0])
    sure = change is not None and abs(change.mean) > 2 * change.standard_error > 0
    return before, after, f"<b>{text}</b>" if sure else text


def failures_table(runs: Sequence[RunFiles]) -> str:
    """Everything that went wrong, counted by run, and the details of quarantined meshes and bad steps."""
    head = ["", *(_run(place, run) for place, run in enumerate(runs))]
    names = list(_failures(runs[0]))
    counts = [_failures(run) for run in runs]
    rows = [[escaped(name), *(escaped(found[name]) for found in counts)] for name in names]
    details = []
    for run in runs:
        for mesh in run.quarantined:
            details.append(paragraph(f"{run.name}: {mesh.sentence()}."))
        for bad in run.bad_steps:
            causes = ", ".join(map(str, bad.get("causes", []))) or "unknown cause"
            details.append(
                paragraph(f"{run.name}: step {bad.get('step')} was skipped ({causes} not finite).")
            )
    return table(head, rows, "numbers") + "".join(details)


def _failures(run: RunFiles) -> dict[str, str]:
    return {
        "rollouts in training that are no valid rig": _share(run, "rig/valid", complement=True),
        "rollouts cut off by the token limit": _share(run, "completions/clipped_ratio"),
        "invalid held-out rigs before": _invalid(run.before),
        "invalid held-out rigs after": _invalid(run.after),
        "rollouts without a score": _sum(run, "rig/unscored"),
        "steps skipped as not finite": _sum(run, "train_guard/bad_steps"),
        "steps without scores": _sum(run, "train_guard/unscored_steps"),
        "reward workers replaced": _last(run, "workers/restarts"),
        "of them hung": _last(run, "workers/hung"),
        "meshes quarantined": str(len(run.quarantined)),
    }


def _column(run: RunFiles, name: str) -> list[float]:
    return [value for row in run.steps if (value := row.get(name)) is not None]


def _share(run: RunFiles, name: str, complement: bool = False) -> str:
    values = _column(run, name)
    if not values:
        return _MISSING
    mean = sum(values) / len(values)
    return f"{100 * (1 - mean if complement else mean):.1f} %"


def _sum(run: RunFiles, name: str) -> str:
    values = _column(run, name)
    return f"{sum(values):.0f}" if values else _MISSING


def _last(run: RunFiles, name: str) -> str:
    values = _column(run, name)
    return f"{values[-1]:.0f}" if values else _MISSING


def _invalid(evaluation: Evaluation | None) -> str:
    rows = [row for rigs in evaluation.per_rig.values() for row in rigs] if evaluation else []
    return f"{sum(not row['valid'] for row in rows)} of {len(rows)}" if rows else _MISSING


def rollouts_tables(runs: Sequence[RunFiles], page_folder: Path) -> str:
    """The kept rollouts, each with its row for `rl.replay` and a link to its GLB; the last 200 of a run.

    Links are relative to `page_folder`, where the page will be.
    """
    parts = []
    for place, run in enumerate(runs):
        numbered = list(enumerate(run.rollouts, 1))
        if not numbered:
            continue
        if len(numbered) > MOST_ROLLOUTS:
            parts.append(paragraph(f"The last {MOST_ROLLOUTS} of {len(numbered)} kept rollouts."))
        numbered = numbered[-MOST_ROLLOUTS:]
        rewards = list(dict.fromkeys(name for _, row in numbered for name in row.weights))
        head = ["row", "step", "why", "mesh", "total", *rewards, "joints", "failure", "rig"]
        folder = run.folder / ROLLOUTS_FOLDER
        rows = [_rollout_cells(number, row, rewards, folder, page_folder) for number, row in numbered]
        parts.append(
            f"<h3>{_run(place, run)}</h3>" + table([escaped(cell) for cell in head], rows, "text small")
        )
    return "".join(parts)


def _rollout_cells(
    number: int, row: KeptRollout, rewards: Sequence[str], folder: Path, page_folder: Path
) -> list[str]:
    values = row.rewards or {}
    numbers = [row.total, *(values.get(name) for name in rewards)]
    link = _MISSING
    if row.glb is not None:
        target = quote(Path(os.path.relpath(folder / row.glb, page_folder)).as_posix())
        link = f'<a href="{escaped(target)}">{escaped(row.glb)}</a>'
    return [
        f"{ROWS_FILE}:{number}",
        str(row.step),
        row.why,
        escaped(row.mesh),
        # A number that JSON lacks is a text in the row.
        *(_MISSING if value is None else f"{float(value):.4g}" for value in numbers),
        _MISSING if row.joints is None else str(row.joints),
        _MISSING if row.failure is None else escaped(row.failure),
        link,
    ]
