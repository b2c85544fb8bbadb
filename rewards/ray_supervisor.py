"""Ray actor that holds the prepared meshes, watches the workers, and kills those that hang."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import psutil
import ray
from ray.exceptions import ActorDiedError, RayError

from rewards.deadlines import TaskKind, WorkerLimits
from rewards.quarantine import QuarantinedMesh
from rewards.ray_actors import StoredMesh, own_process
from rewards.supervision import Permit, Status, Supervision, WorkerProcess

# Seconds between looks at the workers.
PERIOD_S = 0.5
# A worker that is dead for good at this many looks in a row will not come back: Ray restarts the others.
_DEAD_LOOKS = 6


class MeshRegistry:
    """The prepared meshes by key, so that no process of the job prepares one twice."""

    def __init__(self) -> None:
        self._meshes: dict[str, StoredMesh] = {}
        self._latest: list[StoredMesh] = []

    def find(self, keys: list[str]) -> dict[str, StoredMesh]:
        """The meshes that are already prepared, by key."""
        return {key: self._meshes[key] for key in keys if key in self._meshes}

    def publish(self, meshes: list[StoredMesh], order: list[str]) -> list[StoredMesh]:
        """Add meshes, unless another process was first; return those of `order`, the latest from now on."""
        for mesh in meshes:
            self._meshes.setdefault(mesh.key, mesh)
        self._latest = [self._meshes[key] for key in order]
        return self._latest

    def latest(self) -> list[StoredMesh]:
        """The meshes published last, for a process that joins."""
        return self._latest


class Supervisor(MeshRegistry):
    """Actor behind all workers of a service; its methods run in several threads.

    Args:
        limits: deadlines and budgets.
        quarantined: meshes quarantined by an earlier run.
    """

    def __init__(self, limits: WorkerLimits, quarantined: list[QuarantinedMesh]) -> None:
        super().__init__()
        self._books = Supervision(limits, quarantined)
        self._node = own_process().node
        self._handles: dict[str, Any] = {}
        # Of each worker the call it has not answered: (reference, process it was sent to, time).
        self._calls: dict[str, tuple[Any, WorkerProcess | None, float]] = {}
        self._dead_looks: Counter[str] = Counter()
        self._looking = threading.Lock()

    def watch(self, workers: dict[str, Any]) -> None:
        """Watch these workers (handles by name), which have started, from now on."""
        self._handles |= workers
        self._books.add_workers(workers)
        self._look(list(workers))
        threading.Thread(target=self._watch, daemon=True).start()

    def begin(
        self, name: str, process: WorkerProcess, kind: TaskKind, key: str, mesh: str, units: int
    ) -> Permit:
        """See `Supervision.begin`."""
        return self._books.begin(name, process, kind, key, mesh, units)

    def end(self, name: str, process: WorkerProcess, token: int) -> None:
        """See `Supervision.end`."""
        self._books.end(name, process, token)

    def scored(self, key: str) -> None:
        """See `Supervision.scored`."""
        self._books.scored(key)

    def expect(self, keys: list[str]) -> None:
        """See `Supervision.expect`."""
        self._books.expect(keys)

    def status(self, fresh: bool = False) -> Status:
        """See `Status`; `fresh` asks all workers first, so that a death the caller noticed is in it."""
        if fresh:
            self._look(self._handles)
        return self._books.status()

    def _watch(self) -> None:
        while True:
            began = time.monotonic()
            self._look(self._handles)
            now = time.monotonic()
            for name in self._books.overdue({name: sent for name, (_, _, sent) in self._calls.items()}):
                self._kill(name)
            time.sleep(max(0.0, PERIOD_S - (now - began)))

    def _look(self, names: Iterable[str]) -> None:
        """Call every worker that has answered the last call, and wait up to `PERIOD_S` for answers."""
        with self._looking:
            for name in names:
                if name not in self._calls:
                    sent_to = self._books.process(name)
                    self._calls[name] = (self._handles[name].pulse.remote(), sent_to, time.monotonic())
            owners = {call[0]: name for name, call in self._calls.items()}
            answered, _ = ray.wait(list(owners), num_returns=len(owners), timeout=PERIOD_S)
            for reference in answered:
                name = owners[reference]
                _, sent_to, _ = self._calls.pop(name)
                try:
                    process = ray.get(reference)
                except RayError as error:
                    self._books.gone(name, sent_to)
                    self._dead_looks[name] += isinstance(error, ActorDiedError)
                    if self._dead_looks[name] >= _DEAD_LOOKS:
                        self._books.lost(name, str(error).strip().splitlines()[-1].strip())
                else:
                    self._dead_looks[name] = 0
                    self._books.alive(name, process)

    def _kill(self, name: str) -> None:
        """End a worker's process, also a stopped one; Ray starts another."""
        process = self._books.process(name)
        if process is not None and process.node == self._node:
            # At once: through Ray, a stopped process gets 5 s to exit by itself.
            with contextlib.suppress(psutil.NoSuchProcess):
                found = psutil.Process(process.pid)
                if found.create_time() == process.started:
                    found.kill()
        else:
            ray.kill(self._handles[name], no_restart=False)
