"""The numbers of an evaluation: what is measured, means and standard errors, differences, JSON and CSV."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

VALID_ONLY = "_valid"  # suffix of the mean over valid rigs alone


@dataclass(frozen=True)
class Measure:
    """How a measure is shown: `label` in tables of means, `short` as a column of the table of meshes.

    unit: a plain number, one in percent, or a count. lower: whether less is better, None if neither is.
    """

    label: str
    short: str
    unit: Literal["number", "percent", "count"]
    lower: bool | None


_REWARD = {"coverage": "cov", "containment": "cont", "sparsity": "spars", "smoothness": "smooth"}

# Measures by column; the recipe's guards are shown as rewards are.
MEASURES: dict[str, Measure] = {
    **{name: Measure(name, short, "number", False) for name, short in _REWARD.items()},
    "total": Measure("total", "total", "number", False),
    "valid": Measure("valid", "valid", "percent", False),
    "joints": Measure("joints", "joints", "count", None),
    "true_joints": Measure("joints of the known rigs", "true", "count", None),
    **{
        f"{convention}_{name}": Measure(
            f"{name.upper()} {convention}, % of box", f"{name.upper()} %", "percent", True
        )
        for convention in ("unirig", "rignet")
        for name in ("j2j", "j2b", "b2b")
    },
    "skin_l1": Measure("skin L1", "L1", "number", True),
    "skin_l1_variance": Measure("skin L1 variance", "L1 var", "number", True),
    "skin_precision": Measure("skin precision", "prec", "percent", False),
    "skin_recall": Measure("skin recall", "recall", "percent", False),
    "skin_iou": Measure("skin IoU", "IoU", "percent", False),
    "motion_loss": Measure("motion loss, % of box", "mot %", "percent", True),
}


def measure_of(column: str) -> Measure:
    """How a column is shown; a column over valid rigs alone as its measure is."""
    name = column.removesuffix(VALID_ONLY)
    return MEASURES.get(name) or Measure(name, name, "number", False)


@dataclass(frozen=True)
class Evaluation:
    """A policy's numbers: means over the rigs of each mesh, then over meshes.

    In a column by its plain name every rig counts, a failed one (no rig at all) at the measure's fixed worst
    value: 0 for the rewards, `rl.ground_truth.FAILED` for metrics. `<column>_valid` is over the valid rigs
    alone.
    `joints` and `true_joints` are over valid rigs and of the known ones. A mesh lacks the columns that it
    has no value for: metrics if its rig is not known, `_valid` if none of its rigs is.

    per_mesh: mesh name to its columns. mean, standard_error: over the meshes that have the column.
    diagnostics: means over all valid rigs.
    """

    policy: str
    samples: int
    seed: int
    per_mesh: dict[str, dict[str, float]]
    mean: dict[str, float]
    standard_error: dict[str, float]
    diagnostics: dict[str, float]
    decoding: str = "sampled"
    best_of: int = 1


@dataclass(frozen=True)
class Difference:
    """A paired difference: its mean and standard error over the `meshes` that both have."""

    mean: float
    standard_error: float
    meshes: int


def summarise(
    per_mesh: Mapping[str, Mapping[str, float]], columns: Sequence[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Mean and standard error of each column over the meshes that have it; what none has is left out."""
    values = {column: [row[column] for row in per_mesh.values() if column in row] for column in columns}
    present = {column: found for column, found in values.items() if found}
    return (
        {column: mean_of(found) for column, found in present.items()},
        {column: standard_error(found) for column, found in present.items()},
    )


def mean_of(values: Sequence[float]) -> float:
    """The mean; 0 of nothing."""
    return sum(values) / len(values) if values else 0.0


def standard_error(values: Sequence[float]) -> float:
    """Standard deviation of the mean, n − 1 in the variance; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    mean = mean_of(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def compare(before: Evaluation, after: Evaluation) -> dict[str, Difference]:
    """The per-mesh difference after − before of each column, over the meshes where both have it."""
    result = {}
    for column in before.mean:
        differences = [
            after.per_mesh[name][column] - row[column]
            for name, row in before.per_mesh.items()
            if column in row and column in after.per_mesh.get(name, {})
        ]
        if differences:
            result[column] = Difference(mean_of(differences), standard_error(differences), len(differences))
    return result


def write_evaluation(evaluation: Evaluation, path: Path, others: Sequence[Evaluation] = ()) -> None:
    """Write JSON: the evaluation, and under `compared` the others with their differences to it.

    As `write_csv`, under a temporary name that is then renamed.
    """
    compared = [
        {
            **asdict(other),
            "difference": {name: asdict(found) for name, found in compare(evaluation, other).items()},
        }
        for other in others
    ]
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({**asdict(evaluation), "compared": compared}, indent=2) + "\n")
    os.replace(partial, path)


def write_csv(evaluations: Sequence[Evaluation], path: Path) -> None:
    """Write a row per policy and mesh, then the mean and standard error of each policy and its differences.

    `row` says which it is: mesh, mean, standard_error, difference, difference_standard_error. Differences are
    to the first policy, paired by mesh. What has no value is empty.
    """
    columns = list(dict.fromkeys(column for each in evaluations for column in each.mean))
    rows: list[dict[str, Any]] = [
        {"row": "mesh", "policy": each.policy, "mesh": name, **values}
        for each in evaluations
        for name, values in each.per_mesh.items()
    ]
    for each in evaluations:
        rows.append({"row": "mean", "policy": each.policy, **each.mean})
        rows.append({"row": "standard_error", "policy": each.policy, **each.standard_error})
    for each in evaluations[1:]:
        found = compare(evaluations[0], each)
        for row, field in (("difference", "mean"), ("difference_standard_error", "standard_error")):
            rows.append(
                {"row": row, "policy": each.policy}
                | {column: getattr(difference, field) for column, difference in found.items()}
            )
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["row", "policy", "mesh", *columns], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(partial, path)
