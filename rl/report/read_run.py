"""Reads what a run left in its output directory so far: recipe, metrics, evaluations, failures, rollouts."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.typed_recipe import RecipeError, build, flat, read_recipe
from rewards.quarantine import QUARANTINE_FILE, QuarantinedMesh, read_quarantine
from rl.bad_steps import BAD_STEPS_FOLDER
from rl.best_policy import BestPolicy, load_best
from rl.evaluation_results import Evaluation, read_evaluation
from rl.metric_lines import read_metric_lines
from rl.recipe import Recipe, check_recipe
from rl.rollout_store import ROWS_FILE, KeptRollout, read_rows
from rl.run_files import (
    AFTER_FILE,
    BEFORE_FILE,
    METRICS_FILE,
    POLICY_FOLDER,
    RECIPE_FILE,
    ROLLOUTS_FOLDER,
)


@dataclass(frozen=True, eq=False)
class RunFiles:
    """A run as its output directory tells it.

    Attributes:
        folder: the output directory. name: what the page calls it.
        values: the resolved recipe, flat, by dotted key.
        recipe: the same, checked; None if this version refuses it, for the reason `refusal`.
        steps: the lines of metrics.jsonl with a training step, by metric; None for what has no finite value.
        evaluations: its lines with an evaluation during training.
        before, after: the evaluations around the training.
        finished: whether the refined policy is there.
        best: the best policy so far, if one is kept.
        quarantined, bad_steps: rows of the files of that name. rollouts: all rows of kept rollouts.
        notes: what is missing or damaged, a sentence each.
    """

    folder: Path
    name: str
    values: dict[str, Any]
    recipe: Recipe | None
    refusal: str
    steps: list[dict[str, float | None]]
    evaluations: list[dict[str, float | None]]
    before: Evaluation | None
    after: Evaluation | None
    finished: bool
    best: BestPolicy | None
    quarantined: list[QuarantinedMesh]
    bad_steps: list[dict[str, Any]]
    rollouts: list[KeptRollout]
    notes: list[str]

    @property
    def last_step(self) -> int:
        """The last step that was logged; 0 for none."""
        return int(self.steps[-1]["step"] or 0) if self.steps else 0

    @property
    def most_steps(self) -> int | None:
        """The steps that the recipe asks for, if it says."""
        most = self.values.get("train.max_steps")
        return most if isinstance(most, int) else None

    @property
    def weighs_alike(self) -> bool:
        """Whether the total of the evaluations before and after is the one that it was trained with.

        An ablation evaluates all its runs with the weights of the base.
        """
        if self.recipe is None:
            return True
        weights = self.recipe.rewards.weights
        for found in filter(None, (self.before, self.after)):
            mean = found.mean
            total = sum(weight * mean.get(name, math.nan) for name, weight in weights.items() if weight)
            if not math.isclose(total, mean["total"], rel_tol=1e-6, abs_tol=1e-6):
                return False
        return True


def read_run(folder: Path, name: str, overrides: Sequence[str] = ()) -> RunFiles:
    """Read a run; what is missing is noted, not an error.

    `overrides` change its recipe, as on the command line, for example where its meshes are now.

    Raises:
        RecipeError: the folder does not hold a GRPO run, or its recipe or an override cannot be read.
    """
    if not folder.is_dir():
        raise RecipeError(f"{folder} is not a folder; give the output_dir of a run")
    written = folder / RECIPE_FILE
    if not written.is_file():
        raise RecipeError(f"{folder} holds no run: it has no {RECIPE_FILE}; {_instead(folder)}")
    values = read_recipe(written, overrides)
    if not isinstance(values.get("rewards"), dict) or not isinstance(values.get("train"), dict):
        raise RecipeError(f"{folder} holds no GRPO run: {written} is a recipe of something else")
    recipe, refusal = None, ""
    try:
        recipe = check_recipe(build(Recipe, values))
    except RecipeError as error:
        if overrides:
            raise
        refusal = str(error)
    notes: list[str] = []
    if refusal:
        notes.append(f"This version refuses its recipe, so no rigs are shown: {refusal}.")
    steps, evaluations = _metrics(folder / METRICS_FILE, notes)
    finished = (folder / POLICY_FOLDER).is_dir()
    before = _evaluation(folder / BEFORE_FILE, "before", notes)
    after = _evaluation(folder / AFTER_FILE, "after", notes)
    run = RunFiles(
        folder,
        name,
        flat(values),
        recipe,
        refusal,
        steps,
        evaluations,
        before,
        after,
        finished,
        load_best(folder),
        _quarantined(folder / QUARANTINE_FILE, notes),
        _bad_steps(folder / BAD_STEPS_FOLDER, notes),
        _rollouts(folder / ROLLOUTS_FOLDER / ROWS_FILE, notes),
        notes,
    )
    if not run.weighs_alike:
        notes.append(
            "It was evaluated with other reward weights than trained: the totals on its curve and below "
            "its rigs are its own."
        )
    return run


def _instead(folder: Path) -> str:
    """What to name instead of a folder without a run: the runs in it, as of an ablation or a sweep."""
    runs = [path.parent for depth in ("*", "*/*") for path in sorted(folder.glob(f"{depth}/{METRICS_FILE}"))]
    return f"name runs in it, such as {runs[0]}" if runs else "give the output_dir of a run"


def run_names(folders: Sequence[Path]) -> list[str]:
    """The last part of each path that differs from the others' of the same length; unique."""
    parts = [folder.resolve().parts for folder in folders]
    names = []
    for own in parts:
        length = 1
        while sum(other[-length:] == own[-length:] for other in parts) > 1 and length < len(own):
            length += 1
        names.append("/".join(own[-length:]))
    return names


def _metrics(
    path: Path, notes: list[str]
) -> tuple[list[dict[str, float | None]], list[dict[str, float | None]]]:
    """Lines with a training step, and lines of evaluations during training."""
    lines, damaged = read_metric_lines(path)
    notes.extend(f"Line {number} of {path.name} is damaged and left out." for number in damaged)
    steps, evaluations = [], []
    for line in lines:
        row = {key: _finite(value) for key, value in line.items() if isinstance(value, int | float | None)}
        if "loss" in row:
            steps.append(row)
        if any(key.startswith("eval/") for key in row):
            evaluations.append(row)
    if not steps:
        notes.append("No step has been logged yet.")
    return steps, evaluations


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _evaluation(path: Path, when: str, notes: list[str]) -> Evaluation | None:
    if not path.is_file():
        notes.append(f"It has no evaluation {when} training ({path.name}).")
        return None
    found = read_evaluation(path)
    if found is None:
        notes.append(f"{path.name} is damaged or of another version: it has no rows of single rigs.")
    return found


def _bad_steps(folder: Path, notes: list[str]) -> list[dict[str, Any]]:
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(dict(json.loads(path.read_text())))
        except (ValueError, TypeError):
            notes.append(f"{path.name} is damaged and left out.")
    return found


def _quarantined(path: Path, notes: list[str]) -> list[QuarantinedMesh]:
    try:
        return read_quarantine(path)
    except ValueError as error:
        notes.append(f"{error}.")
        return []


def _rollouts(path: Path, notes: list[str]) -> list[KeptRollout]:
    try:
        return read_rows(path) if path.is_file() else []
    except RecipeError as error:
        notes.append(f"Its kept rollouts are not shown: {error}.")
        return []
