"""Draws an ablation: changes with errors, training curves, and the total reward against ground truth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rl.ablation.matrix import BASE, PLOTS_FOLDER
from rl.ablation.table import Change, shown_columns
from rl.ablation.table_files import AblationResults
from rl.evaluation_tables import measure_label, measure_scale
from rl.metric_lines import read_metric_lines
from rl.run_files import METRICS_FILE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 4
_MOST_IN_SMALL_PANELS = 8  # variants whose names have room there
_SMOOTHING = 10  # a curve is the running mean over this part of its steps
# What the curves show, after the rewards.
_METRICS = {"rig/joints": "joints per rig", "rig/valid": "valid rigs", "kl": "KL", "entropy": "entropy"}
# Measures of the ground truth that are drawn against the total reward.
_TRUTH = ("unirig_j2j_valid", "skin_iou_valid", "motion_loss_valid")
_INK, _ACCENT = "#1d2329", "#2563c4"


def write_plots(results: AblationResults, folders: Mapping[str, Sequence[Path]], output: Path) -> None:
    """Write `plots/*.png`. `folders`: of each variant, the output directories of its finished runs."""
    place = output / PLOTS_FOLDER
    place.mkdir(exist_ok=True)
    _save(draw_changes(results), place / "changes.png")
    _save(draw_curves(folders), place / "curves.png")
    truth = draw_against_truth(results)
    if truth is not None:
        _save(truth, place / "reward_and_truth.png")


def draw_changes(results: AblationResults) -> Figure:
    """A panel per measure, a row per variant: its change by training ± standard error."""
    columns = [name for part in shown_columns(results.before) for name in part]
    names = [result.name for result in results.variants]
    figure, panels = _grid(len(columns), 2.9, 0.9 + 0.24 * len(names), share_rows=True)
    for panel, column in zip(panels, columns, strict=True):
        panel.axvline(0, color="0.75", linewidth=1)
        for row, result in enumerate(results.variants):
            found = result.change.get(column)
            if found is not None:
                _point(panel, column, found, row, result.name == BASE)
        panel.set_title(_label(column), fontsize=9)
        panel.locator_params(axis="x", nbins=4, steps=[1, 2, 5, 10])  # short labels, with room between
        panel.set_yticks(range(len(names)), names, fontsize=8)
        panel.invert_yaxis()
        panel.set_ylim(len(names) - 0.5, -0.5)
    figure.suptitle("Change by training ± standard error", fontsize=11)
    return figure


def draw_curves(folders: Mapping[str, Sequence[Path]]) -> Figure:
    """A panel per reward and metric of the training, a curve per variant: its seeds' running mean."""
    rows = {name: [_steps(folder) for folder in own] for name, own in folders.items()}
    every = [row for runs in rows.values() for run in runs for row in run]
    known = dict.fromkeys(key for row in every for key in row)
    rewards = {
        key: key.split("/")[1] for key in known if key.startswith("rewards/") and key.endswith("/mean")
    }
    titles = {**rewards, **{key: title for key, title in _METRICS.items() if key in known}}
    figure, panels = _grid(len(titles), 2.9, 2.4)
    for panel, (key, title) in zip(panels, titles.items(), strict=True):
        for place, (name, runs) in enumerate(rows.items()):
            found = mean_curve(runs, key)
            if found is not None:
                steps, values = found
                base = name == BASE
                colour = _INK if base else _palette(place)
                width, order = (2.2, 3) if base else (1.2, 2)
                panel.plot(steps, values, color=colour, linewidth=width, zorder=order, label=name)
        panel.set_title(title, fontsize=9)
        panel.locator_params(axis="x", nbins=5, integer=True)
    if panels:
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)
    figure.suptitle("Training rollouts by step, running mean over seeds", fontsize=11)
    return figure


def draw_against_truth(results: AblationResults) -> Figure | None:
    """The change of the total reward against that of ground-truth measures; None without ground truth."""
    columns = [name for name in _TRUTH if name in results.before.mean]
    if not columns:
        return None
    crowded = len(results.variants) > _MOST_IN_SMALL_PANELS
    figure, panels = _grid(len(columns), *((6.2, 5.6) if crowded else (4.2, 3.6)))
    for panel, column in zip(panels, columns, strict=True):
        panel.axvline(0, color="0.85", linewidth=1)
        panel.axhline(0, color="0.85", linewidth=1)
        for result in results.variants:
            x, y = result.change.get("total"), result.change.get(column)
            if x is None or y is None:
                continue
            scale = measure_scale(column)
            colour = _ACCENT if result.name == BASE else _INK
            panel.errorbar(
                x.mean,
                y.mean * scale,
                xerr=x.standard_error,
                yerr=y.standard_error * scale,
                fmt="o",
                markersize=3.5,
                color=colour,
                ecolor=(colour, 0.35),
                elinewidth=0.6,
            )
            panel.annotate(
                result.name,
                (x.mean, y.mean * scale),
                xytext=(4, 3),
                textcoords="offset points",
                fontsize=7,
                color=colour,
            )
        panel.set_xlabel("change of the total reward", fontsize=8)
        panel.set_title(f"change of {_label(column)}", fontsize=9)
    return figure


def mean_curve(
    runs: Sequence[Sequence[Mapping[str, Any]]], key: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Steps and the running mean of a metric's mean over runs, at the steps that all of them logged.

    The window is an odd number of steps, a tenth of all at most. None if no step is in all runs.
    """
    found = [{row["step"]: row[key] for row in run if row.get(key) is not None} for run in runs]
    found = [own for own in found if own]
    common = sorted(set.intersection(*(set(own) for own in found))) if found else []
    if not common:
        return None
    means = np.array([np.mean([own[step] for own in found]) for step in common])
    half = len(common) // _SMOOTHING // 2
    smooth = [means[max(0, place - half) : place + half + 1].mean() for place in range(len(means))]
    return np.array(common, dtype=np.float64), np.array(smooth)


def _steps(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl with a training step."""
    return [line for line in read_metric_lines(folder / METRICS_FILE)[0] if "loss" in line]


def _label(column: str) -> str:
    """As in the tables, whose cells say which numbers are percentages."""
    label = measure_label(column)
    return label if measure_scale(column) == 1 or "%" in label else label.replace(" ↑", ", % ↑")


def _point(panel: Any, column: str, found: Change, row: int, base: bool) -> None:
    scale = measure_scale(column)
    panel.errorbar(
        found.mean * scale,
        row,
        xerr=found.standard_error * scale,
        fmt="o",
        markersize=4,
        color=_ACCENT if base else _INK,
        elinewidth=1.2,
    )


def _grid(count: int, width: float, height: float, share_rows: bool = False) -> tuple[Figure, list[Any]]:
    """A figure of `count` panels of this size in inches, in rows of up to four."""
    from matplotlib.figure import Figure  # half a second, once at the end

    columns = min(_COLUMNS, max(count, 1))
    lines = max(1, math.ceil(count / columns))
    figure = Figure(figsize=(columns * width + 1.6, lines * height + 0.5), dpi=130, layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharey=share_rows)
    panels = list(grid.flat)
    for panel in panels[count:]:
        panel.set_visible(False)
    for panel in panels[:count]:
        panel.tick_params(labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, panels[:count]


def _palette(place: int) -> Any:
    """A colour for the variant at `place`: the strong ones of matplotlib's twenty first."""
    import matplotlib

    return matplotlib.colormaps["tab20"]((place * 2) % 20 + (place * 2 // 20) % 2)


def _save(figure: Figure, path: Path) -> None:
    """Write a PNG under a temporary name, then rename it."""
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, format="png")
    partial.replace(path)
