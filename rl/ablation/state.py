"""What each run of a matrix has reached, told from its files; refuses runs of another recipe."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from data.atomic import write_atomic
from data.typed_recipe import RecipeError, to_yaml
from rl.ablation.matrix import Run, Subject
from rl.child_runs.record import TrainingRecord, read_noted
from rl.evaluation_results import Evaluation, read_evaluation, write_evaluation
from rl.first_evaluation import decisive_settings, policy_digest
from rl.recipe import Recipe
from rl.run_files import AFTER_FILE, BEFORE_FILE, RECIPE_FILE

EVALUATION_FILE = "evaluation.json"
# What a run started from, and how many steps of it are finished.
MARK_FILE = "ablation.json"

Step = Literal["training", "evaluation"]


def check_unchanged(runs: Sequence[Run]) -> None:
    """Raise RecipeError if a run's folder holds one of another recipe or from another policy."""
    digests: dict[Subject, str] = {}
    for run in runs:
        record = record_of(run)
        if not (run.folder / RECIPE_FILE).is_file():
            continue
        key = record.changed_key()
        if key is not None:
            raise RecipeError(
                f"'variants.{run.variant}': {run.folder} holds a run with a different '{key}'; delete the "
                "folder, or choose another name or 'output_dir'"
            )
        digest = digests.get(run.before) or policy_digest(run.before.recipe.policy)
        digests[run.before] = digest
        if record.has_other_start(digest):
            raise RecipeError(
                f"'variants.{run.variant}': {run.folder} was trained from other weights than "
                f"{run.recipe.policy.path} now has; delete the folder, or choose another 'output_dir'"
            )


def record_of(run: Run) -> TrainingRecord:
    """What the run's folder says of its training."""
    return TrainingRecord(run.recipe, MARK_FILE)


def next_step(run: Run) -> Step | None:
    """What is left to do of a run, None if it is finished."""
    if not record_of(run).is_finished():
        return "training"
    return None if is_evaluated(run.after) else "evaluation"


def begin_training(run: Run) -> Path:
    """Write the recipe of the run, to be started, and what it starts from; return the recipe's path."""
    record_of(run).begin()
    for name in (AFTER_FILE, BEFORE_FILE):
        (run.folder / name).unlink(missing_ok=True)  # of a run that is now continued
    return _write_recipe(run.recipe, run.folder)


def begin_evaluation(subject: Subject) -> Path:
    """Write the recipe of an evaluation, to be started, and what it depends on; return the recipe's path."""
    subject.folder.mkdir(parents=True, exist_ok=True)
    (subject.folder / EVALUATION_FILE).unlink(missing_ok=True)
    write_atomic(subject.folder / MARK_FILE, json.dumps({"evaluated": _evaluated(subject)}).encode())
    return _write_recipe(subject.recipe, subject.folder)


def is_evaluated(subject: Subject) -> bool:
    """Whether there is an evaluation of these weights with these settings."""
    if not (subject.folder / EVALUATION_FILE).is_file():
        return False
    noted = read_noted(subject.folder / MARK_FILE, "delete it, and the same command evaluates again")
    return bool(noted) and noted.get("evaluated") == _evaluated(subject)


def _evaluated(subject: Subject) -> str:
    """SHA-256 over what an evaluation depends on, but for the content of mesh files."""
    recipe = subject.recipe
    known = {**decisive_settings(recipe), "data": asdict(recipe.data), "policy": policy_digest(recipe.policy)}
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()


def evaluation_of(subject: Subject) -> Evaluation:
    """The result of an evaluation that `is_evaluated`; RecipeError if its file is damaged."""
    path = subject.folder / EVALUATION_FILE
    found = read_evaluation(path)
    if found is None:
        raise RecipeError(f"{path} is damaged; delete it, and the same command evaluates again")
    return found


def write_before_and_after(run: Run) -> None:
    """Put the evaluations into the run's folder, as a run that evaluates itself leaves them."""
    for name, subject in ((BEFORE_FILE, run.before), (AFTER_FILE, run.after)):
        found = replace(evaluation_of(subject), policy=name.removesuffix(".json"))
        write_evaluation(found, run.folder / name)


def _write_recipe(recipe: Recipe, folder: Path) -> Path:
    path = folder / RECIPE_FILE
    write_atomic(path, to_yaml(recipe).encode())
    return path
