"""Supervision of reward workers: what each does since when, who is hung, which mesh is to blame. No Ray."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from rewards.deadlines import TaskKind, TaskTimes, WorkerLimits, quarantine_allowance
from rewards.quarantine import QuarantinedMesh

# A mesh is quarantined when it has stopped this many workers without being scored in between.
STRIKES = 2
# A suspect that waits to be alone on its worker keeps its place for this long after asking.
_PLACE_HELD_S = 5.0
# A worker that was killed and is still there is killed again after this long.
_KILL_AGAIN_S = 15.0

_DOING = {"prepare": "preparing", "decode": "decoding rigs of", "score": "scoring rigs of"}


class WorkerProcess(NamedTuple):
    """One process that a worker runs in; a restarted worker has another one."""

    node: str
    pid: int
    started: float


class Permit(NamedTuple):
    """The answer to a worker that wants to begin a task: go with a token, ask again later, or refused."""

    verdict: Literal["go", "later", "quarantined"]
    token: int = -1
    reason: str = ""


class Status(NamedTuple):
    """What the clients of the service need to know.

    restarts, hung: workers replaced, and those of them that hung, since the service started. quarantined:
    all meshes, earlier ones first. struck: keys of meshes that stopped a worker and have not been scored
    since, with how often. failure: why the run must stop. events: number of starts and ends of tasks and
    workers so far. running: number of tasks. messages: one line for each worker that was replaced.
    """

    restarts: int
    hung: int
    quarantined: tuple[QuarantinedMesh, ...]
    struck: dict[str, int]
    failure: str | None
    events: int
    running: int
    messages: tuple[str, ...]


@dataclass
class _Task:
    kind: TaskKind
    key: str
    mesh: str
    units: int
    began: float

    def doing(self) -> str:
        return f"{_DOING[self.kind]} '{self.mesh}'"


@dataclass
class _Worker:
    since: float
    process: WorkerProcess | None = None  # None: starting since `since`
    tasks: dict[int, _Task] = field(default_factory=dict)
    buried: set[WorkerProcess] = field(default_factory=set)
    condemned: list[int] | None = None  # tasks that are to blame for a worker that was killed
    killed_at: float | None = None
    verdict: str = ""
    next_alone: tuple[str, float] | None = None  # a suspect that waits for its turn, and when it asked


class Supervision:
    """Watches workers by what they report; thread-safe.

    A worker's process that is gone is counted as a restart. If it was working on one mesh, that mesh gets a
    strike; with several at once, each becomes a suspect, and has a worker for itself until it is cleared or
    gets its strikes. What waits in a queue is never blamed.

    Args:
        limits: deadlines and budgets.
        quarantined: meshes quarantined by an earlier run.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        limits: WorkerLimits,
        quarantined: Sequence[QuarantinedMesh] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits, self._clock, self._lock = limits, clock, threading.RLock()
        self._times = TaskTimes(limits)
        self._workers: dict[str, _Worker] = {}
        self._quarantined = {mesh.key: mesh for mesh in quarantined}
        self._strikes: dict[str, list[tuple[str, str]]] = defaultdict(list)
        self._suspects: dict[str, tuple[str, str]] = {}
        self._expected: set[str] = set()
        self._tokens = itertools.count()
        self._counts: Counter[str] = Counter()
        self._messages: list[str] = []
        self._failure: str | None = None

    def add_workers(self, names: Iterable[str]) -> None:
        """Watch these workers, which are starting."""
        with self._lock:
            self._workers |= {name: _Worker(self._clock()) for name in names}

    def expect(self, keys: Iterable[str]) -> None:
        """The meshes of the run, of which a share may be quarantined."""
        with self._lock:
            self._expected |= set(keys)
            self._check_quarantine()

    # ------------------------------------------------------------ what workers report

    def begin(
        self, name: str, process: WorkerProcess, kind: TaskKind, key: str, mesh: str, units: int
    ) -> Permit:
        """A worker wants to begin a task on mesh `key`: whether it may, and the token of its end."""
        with self._lock:
            self.alive(name, process)
            if key in self._quarantined:
                return Permit("quarantined", reason=self._quarantined[key].sentence())
            worker, now = self._workers[name], self._clock()
            if not self._may_begin(worker, key, now):
                return Permit("later")
            token = next(self._tokens)
            worker.tasks[token] = _Task(kind, key, mesh, units, now)
            self._counts["events"] += 1
            return Permit("go", token)

    def _may_begin(self, worker: _Worker, key: str, now: float) -> bool:
        """A suspect runs alone, and in turn: what asks after it waits."""
        running = {task.key for task in worker.tasks.values()}
        waiting = worker.next_alone
        if waiting is not None and now - waiting[1] > _PLACE_HELD_S:
            waiting = worker.next_alone = None
        if key in self._suspects:
            if waiting is not None and waiting[0] != key:
                return False
            if running:
                worker.next_alone = (key, now)
                return False
            worker.next_alone = None
            return True
        return waiting is None and not running & set(self._suspects)

    def end(self, name: str, process: WorkerProcess, token: int) -> None:
        """A worker has finished a task."""
        with self._lock:
            worker = self._workers[name]
            task = worker.tasks.pop(token, None) if process == worker.process else None
            if task is None:
                return  # of a process that was replaced
            self._counts["events"] += 1
            self._times.add(task.kind, task.units, self._clock() - task.began)
            self._suspects.pop(task.key, None)

    def alive(self, name: str, process: WorkerProcess) -> None:
        """A worker's process has answered."""
        with self._lock:
            worker = self._workers[name]
            if process == worker.process or process in worker.buried:
                return
            if worker.process is not None:
                self._bury(name, worker)
            self._workers[name].process = process
            self._counts["events"] += 1

    def gone(self, name: str, process: WorkerProcess | None) -> None:
        """A worker's process (None: one that has not answered yet) was found dead."""
        with self._lock:
            worker = self._workers[name]
            if process is not None and process == worker.process:
                self._bury(name, worker)

    def lost(self, name: str, reason: str) -> None:
        """A worker cannot be restarted."""
        with self._lock:
            self._fail(
                f"{name} cannot be restarted ({reason}); check the Ray logs and run the same command again "
                "to resume from the last checkpoint"
            )

    def scored(self, key: str) -> None:
        """A whole group of this mesh has been scored: its strikes are forgotten."""
        with self._lock:
            self._strikes.pop(key, None)

    # ------------------------------------------------------------ judgement

    def overdue(self, unanswered: dict[str, float]) -> list[str]:
        """Workers to kill now, because they missed a deadline.

        Args:
            unanswered: for workers that have not answered the last call, when it was sent. It counts for
                idle workers only: one that computes may be unable to answer.
        """
        with self._lock:
            now = self._clock()
            return [
                name for name, worker in self._workers.items() if self._judge(name, worker, unanswered, now)
            ]

    def _judge(self, name: str, worker: _Worker, unanswered: dict[str, float], now: float) -> bool:
        if worker.killed_at is not None:
            again = now - worker.killed_at > _KILL_AGAIN_S
            worker.killed_at = now if again else worker.killed_at
            return again
        limits = self._limits
        if worker.process is None:
            if now - worker.since <= limits.startup_timeout_s:
                return False
            self._condemn(worker, [], f"it did not start within {limits.startup_timeout_s:g} s", now)
            self._bury(name, worker)  # nothing else will: no process was seen
            return True
        late = {
            token: allowed
            for token, task in worker.tasks.items()
            if now - task.began > (allowed := self._times.deadline(task.kind, task.units))
        }
        if late:
            first = worker.tasks[min(late)]
            verdict = f"it hung {first.doing()}, after {late[min(late)]:.3g} s"
            self._condemn(worker, list(late), verdict, now)
        elif not worker.tasks and now - unanswered.get(name, now) > limits.min_deadline_s:
            self._condemn(worker, [], f"it hung while idle: no answer for {limits.min_deadline_s:g} s", now)
        else:
            return False
        return True

    def _condemn(self, worker: _Worker, tasks: list[int], verdict: str, now: float) -> None:
        worker.condemned, worker.verdict, worker.killed_at = tasks, verdict, now
        self._counts["hung"] += 1

    def _bury(self, name: str, worker: _Worker) -> None:
        """Account for a process that is gone, and expect the next one."""
        tasks = list(worker.tasks.values())
        if worker.condemned is not None:
            tasks = [worker.tasks[token] for token in worker.condemned if token in worker.tasks]
        reason = worker.verdict or (f"it died {tasks[0].doing()}" if tasks else "it died while idle")
        stamp = datetime.now(UTC).isoformat(timespec="seconds")
        if worker.process is not None:
            worker.buried.add(worker.process)
        self._workers[name] = _Worker(self._clock(), buried=worker.buried)
        self._counts["restarts"] += 1
        self._counts["events"] += 1
        self._messages.append(f"{name} is replaced: {reason}")
        blamed = {task.key: task for task in tasks}
        for key, task in blamed.items():
            own = worker.verdict if len(blamed) == 1 and worker.verdict else f"it died {task.doing()}"
            if len(blamed) > 1:
                self._suspects.setdefault(key, (stamp, f"{own}, with other meshes"))
                continue
            if (suspicion := self._suspects.pop(key, None)) is not None:
                self._strikes[key].append(suspicion)
            self._strikes[key].append((stamp, f"{name}: {own}"))
            if len(self._strikes[key]) >= STRIKES:
                self._quarantine(task)
        if self._counts["restarts"] > self._limits.max_restarts:
            self._fail(
                f"workers were replaced {self._counts['restarts']} times, more than 'workers.max_restarts' "
                f"({self._limits.max_restarts}) allows (the last, {name}: {reason}); check the nodes and the "
                "Ray logs, and run the same command again to resume from the last checkpoint"
            )

    def _quarantine(self, task: _Task) -> None:
        times, reasons = zip(*self._strikes.pop(task.key), strict=True)
        self._quarantined[task.key] = QuarantinedMesh(task.mesh, task.key, task.kind, reasons, times)
        self._check_quarantine()

    def _check_quarantine(self) -> None:
        found = [mesh for key, mesh in self._quarantined.items() if key in self._expected]
        allowed = quarantine_allowance(self._limits.max_quarantined, len(self._expected))
        if found and (len(found) > allowed or len(found) == len(self._expected)):
            names = ", ".join(mesh.name for mesh in found[:5]) + (", …" if len(found) > 5 else "")
            self._fail(
                f"{len(found)} of {len(self._expected)} meshes are quarantined ({names}), more than "
                f"'data.max_quarantined' ({self._limits.max_quarantined:g}) allows; quarantine.json has "
                "the reasons: remove or repair these meshes, or raise data.max_quarantined"
            )

    def _fail(self, sentence: str) -> None:
        self._failure = self._failure or sentence

    def process(self, name: str) -> WorkerProcess | None:
        """The process that a worker runs in; None while it starts."""
        with self._lock:
            return self._workers[name].process

    def status(self) -> Status:
        """The state of the service."""
        with self._lock:
            return Status(
                restarts=self._counts["restarts"],
                hung=self._counts["hung"],
                quarantined=tuple(self._quarantined.values()),
                struck={key: len(strikes) for key, strikes in self._strikes.items()},
                failure=self._failure,
                events=self._counts["events"],
                running=sum(len(worker.tasks) for worker in self._workers.values()),
                messages=tuple(self._messages),
            )
