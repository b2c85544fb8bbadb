"""Work in progress at the Ray workers: a submitted group, and when failed work is done again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import ray
from ray.exceptions import RayError

from rewards.custom import CustomRewardError
from rewards.deadlines import WorkerLimits
from rewards.errors import MeshQuarantinedError
from rewards.quarantine import QuarantinedMesh
from rewards.ray_actors import StoredMesh, even_slices
from rewards.ray_connection import is_system_failure, reason_of, root_cause
from rewards.ray_watch import ServiceWatch
from rewards.worker import UNSCORED, GroupScore, RolloutRig, merge_invalid


class QuietError(RuntimeError):
    """No worker did anything for too long."""


class Workers(Protocol):
    """What work in progress needs of `RayRewardService`, which documents it."""

    limits: WorkerLimits

    @property
    def watch(self) -> ServiceWatch: ...

    @property
    def scorers(self) -> int: ...

    def start(
        self, mesh: StoredMesh, parts: Sequence[list[RolloutRig]], wanted: Sequence[int], pose_seed: int
    ) -> tuple[dict[int, Any], list[Any]]: ...

    def wait(self, references: Sequence[Any]) -> None: ...

    def recover(self) -> None: ...

    def forget_strikes(self, mesh: StoredMesh) -> None: ...


class Attempts:
    """The attempts at one piece of work on a mesh.

    An attempt that failed because another mesh, or nobody, stopped a worker is repeated as often as
    `max_restarts` allows. One that failed by its own mesh's doing, or for which no worker did anything, is
    repeated `retries` times, or until the mesh is quarantined.
    """

    def __init__(self, service: Workers, key: str) -> None:
        self._service, self._key = service, key
        self._own_failures = 0
        self.values: dict[int, Any] = {}
        self.begin()

    def begin(self) -> None:
        """Another attempt begins."""
        status = self._service.watch.status
        self._restarts, self._strikes = status.restarts, status.struck.get(self._key, 0)

    @property
    def quarantined(self) -> QuarantinedMesh | None:
        """The mesh's entry if it is quarantined."""
        listed = self._service.watch.status.quarantined
        return next((mesh for mesh in listed if mesh.key == self._key), None)

    @property
    def exhausted(self) -> bool:
        """Whether the work must not be attempted again."""
        return self._own_failures > self._service.limits.retries

    def outcome(self, references: dict[int, Any], behind: Sequence[Any] = ()) -> str | None:
        """Wait for the results of an attempt and keep them in `values`, by place.

        Args:
            references: to the results, by place.
            behind: references to what they depend on.

        Returns:
            None, or why some are missing; all workers have then recovered.

        Raises:
            RayTaskError: an application error, which a retry would hide.
            CustomRewardError: a user's reward function failed.
            RayUnavailableError: the run must stop.
        """
        failure = None
        try:
            self._service.wait(list(references.values()))
        except QuietError as error:
            # Tasks still queued must not delay the next attempt. Those that run finish: cancelling their own
            # calls as well would lose the report of their end, and the worker would be taken for hung.
            for reference in (*references.values(), *behind):
                ray.cancel(reference, recursive=False)
            self._own_failures += 1
            return str(error)
        for place, reference in references.items():
            try:
                self.values[place] = ray.get(reference)
            except RayError as error:
                cause = root_cause(error)
                if isinstance(cause, MeshQuarantinedError):
                    failure = str(cause)
                elif isinstance(cause, CustomRewardError):
                    raise CustomRewardError(str(cause)) from error
                elif is_system_failure(error):
                    failure = reason_of(error)
                else:
                    raise
        if failure is not None:
            self._service.recover()
            status = self._service.watch.status
            struck = status.struck.get(self._key, 0) > self._strikes
            if struck or status.restarts == self._restarts:
                self._own_failures += 1
        return failure


class PendingGroup:
    """A submitted group. Parts without scores are scored again after a failure, the others kept."""

    def __init__(
        self, service: Workers, mesh: StoredMesh, rigs: list[RolloutRig | None], pose_seed: int
    ) -> None:
        self._service, self._mesh, self._rigs, self._seed = service, mesh, rigs, pose_seed
        complete = [rig for rig in rigs if rig is not None]
        count = max(1, min(service.scorers, len(complete)))
        self._parts = [complete[part] for part in even_slices(len(complete), count)] if complete else []
        self._attempts = Attempts(service, mesh.key)
        self._scores: dict[int, Any] = {}
        self._decoded: list[Any] = []
        self._result: GroupScore | None = None
        if self._attempts.quarantined is None:
            self._start()

    def _start(self) -> None:
        missing = [part for part in range(len(self._parts)) if part not in self._attempts.values]
        self._attempts.begin()
        if missing:
            started = self._service.start(self._mesh, self._parts, missing, self._seed)
            self._scores, self._decoded = started

    def result(self) -> GroupScore:
        """See `PendingGroupScore`."""
        if self._result is None:
            self._result = self._collect()
            self._scores, self._decoded = {}, []
        return self._result

    def _collect(self) -> GroupScore:
        failure: str | None = None
        while self._parts and self._attempts.quarantined is None:
            failure = self._attempts.outcome(self._scores, self._decoded)
            if failure is None or self._attempts.exhausted:
                break
            if self._attempts.quarantined is None:
                self._start()
        if (mesh := self._attempts.quarantined) is not None and len(self._attempts.values) < len(self._parts):
            failure = mesh.sentence()
        if failure is not None:
            scores = merge_invalid(self._rigs, [UNSCORED] * sum(map(len, self._parts)))
            return GroupScore(scores, 0.0, 0.0, failure=failure, quarantined=mesh is not None)
        self._service.forget_strikes(self._mesh)
        values = [self._attempts.values[part] for part in range(len(self._parts))]
        scores = merge_invalid(self._rigs, [score for value in values for score in value[0]])
        return GroupScore(scores, sum(value[1] for value in values), sum(value[2] for value in values))
