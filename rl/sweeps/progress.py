"""The work on a sweep: which trials there are, which comes next, and what they have come to."""

from __future__ import annotations

import json

from data.atomic import write_atomic
from data.typed_recipe import RecipeError
from rl.child_runs.folder import LOG_FILE
from rl.child_runs.record import read_noted
from rl.child_runs.work import Command, Work
from rl.first_evaluation import policy_digest
from rl.run_directory import MAY_CHANGE
from rl.sweeps.search import check_bayes, fixed_points, propose, sample_points
from rl.sweeps.sweep_file import SweepRecipe
from rl.sweeps.table import ranked, result_cell, write_tables
from rl.sweeps.trials import (
    Point,
    Result,
    Trial,
    check_comparable,
    make_trial,
    result_of,
    shown_point,
    trial_id,
)

# The points that a Bayesian sweep has proposed, in their order.
PROPOSALS_FILE = "proposals.json"
# A trial may be resumed with other values of these; not with another evaluation, which would not compare.
_TRIAL_MAY_CHANGE = (*(key for key in MAY_CHANGE if key != "eval"), "eval.best_by", "eval.sheets")


class TrialWork:
    """The work on one trial: train it, and read its metric."""

    def __init__(self, trial: Trial, sweep: SweepRecipe) -> None:
        self.trial, self.sweep = trial, sweep
        self.name, self.log = trial.id, trial.folder / LOG_FILE

    def begin(self) -> Command | None:
        """The training command; None if the trial is finished."""
        record = self.trial.record
        if record.is_finished():
            return None
        record.begin()
        names = {"WANDB_PROJECT": self.sweep.project, "WANDB_ENTITY": self.sweep.entity}
        return Command(
            f"training {shown_point(self.trial.point)}",
            self.trial.arguments,
            record.wanted,
            record.steps_done,
            {"WANDB_RUN_ID": self.trial.id, **{name: own for name, own in names.items() if own}},
        )

    def end(self, command: Command) -> str | None:
        """Why a command that ended well left no result, None if it did."""
        if (
            result_of(self.trial, self.sweep) is None
            and self.trial.record.steps_done() >= self.trial.record.wanted
        ):
            return f"it left no value of {self.sweep.metric.name}"
        return self.trial.record.end()

    def finish(self) -> str:
        """The metric."""
        found = result_of(self.trial, self.sweep)
        if found is None:
            raise RecipeError(
                f"{self.trial.folder} is a finished trial without {self.sweep.metric.name}; delete it, and "
                "the same command trains it again"
            )
        return f"{self.sweep.metric.name} {result_cell(self.sweep, found)}"


class Sweep:
    """The trials of a sweep so far, and which come next."""

    def __init__(self, recipe: SweepRecipe) -> None:
        self.recipe = recipe
        self.failures: dict[str, str] = {}
        self.trials: dict[str, Trial] = {}
        self._digests: dict[tuple[str, str | None], str] = {}
        self._spent = False  # the Bayesian search has nothing new to propose
        if recipe.method == "bayes":
            check_bayes()
            samples = [make_trial(recipe, point) for point in sample_points(recipe, 4)]
            self.folder, self._first = samples[0].sweep_folder, samples[0]
            for sample in samples:
                check_comparable(self._first, sample, recipe)
        else:
            points = fixed_points(recipe)
            self._first = make_trial(recipe, points[0])
            self.folder = self._first.sweep_folder
            for point in points:
                self._add(point)
        self._waiting = iter(list(self.trials.values()))

    @property
    def count(self) -> int:
        """How many trials there may be."""
        return self.recipe.run_cap or 0 if self.recipe.method == "bayes" else len(self.trials)

    def check_unchanged(self) -> None:
        """Raise RecipeError if a trial's directory holds another run; read a Bayesian sweep's proposals."""
        if self.recipe.method == "bayes":
            self._read_proposals()
        for trial in self.trials.values():
            if not trial.folder.is_dir():
                continue
            key = trial.record.changed_key(_TRIAL_MAY_CHANGE)
            if key is not None:
                raise RecipeError(
                    f"{trial.folder} holds a run with a different '{key}'; delete the folder, or choose "
                    "another 'output_dir' in 'command'"
                )
            policy = trial.recipe.policy
            start = (policy.path, policy.skin_vae)
            if start not in self._digests:
                self._digests[start] = policy_digest(policy)
            if trial.record.has_other_start(self._digests[start]):
                raise RecipeError(
                    f"{trial.folder} was trained from other weights than {policy.path} now has; delete the "
                    "folder, or choose another 'output_dir' in 'command'"
                )

    def results(self) -> dict[Trial, Result]:
        """The results of the finished trials."""
        found = {
            trial: result_of(trial, self.recipe)
            for trial in self.trials.values()
            if trial.record.is_finished()
        }
        return {trial: result for trial, result in found.items() if result is not None}

    def next_work(self) -> Work | None:
        """The trial to begin next; None if there is none, or one has reached the target."""
        metric = self.recipe.metric
        if metric.target is not None and any(map(metric.reaches_target, self._values())):
            return None
        trial = next(self._waiting, None)
        if trial is None and self.recipe.method == "bayes":
            trial = self._proposed()
        return None if trial is None else TrialWork(trial, self.recipe)

    def write(self) -> None:
        """Write the table of what is finished so far."""
        results = self.results()
        missing = {
            trial: self.failures.get(trial.id, "not finished")
            for trial in self.trials.values()
            if trial not in results
        }
        write_tables(self.recipe, ranked(results, self.recipe), missing, self.folder)

    def _proposed(self) -> Trial | None:
        """The trial that the Bayesian search proposes, noted in the directory; None if there is none."""
        if self._spent or len(self.trials) >= self.count:
            return None
        finished: dict[str, float | None] = {trial.id: found.value for trial, found in self.results().items()}
        finished |= dict.fromkeys(self.failures)
        known = {trial.id: trial.point for trial in self.trials.values()}
        point = propose(self.recipe, finished, known)
        if point is None:
            self._spent = True
            return None
        trial = self._add(point)
        points = [list(each.point.items()) for each in self.trials.values()]
        noted = {"parameters": self.recipe.parameters, "points": points}
        write_atomic(self.folder / PROPOSALS_FILE, json.dumps(noted).encode())
        return trial

    def _read_proposals(self) -> None:
        path = self.folder / PROPOSALS_FILE
        noted = read_noted(path, "restore it, or choose another 'output_dir' in 'command'")
        if not noted:
            return
        if noted["parameters"] != self.recipe.parameters:
            raise RecipeError(
                f"{path} is of a sweep with other 'parameters'; delete it, or choose another 'output_dir' in "
                "'command'"
            )
        for point in noted["points"][: self.recipe.run_cap]:
            self._add({tuple(name): value for name, value in point})
        self._waiting = iter(list(self.trials.values()))

    def _values(self) -> list[float]:
        return [found.value for found in self.results().values()]

    def _add(self, point: Point) -> Trial:
        trial = make_trial(self.recipe, point)
        if trial.sweep_folder != self.folder:
            raise RecipeError(
                f"'output_dir' of the trials is in {self.folder} and in {trial.sweep_folder}; let them "
                "differ after $WANDB_RUN_ID only"
            )
        check_comparable(self._first, trial, self.recipe)
        return self.trials.setdefault(trial_id(point), trial)
