"""Ray actors that do the work of the reward service: skin decoder and scorer."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil
import ray

from rewards.deadlines import TaskKind
from rewards.errors import MeshQuarantinedError
from rewards.score import RewardSettings, ScoringMesh
from rewards.supervision import Permit, WorkerProcess
from rewards.warm_up import compile_kernels
from rewards.worker import LRUCache, RewardMesh, RolloutRig, RolloutScore, prepare, score_rollouts

if TYPE_CHECKING:
    from rewards.skin_decoder import DecoderDtype

# Meshes that an actor keeps unpacked: a grid takes up to 7.5 MB. The others stay in the object store.
_MESHES_KEPT = 64
# Answers to the supervisor come from a thread of their own: a busy worker answers too.
PULSE = "pulse"


class StoredMesh(NamedTuple):
    """A prepared mesh: why it cannot be scored, or its objects in Ray's store.

    `vertices`: number of scoring vertices, 0 if it cannot be scored.
    """

    key: str
    name: str
    reason: str | None
    vertices: int
    source: Any  # reference to a RewardMesh
    ready: Any  # reference to a ScoringMesh


class SupervisorName(NamedTuple):
    """Where workers find the supervisor."""

    name: str
    namespace: str


class Worker:
    """What all workers share: they report their tasks to the supervisor, and answer when it calls."""

    def __init__(self, name: str, supervisor: SupervisorName) -> None:
        # By name: Ray warns of handles in the constructor's arguments.
        self._name, self._supervisor = name, ray.get_actor(supervisor.name, supervisor.namespace)
        self._process = own_process()

    @ray.method(concurrency_group=PULSE)
    def pulse(self) -> WorkerProcess:
        """The process that this worker runs in."""
        return self._process

    @contextmanager
    def _task(self, kind: TaskKind, key: str, mesh: str, units: int) -> Iterator[None]:
        """Report the start and the end of a task on a mesh.

        The start is acknowledged before the work begins: a task that kills this process at once is known.

        Raises MeshQuarantinedError if the mesh must not be worked on.
        """
        begin = self._supervisor.begin.remote
        while True:
            permit: Permit = ray.get(begin(self._name, self._process, kind, key, mesh, units))
            if permit.verdict != "later":
                break
            time.sleep(0.05)  # another mesh of this worker must finish first
        if permit.verdict == "quarantined":
            raise MeshQuarantinedError(permit.reason)
        try:
            yield
        finally:
            self._supervisor.end.remote(self._name, self._process, permit.token)


class DecoderActor(Worker):
    """Actor that turns the SkinTokens of a group into skinning weights; it may decode several at once."""

    def __init__(
        self, name: str, supervisor: SupervisorName, skin_vae: str, device: str, dtype: DecoderDtype
    ) -> None:
        # Only this actor imports torch: the scorers do without its memory.
        import torch

        from policy.skintokens.skin_vae import SkinVAE
        from rewards.skin_decoder import SkinDecoder

        super().__init__(name, supervisor)
        torch.set_num_threads(1)
        self._decoder = SkinDecoder(SkinVAE.load(skin_vae), device, 1, dtype)
        self._meshes: LRUCache[tuple[RewardMesh, Any, Any]] = LRUCache(_MESHES_KEPT)

    def decode(self, mesh: StoredMesh, codes: list[Any], chunks: int) -> Any:
        """Decode a whole group in one batch; returns `chunks` objects of (seconds, weights).

        Raises MeshQuarantinedError.
        """
        bones = sum(map(len, codes))
        with self._task("decode", mesh.key, mesh.name, bones * mesh.vertices):
            start = time.perf_counter()
            weights = self._decoder.decode(*self._meshes.get(mesh.key, lambda: self._fetch(mesh)), codes)
            seconds = (time.perf_counter() - start) / chunks
        parts = [(seconds, weights[part]) for part in even_slices(len(codes), chunks)]
        return parts[0] if chunks == 1 else parts

    @staticmethod
    def _fetch(mesh: StoredMesh) -> tuple[RewardMesh, Any, Any]:
        source, ready = ray.get([mesh.source, mesh.ready])
        return source, ready.vertices, ready.normals


class ScoringActor(Worker):
    """Actor that prepares meshes and scores decoded rigs."""

    def __init__(self, name: str, supervisor: SupervisorName, settings: RewardSettings) -> None:
        super().__init__(name, supervisor)
        compile_kernels(settings)
        self._settings = settings
        self._meshes: LRUCache[ScoringMesh] = LRUCache(_MESHES_KEPT)

    def prepare(
        self, mesh: RewardMesh, key: str, units: int
    ) -> tuple[tuple[str | None, int], ScoringMesh | None]:
        """(reason, number of scoring vertices) and scoring mesh: two objects, so that the first can be
        fetched alone. There is a reason or a mesh.

        Raises MeshQuarantinedError.
        """
        with self._task("prepare", key, mesh.name, units):
            ready = prepare(mesh, self._settings)
        return ((ready, 0), None) if isinstance(ready, str) else ((None, len(ready.vertices)), ready)

    def score(
        self, mesh: StoredMesh, rigs: list[RolloutRig], decoded: tuple[float, list[Any]], seed: int
    ) -> tuple[list[RolloutScore], float, float]:
        """Score one chunk of a group; returns (scores, seconds of decoding, seconds of scoring).

        Raises MeshQuarantinedError.
        """
        bones = sum(len(rig.joints) for rig in rigs)
        with self._task("score", mesh.key, mesh.name, bones * mesh.vertices):
            start = time.perf_counter()
            decode_seconds, weights = decoded
            ready = self._meshes.get(mesh.key, lambda: ray.get(mesh.ready))
            scores = score_rollouts(ready, rigs, weights, seed, self._settings)
            return scores, decode_seconds, time.perf_counter() - start


def own_process() -> WorkerProcess:
    """The process that this runs in."""
    return WorkerProcess(ray.get_runtime_context().get_node_id(), os.getpid(), psutil.Process().create_time())


def even_slices(count: int, chunks: int) -> list[slice]:
    """`chunks` slices of nearly equal size that cover range(count)."""
    bounds = [round(i * count / chunks) for i in range(chunks + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(bounds)]
