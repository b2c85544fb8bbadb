"""The work on a matrix: what its children run, the evaluation before training, and the page at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from data.command_line import RunFailedError
from data.stop_signals import StopSignals
from data.typed_recipe import RecipeError
from rl.ablation import state
from rl.ablation.matrix import AblationRecipe, Run, Subject, starts_of
from rl.child_runs.child import Child
from rl.child_runs.folder import LOG_FILE
from rl.child_runs.work import Command, Crew, share_of_cores, tell, watched
from rl.evaluation_results import compare
from rl.evaluation_tables import change_cells

# Modules that the children run.
TRAIN, LAUNCH, EVALUATE, REPORT = "rl.train_grpo", "rl.launch", "rl.evaluate", "rl.report"


class RunWork:
    """The work on one run: train it, then evaluate it as the base recipe says."""

    def __init__(self, run: Run, launch: Sequence[str]) -> None:
        self.run, self.launch = run, launch
        self.name, self.log = run.name, run.folder / LOG_FILE

    def begin(self) -> Command | None:
        """The next command, with its recipe written."""
        step, run = state.next_step(self.run), self.run
        if step is None:
            return None
        record = state.record_of(run)
        if step == "training":
            recipe = str(state.begin_training(run))
            arguments = [LAUNCH, *self.launch, recipe] if self.launch else [TRAIN, recipe]
        else:
            arguments = [EVALUATE, str(state.begin_evaluation(run.after))]
        return Command(step, arguments, record.wanted, record.steps_done)

    def end(self, command: Command) -> str | None:
        """Why a command that ended well did not do its work, None if it did."""
        if command.doing == "training":
            return state.record_of(self.run).end()
        return None if state.is_evaluated(self.run.after) else "it left no result"

    def finish(self) -> str:
        """Put both evaluations into the run's folder; the change of the total."""
        state.write_before_and_after(self.run)
        change = compare(state.evaluation_of(self.run.before), state.evaluation_of(self.run.after))["total"]
        return f"total {change_cells('total', change)[0]}"


def run_matrix(
    ablation: AblationRecipe,
    runs: Sequence[Run],
    signals: StopSignals,
    failures: dict[str, str],
    on_change: Callable[[], object],
) -> None:
    """Bring all wanted runs to their end; add the names of those that fail to `failures`, with the reason.

    A run that fails does not end the others. `on_change` is called after each that has finished or failed.

    Raises:
        StopRun: a signal; the children have finished their step and saved it.
        RecipeError, RunFailedError: a policy before training cannot be evaluated.
    """
    wanted = [RunWork(run, ablation.launch) for run in runs if run.wanted]
    left = iter(wanted)
    with signals.finishing_steps():
        for subject in starts_of(runs):
            _evaluate_start(subject, signals, ablation.jobs)
        Crew(
            "ablation", lambda: next(left, None), len(wanted), ablation.jobs, signals, failures, on_change
        ).work()


def write_page(folders: Sequence[Path], page: Path, log: Path, signals: StopSignals) -> None:
    """Write the page of these runs, in a child; raises RunFailedError, StopRun."""
    child = Child([REPORT, *map(str, folders), "--out", str(page)], log, {})
    if code := watched(child, signals):
        raise RunFailedError(f"{page} could not be written: {child.reason(code)}")


def _evaluate_start(subject: Subject, signals: StopSignals, jobs: int) -> None:
    """Evaluate a policy before training, unless that is done; a failure here would be that of every run."""
    if state.is_evaluated(subject):
        return
    log = subject.folder / LOG_FILE
    tell(f"ablation evaluating {subject.recipe.policy.path} before training, log in {log}")
    child = Child([EVALUATE, str(state.begin_evaluation(subject))], log, share_of_cores(jobs))
    if code := watched(child, signals):
        problem = f"{subject.recipe.policy.path} cannot be evaluated: {child.reason(code)}"
        raise RecipeError(problem) if code == 2 else RunFailedError(problem)
