"""Evaluation results: means, standard errors and paired differences, written as JSON and CSV."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

VALID_ONLY = "_valid"  # suffix of columns that average over valid rigs only


@dataclass(frozen=True)
class Measure:
    """How a column is displayed: `label` in the table of means, `short` as a header in the table of meshes.

    unit: plain number, percent (of a fraction) or count. lower: whether lower is better, None if neither is.
    digits: after the point, None for the unit's.
    """

    label: str
    short: str
    unit: Literal["number", "percent", "count"]
    lower: bool | None
    digits: int | None = None


_REWARD = {"coverage": "cov", "containment": "cont", "sparsity": "spars", "smoothness": "smooth"}

# Measures by column; guards, which are not listed, are displayed like rewards.
MEASURES: dict[str, Measure] = {
    **{name: Measure(name, short, "number", False) for name, short in _REWARD.items()},
    "total": Measure("total", "total", "number", False),
    "tuning_gain": Measure("total, gain by tuning", "gain", "number", False),
    "valid": Measure("valid", "valid", "percent", False),
    "joints": Measure("joints", "joints", "count", None),
    "true_joints": Measure("ground-truth joints", "true", "count", None),
    **{
        f"{convention}_{name}": Measure(
            f"{name.upper()} {convention}, % of box", f"{name.upper()} %", "percent", True
        )
        for convention in ("unirig", "exact")
        for name in ("j2j", "j2b", "b2b")
    },
    **{
        f"rignet_{name}": Measure(f"{name.upper()} rignet, × 100", f"{name.upper()} × 100", "number", True)
        for name in ("j2j", "j2b", "b2b")
    },
    "skin_l1": Measure("skin L1", "L1", "number", True),
    "skin_l1_per_entry": Measure("skin L1 per entry", "L1/entry", "number", True, digits=4),
    "skin_l1_variance": Measure("skin L1 variance", "L1 var", "number", True),
    "skin_precision": Measure("skin precision", "prec", "percent", False),
    "skin_recall": Measure("skin recall", "recall", "percent", False),
    "skin_iou": Measure("skin IoU", "IoU", "percent", False),
    "motion_loss": Measure("motion loss, % of box", "mot %", "percent", True),
    "motion_mse": Measure("motion, squared", "mot²", "number", True, digits=5),
}


def measure_of(column: str) -> Measure:
    """How a column is displayed, with or without the suffix for valid rigs only."""
    name = column.removesuffix(VALID_ONLY)
    return MEASURES.get(name) or Measure(name, name, "number", False)


@dataclass(frozen=True)
class Evaluation:
    """Results of one policy: means over the rigs of each mesh, then over meshes.

    In a column without suffix every rig counts. A failed rig (invalid or incomplete) counts as the measure's
    worst value: 0 for rewards, `rl.ground_truth.failed_metrics` for metrics. `<column>_valid` averages over
    valid rigs only, as does `joints`; `true_joints` is the number of joints of the ground truth. A mesh lacks
    the columns it has no value for: metrics if it has no ground truth, `_valid` if none of its rigs is valid.
    A valid rig for which a metric is not defined counts as failed in this metric.

    best_of, tune_steps: as in the recipe; with tuning there is a column `tuning_gain`, the total less that of
    the best of as many rigs without tuning.
    skeleton: "given" if rigs have the ground truth's skeleton; there are then no skeleton distances.
    per_mesh: columns by mesh name. mean, standard_error: over the meshes that have the column.
    diagnostics: means over all valid rigs.
    per_rig: by mesh name, a row for each rig that counts: its rewards, `total`, `valid` (0 or 1) and, if it
    is valid, its diagnostics, `joints` among them.
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
    tune_steps: int = 0
    skeleton: str | None = None
    skin_convention: str = "plain"
    metric_vertices: int | None = None
    per_rig: dict[str, list[dict[str, float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """A paired difference: mean and standard error over the number of `meshes` both evaluations have."""

    mean: float
    standard_error: float
    meshes: int


def summarise(
    per_mesh: Mapping[str, Mapping[str, float]], columns: Sequence[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Mean and standard error of each column over the meshes that have it; columns of no mesh are skipped."""
    values = {column: [row[column] for row in per_mesh.values() if column in row] for column in columns}
    present = {column: found for column, found in values.items() if found}
    return (
        {column: mean_of(found) for column, found in present.items()},
        {column: standard_error(found) for column, found in present.items()},
    )


def mean_of(values: Sequence[float]) -> float:
    """The mean; 0 for no values."""
    return sum(values) / len(values) if values else 0.0


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean, with n − 1 in the variance; 0 for fewer than two values."""
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
    """Write JSON: the evaluation, and under `compared` the others with their differences from it.

    Like `write_csv`, it writes under a temporary name, then renames.
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


def read_evaluation(path: Path) -> Evaluation | None:
    """The evaluation that `write_evaluation` wrote, without `compared`; None if the file is not one."""
    try:
        values = json.loads(path.read_text())
        return Evaluation(**{known.name: values[known.name] for known in fields(Evaluation)})
    except (ValueError, KeyError, TypeError):
        return None


def write_csv(evaluations: Sequence[Evaluation], path: Path) -> None:
    """Write one row per policy and mesh, then each policy's mean, standard error and differences.

    The column `row` is one of mesh, mean, standard_error, difference, difference_standard_error. Differences
    are from the first policy, paired by mesh. Missing values are empty.
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
        for row, part in (("difference", "mean"), ("difference_standard_error", "standard_error")):
            rows.append(
                {"row": row, "policy": each.policy}
                | {column: getattr(difference, part) for column, difference in found.items()}
            )
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["row", "policy", "mesh", *columns], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(partial, path)
