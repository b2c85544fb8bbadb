"""Deadlines of reward workers' tasks: limits from the recipe, and times that follow those observed."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass
from typing import Literal

TaskKind = Literal["prepare", "decode", "score"]

# A deadline is this many times what the slowest task of its kind took for the same amount of work.
_FACTOR = 10.0
# Tasks of each kind whose times are kept.
_REMEMBERED = 1000


@dataclass(frozen=True)
class WorkerLimits:
    """What the reward service tolerates; the recipe's `workers` section documents the keys.

    Attributes:
        timeout_s: longest deadline of a task, and the deadline of the first tasks; seconds.
        min_deadline_s: shortest deadline of a task, and time within which an idle worker must answer.
        startup_timeout_s: time in which a worker must start or restart.
        retries: how often a group is scored again after its own mesh stopped a worker, or after `timeout_s`
            in which no worker did anything.
        max_restarts: replaced workers, of all kinds together, after which the run stops.
        max_quarantined: quarantined meshes after which the run stops: a share of the meshes below 1 (at least
            one mesh unless 0), else a number.
    """

    timeout_s: float = 300.0
    min_deadline_s: float = 30.0
    startup_timeout_s: float = 300.0
    retries: int = 2
    max_restarts: int = 20
    max_quarantined: float = 0.1


class TaskTimes:
    """Times of finished tasks per unit of work, and the deadlines that follow from them."""

    def __init__(self, limits: WorkerLimits) -> None:
        self._limits = limits
        self._per_unit: dict[TaskKind, deque[float]] = defaultdict(lambda: deque(maxlen=_REMEMBERED))

    def add(self, kind: TaskKind, units: int, seconds: float) -> None:
        """Record a finished task of `units` units of work."""
        self._per_unit[kind].append(seconds / max(units, 1))

    def deadline(self, kind: TaskKind, units: int) -> float:
        """Seconds that a task may take, see `deadline`."""
        times = self._per_unit[kind]
        return deadline(units, max(times) if times else None, self._limits)


def deadline(units: int, slowest_per_unit: float | None, limits: WorkerLimits) -> float:
    """Seconds that a task of `units` units of work may take.

    Ten times what the slowest task took per unit, but at least `min_deadline_s` and at most `timeout_s`.
    `timeout_s` itself while no task of the kind has finished (None).
    """
    if slowest_per_unit is None:
        return limits.timeout_s
    expected = _FACTOR * slowest_per_unit * max(units, 1)
    return min(max(expected, limits.min_deadline_s), limits.timeout_s)


def quarantine_allowance(limit: float, meshes: int) -> int:
    """How many of `meshes` meshes may be quarantined: `limit` is a share below 1, else a number.

    A positive share allows at least one mesh.
    """
    return int(min(limit, meshes)) if limit >= 1 or limit == 0 else max(1, int(limit * meshes))
