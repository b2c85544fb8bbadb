"""Brings runs to their end in child processes: some at once, with bars, logs, failures and signals."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from data.stop_signals import StopRun, StopSignals
from rl.child_runs.child import Child
from rl.preflight.threads import usable_cores

POLL_SECONDS = 0.25


@dataclass(frozen=True, eq=False)
class Command:
    """`python -m` with `arguments`, which does what `doing` says in `total` steps; `done()` of them are."""

    doing: str
    arguments: Sequence[str]
    total: int
    done: Callable[[], int]
    environment: Mapping[str, str] = field(default_factory=dict)


class Work(Protocol):
    """A run to bring to its end by commands, one after the other."""

    @property
    def name(self) -> str:
        """The run's name, for messages."""

    @property
    def log(self) -> Path:
        """What its commands print is added to this file."""

    def begin(self) -> Command | None:
        """The next command, with the files that it needs; None if nothing is left."""

    def end(self, command: Command) -> str | None:
        """Note that a command ended with 0; why its work is not done all the same, None if it is."""

    def finish(self) -> str:
        """Nothing is left: do what remains in this process, and say what came out."""


@dataclass(eq=False)
class _Going:
    """Work that is going on: its command, its process, its place among all and its bar."""

    work: Work
    command: Command
    child: Child
    slot: int
    bar: tqdm


class Crew:
    """Works through runs, `jobs` at once. A run that fails does not end the others.

    Args:
        title: begins every line, such as `ablation`.
        next_work: the run to begin next, None if there is none; asked again after runs have ended.
        count: how many runs there may be, for messages.
        jobs: children at once, each with its share of the cores.
        failures: gets the name of each run that fails, with the reason.
        on_change: called after each run that has finished or failed now.
    """

    def __init__(
        self,
        title: str,
        next_work: Callable[[], Work | None],
        count: int,
        jobs: int,
        signals: StopSignals,
        failures: dict[str, str],
        on_change: Callable[[], object],
    ) -> None:
        self.title, self.next_work, self.count, self.jobs = title, next_work, count, jobs
        self.signals, self.failures, self.on_change = signals, failures, on_change
        self._environment = share_of_cores(jobs)
        self._places: dict[Work, str] = {}
        self._begun: deque[Work] = deque()  # runs whose next command waits
        self._going: list[_Going] = []

    def work(self) -> None:
        """Start, watch and end children until nothing is left or a signal asks to stop.

        Within `signals.finishing_steps()`. After a signal, running children get it, finish their step and
        save; a second one ends this at once with StopRun.
        """
        stopped = False
        try:
            while True:
                if self.signals.requested and not stopped:
                    stopped = True
                    self._send(self.signals.requested)
                while not stopped and len(self._going) < self.jobs and (work := self._next()) is not None:
                    self._start(work)
                if not self._going:
                    return
                time.sleep(POLL_SECONDS)
                for going in list(self._going):
                    self._watch(going, stopped)
        except StopRun:
            self._send(self.signals.requested)
            raise
        finally:
            for going in self._going:
                going.bar.close()
                end(going.child)

    def _next(self) -> Work | None:
        return self._begun.popleft() if self._begun else self.next_work()

    def _send(self, signum: int) -> None:
        for going in self._going:
            going.child.send(signum)

    def _start(self, work: Work) -> None:
        first = work not in self._places
        place = self._places.setdefault(work, f"{len(self._places) + 1}/{self.count}")
        command = work.begin()
        if command is None:
            said = work.finish()
            tell(f"{self.title} {place} {work.name}: {f'finished earlier, {said}' if first else said}")
            if not first:
                self.on_change()
            return
        if first:
            tell(f"{self.title} {place} {work.name}: {command.doing}, log in {work.log}")
        slots = {going.slot for going in self._going}
        slot = next(number for number in range(len(slots) + 1) if number not in slots)
        bar = tqdm(
            total=command.total,
            initial=command.done(),
            desc=f"{place} {work.name}: {command.doing}",
            unit="step",
            file=sys.stderr,
            position=slot,
            leave=False,
            disable=None,
        )
        child = Child(command.arguments, work.log, {**self._environment, **command.environment})
        self._going.append(_Going(work, command, child, slot, bar))

    def _watch(self, going: _Going, stopped: bool) -> None:
        """Move the bar of a child, or deal with its end."""
        work, command, code = going.work, going.command, going.child.poll()
        if code is None:
            going.bar.update(command.done() - going.bar.n)
            return
        self._going.remove(going)
        going.bar.close()
        problem = going.child.reason(code) if code else work.end(command)
        if problem is None:
            self._begun.append(work)
        elif not stopped:
            self.failures[work.name] = f"{command.doing}: {problem}"
            tell(f"{self.title} {self._places[work]} {work.name}: failed, {command.doing}: {problem}")
            self.on_change()


def share_of_cores(jobs: int) -> dict[str, str]:
    """OMP_NUM_THREADS for each of several children at once, unless it is set."""
    if jobs == 1 or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, usable_cores() // jobs))}


def watched(child: Child, signals: StopSignals) -> int:
    """The exit code of a child, once it has ended; after a signal, StopRun."""
    try:
        while (code := child.poll()) is None:
            if signals.requested:
                raise StopRun(signals.requested)
            time.sleep(POLL_SECONDS)
        return code
    finally:
        end(child)


def end(child: Child) -> None:
    """Make sure that a child has ended, as after an error of this process."""
    if child.poll() is None:
        child.send(signal.SIGTERM)
        child.wait()


def tell(line: str) -> None:
    """Print a line above the bars."""
    tqdm.write(line, file=sys.stderr)
