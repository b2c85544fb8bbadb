"""Prints evaluation results as terminal tables: means, policies side by side, and single meshes."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from rl.evaluation_results import VALID_ONLY, Difference, Evaluation, compare, measure_of

WIDTH = 112  # console width when the output is not a terminal
COMPARED_AT_ONCE = 2  # policies next to the first in one table
NAME_LENGTH = 22

# Columns of the table of meshes: for a single policy, and for each of several.
_OF_A_MESH = (
    *("coverage", "containment", "sparsity", "smoothness", "total", "valid", "joints", "true_joints"),
    *("unirig_j2j_valid", "unirig_b2b_valid", "skin_l1_valid", "skin_iou_valid", "motion_loss_valid"),
)
_OF_A_MESH_COMPARED = ("total", "unirig_j2j_valid", "skin_iou_valid")


def make_console() -> Console:
    """The terminal; a console as wide as the tables if the output is not a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def print_means(evaluations: Sequence[Evaluation], labels: Sequence[str], console: Console) -> None:
    """Print measures as rows and policies as columns, with paired differences from the first policy.

    Metrics average over valid rigs; if some rig failed, they are repeated with failed rigs at their worst
    value. Fits 112 columns.
    """
    first, others = evaluations[0], list(zip(labels[1:], evaluations[1:], strict=True))
    console.print(describe(first), highlight=False)
    parts = [others[i : i + COMPARED_AT_ONCE] for i in range(0, len(others), COMPARED_AT_ONCE)]
    for part in parts or [[]]:
        ratio = len(others) == 1  # otherwise there is no room for it
        table = Table()
        table.add_column("", no_wrap=True)
        table.add_column(labels[0] if others else "mean", justify="right")
        if not others:
            table.add_column("± s.e.", justify="right")
        for label, _ in part:
            table.add_column(label, justify="right")
            table.add_column("difference ± s.e.", justify="right")
            if ratio:
                table.add_column("s.e.s", justify="right")
        differences = [compare(first, other) for _, other in part]
        for title, columns in measure_sections(evaluations):
            if title:
                table.add_section()
                table.add_row(f"[italic]{title}[/]")
            for column in columns:
                cells = [measure_label(column), measure_cell(column, first.mean.get(column))]
                if not others:
                    cells.append(standard_error_cell(column, first))
                for (_, other), found in zip(part, differences, strict=True):
                    change = change_cells(column, found.get(column))
                    cells += [measure_cell(column, other.mean.get(column)), *change[: 1 + ratio]]
                table.add_row(*cells)
        console.print(table)


def print_meshes(evaluations: Sequence[Evaluation], labels: Sequence[str], console: Console) -> None:
    """Print one row per mesh with the main measures, policies side by side; metrics over valid rigs only."""
    several = len(evaluations) > 1
    width = COMPARED_AT_ONCE + 1
    for start in range(0, len(evaluations), width):
        part = list(zip(labels, evaluations, strict=True))[start : start + width]
        wanted = _OF_A_MESH_COMPARED if several else _OF_A_MESH
        shown = [
            (label, evaluation, column)
            for column in wanted
            for label, evaluation in part
            if column in evaluation.mean and (column != "valid" or evaluation.mean["valid"] < 1)
        ]
        table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False)
        table.add_column("mesh", no_wrap=True)
        for label, _, column in shown:
            heading = measure_of(column).short
            table.add_column(f"{heading} {label}" if several else heading, justify="right", no_wrap=True)
        for name in part[0][1].per_mesh:
            cells = [
                measure_cell(column, each.per_mesh.get(name, {}).get(column), sign=False)
                for _, each, column in shown
            ]
            table.add_row(_shortened(name), *cells)
        console.print(table)


def short_line(evaluation: Evaluation, first: str) -> str:
    """An evaluation in one line: the measure `first` with its standard error, then the main ones."""
    shown = [f"{first} {measure_cell(first, evaluation.mean.get(first))}"]
    if first in evaluation.mean:
        shown[0] += f" ± {standard_error_cell(first, evaluation)}"
    for column in _OF_A_MESH:
        if column in evaluation.mean and column != first:
            shown.append(
                f"{measure_of(column).short} {measure_cell(column, evaluation.mean[column], sign=False)}"
            )
    return "  ".join(shown)


