"""Writes an ablation's tables: table.md, table.json, and the same on the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data.atomic import write_atomic
from rl.ablation.matrix import BASE
from rl.ablation.table import Change, VariantResult, shown_columns
from rl.child_runs.folder import DATA_FILE, TABLE_FILE
from rl.evaluation_results import Evaluation
from rl.evaluation_tables import change_cells, describe, measure_cell, measure_label

_ONE_SEED = "*"  # marks rows whose standard error is over meshes beside others over seeds


@dataclass(frozen=True)
class AblationResults:
    """All that the tables and plots show.

    before: the base recipe's policy before training. variants: those with a finished run, the base first if
    it has one. missing: the runs without a result, by name, each with its reason.
    """

    before: Evaluation
    variants: list[VariantResult]
    missing: dict[str, str]

    @property
    def mixed(self) -> bool:
        """Whether some variants have several finished seeds and others only one."""
        return len({len(result.seeds) > 1 for result in self.variants}) > 1


def write_tables(results: AblationResults, folder: Path) -> None:
    """Write table.md and table.json to the ablation's directory."""
    data = {
        "evaluation": describe(results.before, errors=False),
        "before": {"mean": results.before.mean, "standard_error": results.before.standard_error},
        "variants": [asdict(result) for result in results.variants],
        "missing": results.missing,
    }
    write_atomic(folder / DATA_FILE, (json.dumps(data, indent=2) + "\n").encode())
    write_atomic(folder / TABLE_FILE, markdown(results).encode())


def markdown(results: AblationResults) -> str:
    """The page: changes by training, differences from the base, and runs without a result."""
    parts = ["# Ablation", f"{describe(results.before, errors=False)}; {_errors(results)}."]
    for title, about, rows in _tables(results):
        parts.append(f"## {title}\n\n{about}")
        parts += [_markdown_table(head, body) for head, body in rows]
    if results.missing:
        lines = "\n".join(f"* {name}: {reason}" for name, reason in results.missing.items())
        parts.append(f"## Runs without a result\n\n{lines}")
    changed = "\n".join(
        f"* **{result.name}**: {', '.join(f'`{each}`' for each in result.overrides) or 'the recipe itself'}"
        for result in results.variants
    )
    parts.append(f"## Variants\n\n{changed}")
    return "\n\n".join(parts) + "\n"


def print_tables(results: AblationResults, console: Console) -> None:
    """Print the tables as the page has them."""
    for title, about, rows in _tables(results):
        console.print(f"[bold]{title}[/]. {about}", highlight=False)
        for head, body in rows:
            table = Table(padding=(0, 1))
            for place, name in enumerate(head):
                table.add_column(name, justify="right" if place else "left", no_wrap=not place)
            for cells in body:
                table.add_row(*cells)
            console.print(table)
    console.print(f"{describe(results.before, errors=False)}; {_errors(results)}.", highlight=False)


_Rows = list[tuple[list[str], list[list[str]]]]


def _tables(results: AblationResults) -> list[tuple[str, str, _Rows]]:
    """(title, sentence, [(header, rows)]) of each section."""
    change: _Rows = []
    versus: _Rows = []
    others = [result for result in results.variants if result.name != BASE]
    has_base = len(others) < len(results.variants)
    for columns in shown_columns(results.before):
        head = [*(measure_label(column) for column in columns)]
        before = [measure_cell(column, results.before.mean.get(column)) for column in columns]
        rows = [_row(results, each, each.change, columns) for each in results.variants]
        change.append((["", "seeds", *head], [["before training", "", *before], *rows]))
        if has_base and others:
            versus.append(
                (["", "seeds", *head], [_row(results, each, each.from_base, columns) for each in others])
            )
    sections = [
        (
            "Change by training",
            "After − before, per mesh; the first row is the policy before training. Distances, skin IoU and "
            "motion loss are over valid rigs.",
            change,
        )
    ]
    if versus:
        sections.append(
            ("Difference from the base", "Variant − base after training, per mesh and seed.", versus)
        )
    return sections


def _row(
    results: AblationResults, result: VariantResult, changes: Mapping[str, Change], columns: Sequence[str]
) -> list[str]:
    mark = _ONE_SEED if results.mixed and len(result.seeds) == 1 else ""
    cells = []
    for column in columns:
        found = changes.get(column)
        cells.append(change_cells(column, None if found is None else found.difference)[0])
    return [result.name, f"{len(result.seeds)}{mark}", *cells]


def _errors(results: AblationResults) -> str:
    """What standard errors are over."""
    if results.mixed:
        return f"± standard error over seeds, and over meshes in rows of one seed ({_ONE_SEED})"
    several = any(len(result.seeds) > 1 for result in results.variants)
    return f"± standard error over {'seeds' if several else 'meshes, since there is one seed'}"


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
