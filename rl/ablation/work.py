"""Runs a matrix: trains and evaluates what is not finished, some at once, and stops on a signal."""

from __future__ import annotations

import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from data.command_line import RunFailedError
from data.stop_signals import StopRun, StopSignals
from data.typed_recipe import RecipeError
from rl.ablation import state
from rl.ablation.child import Child
from rl.ablation.matrix import AblationRecipe, Run, Subject, starts_of
from rl.evaluation_results import compare
from rl.evaluation_tables import change_cells

# Modules that the children run.
TRAIN, LAUNCH, EVALUATE, REPORT = "rl.train_grpo", "rl.launch", "rl.evaluate", "rl.report"
LOG_FILE = "log.txt"
_POLL_SECONDS = 0.25


@dataclass(eq=False)
class _Going:
    """A run that is worked on: its step, its process, its place in the matrix and its bar."""

    run: Run
    step: state.Step
    child: Child
    place: str
    slot: int
    bar: tqdm


def run_matrix(
    ablation: AblationRecipe,
    runs: Sequence[Run],
    signals: StopSignals,
    threads: int | None,
    failures: dict[Run, str],
    on_finish: Callable[[], object],
) -> None:
    """Bring all wanted runs to their end; add those that fail to `failures`, each with its reason.

    A run that fails does not end the others. `on_finish` is called after each run that is finished now.
    threads: OMP_NUM_THREADS of each child, None for this process's.

    Raises:
        StopRun: a signal; the children have finished their step and saved it.
        RecipeError, RunFailedError: a policy before training cannot be evaluated.
    """
    with signals.finishing_steps():
        for subject in starts_of(runs):
            _evaluate_start(subject, signals, threads)
        _Matrix(ablation, runs, signals, threads, failures, on_finish).work()


class _Matrix:
    """The runs that wait, those that are worked on, and those that failed."""

    def __init__(
        self,
        ablation: AblationRecipe,
        runs: Sequence[Run],
        signals: StopSignals,
        threads: int | None,
        failures: dict[Run, str],
        on_finish: Callable[[], object],
    ) -> None:
        self.ablation, self.signals, self.threads = ablation, signals, threads
        self.failures, self.on_finish = failures, on_finish
        wanted = [run for run in runs if run.wanted]
        self.places = {run: f"{place}/{len(wanted)}" for place, run in enumerate(wanted, start=1)}
        self.waiting = deque(wanted)
        self.going: list[_Going] = []

    def work(self) -> None:
        """Start, watch and end children until nothing is left or a signal asks to stop."""
        stopped = False
        try:
            while self.going or (self.waiting and not stopped):
                if self.signals.requested and not stopped:
                    stopped = True
                    self._send(self.signals.requested)
                while self.waiting and not stopped and len(self.going) < self.ablation.jobs:
                    self._start(self.waiting.popleft())
                time.sleep(_POLL_SECONDS)
                for going in list(self.going):
                    self._watch(going, stopped)
        except StopRun:  # a second signal: at once
            self._send(self.signals.requested)
            raise
        finally:
            for going in self.going:
                going.bar.close()
                _end(going.child)

    def _send(self, signum: int) -> None:
        for going in self.going:
            going.child.send(signum)

    def _start(self, run: Run) -> None:
        step = state.next_step(run)
        if step is None:
            _tell(f"{self.places[run]} {run.name}: finished earlier")
            state.write_before_and_after(run)
            return
        if step == "train":
            recipe = state.begin_training(run)
            options = self.ablation.launch
            command = [LAUNCH, *options, str(recipe)] if options else [TRAIN, str(recipe)]
            _tell(f"{self.places[run]} {run.name}: training, log in {run.folder / LOG_FILE}")
        else:
            command = [EVALUATE, str(state.begin_evaluation(run.after))]
        slots = {going.slot for going in self.going}
        slot = next(number for number in range(len(slots) + 1) if number not in slots)
        bar = tqdm(
            total=run.recipe.train["max_steps"],
            initial=state.steps_done(run),
            desc=f"{self.places[run]} {run.name}{': evaluate' if step == 'evaluate' else ''}",
            unit="step",
            file=sys.stderr,
            position=slot,
            leave=False,
            disable=None,
        )
        child = Child(command, run.folder / LOG_FILE, self.threads)
        self.going.append(_Going(run, step, child, self.places[run], slot, bar))

    def _watch(self, going: _Going, stopped: bool) -> None:
        """Move the bar of a child, or deal with its end."""
        run, code = going.run, going.child.poll()
        if code is None:
            if going.step == "train":
                going.bar.update(state.steps_done(run) - going.bar.n)
            return
        self.going.remove(going)
        going.bar.close()
        problem = going.child.reason(code) if code else None
        if problem is None and going.step == "train":
            problem = state.end_training(run)
        elif problem is None and not state.is_evaluated(run.after):
            problem = "the evaluation left no result"
        if problem is not None:
            if not stopped:
                self.failures[run] = f"{going.step}: {problem}"
                _tell(f"{going.place} {run.name}: failed, {going.step}: {problem}")
            return
        if state.next_step(run) is not None:
            self.waiting.appendleft(run)
            return
        state.write_before_and_after(run)
        self.on_finish()
        change = compare(state.evaluation_of(run.before), state.evaluation_of(run.after))["total"]
        _tell(f"{going.place} {run.name}: total {change_cells('total', change)[0]}")


def write_page(folders: Sequence[Path], page: Path, log: Path, signals: StopSignals) -> None:
    """Write the page of these runs, in a child; raises RunFailedError, StopRun."""
    child = Child([REPORT, *map(str, folders), "--out", str(page)], log, None)
    if code := _watched(child, signals):
        raise RunFailedError(f"{page} could not be written: {child.reason(code)}")


def _evaluate_start(subject: Subject, signals: StopSignals, threads: int | None) -> None:
    """Evaluate a policy before training, unless that is done; a failure here would be that of every run."""
    if state.is_evaluated(subject):
        return
    _tell(f"evaluating {subject.recipe.policy.path} before training, log in {subject.folder / LOG_FILE}")
    child = Child([EVALUATE, str(state.begin_evaluation(subject))], subject.folder / LOG_FILE, threads)
    if code := _watched(child, signals):
        problem = f"{subject.recipe.policy.path} cannot be evaluated: {child.reason(code)}"
        raise RecipeError(problem) if code == 2 else RunFailedError(problem)


def _watched(child: Child, signals: StopSignals) -> int:
    """The exit code of a child, once it has ended; after a signal, StopRun."""
    try:
        while (code := child.poll()) is None:
            if signals.requested:
                raise StopRun(signals.requested)
            time.sleep(_POLL_SECONDS)
        return code
    finally:
        _end(child)


def _end(child: Child) -> None:
    """Make sure that a child has ended, as after an error of this process."""
    if child.poll() is None:
        child.send(signal.SIGTERM)
        child.wait()


def _tell(line: str) -> None:
    tqdm.write(f"ablation {line}", file=sys.stderr)
