"""Watches Ray and the supervisor from a process of the job: reports failures, ends a doomed run."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from tqdm import tqdm

from rewards.quarantine import QuarantinedMesh
from rewards.ray_connection import RESUME, ClusterHealth, RayUnavailableError, reason_of
from rewards.supervision import Status

_PERIOD_S = 0.5
# A supervisor that does not answer this often in a row, within this time each, hangs.
_SUPERVISOR_CALLS, _SUPERVISOR_ANSWER_S = 12, 5.0


class ServiceWatch:
    """Polls the cluster and the supervisor in a thread; `check` raises what it finds.

    Args:
        supervisor: handle.
        on_quarantine: called, in the thread, for each newly quarantined mesh; returns a sentence. With it,
            failures are printed on standard error; one process of a job has it.
    """

    def __init__(self, supervisor: Any, on_quarantine: Callable[[QuarantinedMesh], str] | None) -> None:
        self._supervisor, self._on_quarantine = supervisor, on_quarantine
        self._cluster = ClusterHealth()
        self._failure: str | None = None
        self._lock = threading.Lock()
        self._unheard = 0
        self._shown = 0
        self.status: Status = ray.get(supervisor.status.remote())
        self._known = {mesh.key for mesh in self.status.quarantined}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="reward-service-watch", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise RayUnavailableError if the run must stop."""
        if self._failure is None:
            self._failure = self._cluster.problem() or self.status.failure
        if self._failure is not None:
            raise RayUnavailableError(self._failure)

    @property
    def cluster_is_dead(self) -> bool:
        """Whether no call to Ray can be expected to return."""
        return self._cluster.problem() is not None

    def fresh(self) -> Status:
        """The supervisor's status after it has asked all workers.

        Raises RayUnavailableError if the run must stop.
        """
        self.check()
        self._update(self._ask(fresh=True))
        self.check()
        return self.status

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(5)

    def _watch(self) -> None:
        while not self._stopped.wait(_PERIOD_S):
            self._cluster.call_head()
            if self._failure is not None or self._cluster.problem() is not None:
                continue  # `check` reports it; the object store must not be touched any more
            try:
                self._update(self._ask(fresh=False))
            except RayUnavailableError as error:
                self._failure = self._failure or str(error)

    def _ask(self, fresh: bool) -> Status | None:
        """The supervisor's status, None if it did not answer in time.

        Raises RayUnavailableError if it is dead or does not answer for a minute.
        """
        try:
            status: Status = ray.get(self._supervisor.status.remote(fresh), timeout=_SUPERVISOR_ANSWER_S)
        except GetTimeoutError:
            self._unheard += 1
            if self._unheard >= _SUPERVISOR_CALLS:
                raise RayUnavailableError(
                    "the supervisor of the reward workers does not answer any more (for "
                    f"{_SUPERVISOR_CALLS * _SUPERVISOR_ANSWER_S:g} s); {RESUME}"
                ) from None
            return None
        except RayError as error:
            if self._stopped.is_set():
                return None
            raise RayUnavailableError(
                self._cluster.problem()
                or f"the supervisor of the reward workers died ({reason_of(error)}); {RESUME}"
            ) from error
        self._unheard = 0
        return status

    def _update(self, status: Status | None) -> None:
        if status is None:
            return
        with self._lock:
            if status.events < self.status.events:
                return  # overtaken by a later answer
            self.status = status
            shown, self._shown = self._shown, len(status.messages)
            new = [mesh for mesh in status.quarantined if mesh.key not in self._known]
            self._known |= {mesh.key for mesh in new}
            if self._on_quarantine is not None:
                for sentence in (*status.messages[shown:], *map(self._on_quarantine, new)):
                    tqdm.write(f"reward workers: {sentence}", file=sys.stderr)