def describe(evaluation: Evaluation, errors: bool = True) -> str:
    """One line: number of meshes and rigs, decoding, seed, and the skin convention unless it is plain.

    A published convention goes with a limit on vertices, if there is one: published scores have none. With
    `errors` it says what standard errors are over.
    """
    count = len(evaluation.per_mesh)
    rigs = f"{evaluation.samples} rig{'s' * (evaluation.samples > 1)} each"
    how = evaluation.decoding
    if evaluation.best_of > 1:
        tries = evaluation.best_of * (evaluation.tune_steps + 1)
        how += f", each the best of {tries} by total reward"
    if evaluation.tune_steps:
        steps = f"{evaluation.tune_steps} step{'s' * (evaluation.tune_steps > 1)}"
        how += f" in {steps} of tuning to its mesh"
    if evaluation.skeleton == "given":
        how += ", ground-truth skeletons"
    skin = "" if evaluation.skin_convention == "plain" else f", skin as {evaluation.skin_convention}"
    if skin and evaluation.metric_vertices is not None:
        skin += f" at up to {evaluation.metric_vertices} vertices"
    said = f"{count} held-out meshes, {rigs}, {how}, seed {evaluation.seed}{skin}"
    return f"{said}; s.e. over meshes" if errors else said


def measure_sections(evaluations: Sequence[Evaluation]) -> list[tuple[str, list[str]]]:
    """Titles and columns: rewards, metrics over valid rigs, and metrics with failed rigs if there are any."""
    columns = evaluations[0].mean
    rewards = [c for c in columns if not c.endswith(VALID_ONLY) and not is_metric(c)]
    # No published table has `exact` distances: they are in the files only.
    metrics = [
        c for c in columns if is_metric(c) and not c.endswith(VALID_ONLY) and not c.startswith("exact_")
    ]
    truths = max((sum(c in row for row in evaluations[0].per_mesh.values()) for c in metrics[:1]), default=0)
    sections = [("", rewards)]
    failed = any(each.mean["valid"] < 1 for each in evaluations)
    if metrics:
        valid = [f"{c}{VALID_ONLY}" for c in metrics if f"{c}{VALID_ONLY}" in columns]
        sections.append((f"valid rigs, {truths} ground truth{'s' * (truths != 1)}", valid))
    if metrics and failed:
        sections.append(("including failed rigs", metrics))
    return sections


def is_metric(column: str) -> bool:
    """Whether a column compares with ground truth."""
    return column.startswith(("unirig_", "rignet_", "exact_", "skin_", "motion_"))


def measure_label(column: str) -> str:
    measure = measure_of(column)
    arrow = {None: "", True: " ↓", False: " ↑"}[measure.lower]
    return f"{measure.label}{arrow}"


def measure_scale(column: str) -> float:
    return 100.0 if measure_of(column).unit == "percent" else 1.0


def _digits(column: str) -> int:
    digits = measure_of(column).digits
    if digits is not None:
        return digits
    if column == "valid" or measure_of(column).unit == "count" or column.startswith("skin_"):
        return 3 if measure_of(column).unit == "number" else 1
    return {"percent": 2, "number": 3}[measure_of(column).unit]


def measure_cell(column: str, value: float | None, sign: bool = True) -> str:
    if value is None:
        return "–"
    percent = measure_of(column).unit == "percent" and sign and "%" not in measure_of(column).label
    return f"{value * measure_scale(column):.{_digits(column)}f}{' %' * percent}"


def error_cell(column: str, value: float | None) -> str:
    return "–" if value is None else f"{value * measure_scale(column):.{_digits(column)}f}"


def standard_error_cell(column: str, evaluation: Evaluation) -> str:
    """The standard error over meshes of a mean; of a single mesh there is none."""
    meshes = sum(column in row for row in evaluation.per_mesh.values())
    return error_cell(column, evaluation.standard_error.get(column) if meshes > 1 else None)


def change_cells(column: str, found: Difference | None) -> tuple[str, str]:
    if found is None:
        return "–", "–"
    scale, digits = measure_scale(column), _digits(column)
    ratio = f"{found.mean / found.standard_error:+.1f}" if found.standard_error else "–"
    # Of a single pair there is no standard error.
    error = f"{found.standard_error * scale:.{digits}f}" if found.meshes > 1 else "–"
    return f"{found.mean * scale:+.{digits}f} ± {error}", ratio


def _shortened(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…"
