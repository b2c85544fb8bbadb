"""A trial of a sweep: its id, its directory and its result; whether the results of trials compare."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.typed_recipe import RecipeError, to_mapping
from rl.child_runs.record import TrainingRecord
from rl.evaluation_results import measure_of, read_evaluation
from rl.evaluation_tables import is_metric
from rl.metric_lines import read_metric_lines
from rl.recipe import Recipe
from rl.recipe import load_recipe as load_grpo_recipe
from rl.recipe.best_by import check_measure
from rl.run_directory import first_difference
from rl.run_files import AFTER_FILE, METRICS_FILE
from rl.sweeps.parameters import nested
from rl.sweeps.sweep_file import AFTER, DURING, SweepRecipe
from rl.sweeps.training_command import expand, recipe_of

# What a trial started from and has finished.
MARK_FILE = "trial.json"

# The values of a trial's parameters, by their path.
Point = Mapping[tuple[str, ...], Any]


@dataclass(frozen=True, eq=False)
class Trial:
    """One point of a sweep: `arguments` of `python -m` train it as `recipe` says.

    sweep_folder: what the directories of all trials have in common.
    """

    id: str
    point: Point
    arguments: Sequence[str]
    recipe: Recipe
    sweep_folder: Path

    @property
    def folder(self) -> Path:
        """Its output directory."""
        return Path(self.recipe.output_dir)

    @property
    def record(self) -> TrainingRecord:
        """What its folder says of its training."""
        return TrainingRecord(self.recipe, MARK_FILE)


@dataclass(frozen=True)
class Result:
    """The held-out measure of a trial: mean and standard error over meshes."""

    value: float
    standard_error: float


def trial_id(point: Point) -> str:
    """Eight characters that depend on the parameters' values alone: the same trial, the same directory."""
    text = json.dumps(nested(point), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def make_trial(sweep: SweepRecipe, point: Point) -> Trial:
    """The trial at a point, its recipe checked; raises RecipeError, which names the trial's values."""
    name = trial_id(point)
    arguments = expand(sweep, nested(point))
    with _environment(WANDB_RUN_ID=name):
        path, overrides = recipe_of(arguments)
        try:
            recipe = load_grpo_recipe(path, overrides)
        except RecipeError as error:
            raise RecipeError(f"trial {shown_point(point)}: {error}") from error
    parts = Path(recipe.output_dir).parts
    own = next((place for place, part in enumerate(parts) if name in part), None)
    if own is None:
        raise RecipeError(
            f"'command': 'output_dir' {recipe.output_dir} would be that of every trial; put "
            f"'output_dir={recipe.output_dir}/$WANDB_RUN_ID' into it"
        )
    if not recipe.resume:
        raise RecipeError("'command': 'resume' must be true, so that interrupted trials go on; remove it")
    _check_metric(sweep, recipe)
    return Trial(name, point, arguments, recipe, Path(*parts[:own]))


def shown_point(point: Point) -> str:
    """Values for a message, such as `train.beta=0.1 train.num_generations=8`."""
    return " ".join(f"{'.'.join(path)}={value}" for path, value in point.items())


def check_comparable(first: Trial, other: Trial, sweep: SweepRecipe) -> None:
    """Raise RecipeError if the values of the metric of two trials do not compare."""
    name, measure = sweep.metric.name, sweep.metric.measure.removesuffix("_valid")
    free = ["rewards.credit", "eval.best_by", "eval.sheets", "data.train_count", "data.max_quarantined"]
    free += (
        ["eval.every"]
        if name.startswith(DURING)
        else ["eval.every", "eval.every_samples", "eval.every_meshes"]
    )
    if first.recipe.data.eval_meshes is not None:
        free.append("data.meshes")
    if is_metric(measure) or measure == "valid":
        free += ["rewards", "deformation"]
    elif measure != "total":
        free += [f"rewards.{reward}.weight" for reward in first.recipe.rewards.weights]
    key = first_difference(_evaluated(first.recipe), _evaluated(other.recipe), free)
    if key is None:
        return
    advice = f"use a measure against ground truth, such as {DURING}unirig_j2j"
    if measure == "total" and key.endswith(".weight"):
        raise RecipeError(
            f"'metric.name': the total is weighted by '{key}', which the sweep changes, so totals of trials "
            f"do not compare; {advice}, or one reward"
        )
    if key.startswith(("rewards.", "deformation.")):
        raise RecipeError(
            f"'metric.name': {name} depends on '{key}', which the sweep changes, so its values do not "
            f"compare; {advice}"
        )
    raise RecipeError(
        f"'parameters': trials differ in '{key}', which changes the evaluation, and all must be evaluated "
        "alike; remove it"
    )


def result_of(trial: Trial, sweep: SweepRecipe) -> Result | None:
    """The trial's metric, of the policy after its last step; None if it has no value."""
    measure = sweep.metric.measure
    if sweep.metric.name.startswith(AFTER):
        path = trial.folder / AFTER_FILE
        evaluation = read_evaluation(path) if path.is_file() else None
        mean, error = ({}, {}) if evaluation is None else (evaluation.mean, evaluation.standard_error)
        found = [(mean.get(measure), error.get(measure))]
    else:
        found = [
            (line.get(f"{DURING}{measure}"), line.get(f"{DURING}se/{measure}"))
            for line in read_metric_lines(trial.folder / METRICS_FILE)[0]
            if line["step"] == trial.record.wanted
        ]
    for value, error_of_it in found:
        if value is not None and error_of_it is not None and math.isfinite(value):
            return Result(value, error_of_it)
    return None


def _evaluated(recipe: Recipe) -> dict[str, Any]:
    """What an evaluation of this recipe depends on, besides the policy."""
    values = to_mapping(recipe)
    return {
        **{name: values[name] for name in ("data", "eval", "rewards", "deformation", "rollout")},
        "policy": {"grammar": values["policy"]["grammar"]},
        "train": {"max_completion_length": values["train"]["max_completion_length"]},
        "workers": {"decoder_dtype": values["workers"]["decoder_dtype"]},
    }


def _check_metric(sweep: SweepRecipe, recipe: Recipe) -> None:
    """Raise RecipeError if trials will not have the metric, or its goal is the wrong way round."""
    metric = sweep.metric
    check_measure(metric.measure, recipe, "metric.name")
    right = "minimize" if measure_of(metric.measure).lower else "maximize"
    if metric.goal != right:
        raise RecipeError(f"'metric.goal' is {metric.goal}, but {right} fits {metric.measure}; set it")
    if metric.name.startswith(DURING) and not recipe.eval.every:
        raise RecipeError(
            f"'metric.name' is {metric.name}, but trials do not evaluate while they train; put eval.every=10 "
            "into 'command', or use after/…"
        )
    if metric.name.startswith(AFTER) and not recipe.eval.before_and_after:
        raise RecipeError(
            f"'metric.name' is {metric.name}, but 'eval.before_and_after' is false; set it to true, or use "
            "eval/…"
        )
    rewards = {*recipe.rewards.weights, "total", "valid"}
    if not recipe.eval.metrics and metric.measure.removesuffix("_valid") not in rewards:
        raise RecipeError(f"'metric.name' is {metric.name}, but 'eval.metrics' is false; set it to true")


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Environment variables for the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
