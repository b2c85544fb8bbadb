"""The reward service on Ray: one decoder actor, several scoring actors, meshes in the object store."""

from __future__ import annotations

import itertools
import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RaySystemError, RayTaskError, TaskCancelledError

from policy.skin_vae import SkinVAE
from rewards.score import RewardSettings, ScoringMesh
from rewards.service import PendingScores, merge_invalid
from rewards.worker import (
    UNSCORED,
    GroupScore,
    RewardMesh,
    RolloutRig,
    RolloutScore,
    SkinDecoder,
    prepare,
    score_rollouts,
)

# One thread per actor: the actors are the parallelism, and sums keep one order.
_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


class RayUnavailableError(RuntimeError):
    """Ray could not be started or has no room for the reward workers; the message says what to change."""


@dataclass(frozen=True)
class ServiceAddress:
    """Where another process of the same job finds the service."""

    ray_address: str
    namespace: str
    name: str
    workers: int


class _MeshDirectory:
    """References to the prepared meshes, so that restarted actors and other ranks find them."""

    def __init__(self) -> None:
        self._references: dict[int, list[Any]] = {}

    def publish(self, mesh: int, references: list[Any]) -> None:
        self._references[mesh] = references

    def find(self, mesh: int) -> list[Any]:
        return self._references[mesh]


class _MeshCache:
    """Meshes an actor has looked at, fetched from the object store once."""

    def __init__(self, directory: Any) -> None:
        self._directory = directory
        self._meshes: dict[int, tuple[RewardMesh, ScoringMesh]] = {}

    def get(self, mesh: int) -> tuple[RewardMesh, ScoringMesh]:
        if mesh not in self._meshes:
            source, ready = ray.get(ray.get(self._directory.find.remote(mesh)))
            self._meshes[mesh] = (source, ready)
        return self._meshes[mesh]


class _DecoderActor:
    def __init__(self, skin_vae: str, device: str, directory: Any) -> None:
        self._decoder = SkinDecoder(SkinVAE.load(Path(skin_vae)), device, threads=1)
        self._meshes = _MeshCache(directory)

    def ready(self) -> bool:
        return True

    def decode(self, mesh: int, rigs: list[RolloutRig], chunks: int) -> Any:
        """One batch for the whole group, handed out in `chunks` objects of (seconds, weights)."""
        start = time.perf_counter()
        source, ready = self._meshes.get(mesh)
        weights = self._decoder.decode(
            mesh, source.points, source.normals, ready, [rig.codes for rig in rigs]
        )
        seconds = (time.perf_counter() - start) / chunks
        parts = [(seconds, weights[part]) for part in _parts(len(rigs), chunks)]
        return parts[0] if chunks == 1 else parts


class _ScoringActor:
    def __init__(self, settings: RewardSettings, directory: Any) -> None:
        self._settings = settings
        self._meshes = _MeshCache(directory)

    def ready(self) -> bool:
        return True

    def prepare(self, mesh: RewardMesh) -> ScoringMesh | str:
        return prepare(mesh, self._settings)

    def score(
        self, mesh: int, rigs: list[RolloutRig], decoded: tuple[float, list[Any]], seed: int
    ) -> tuple[list[RolloutScore], float, float]:
        start = time.perf_counter()
        decode_seconds, weights = decoded
        scores = score_rollouts(self._meshes.get(mesh)[1], rigs, weights, seed, self._settings)
        return scores, decode_seconds, time.perf_counter() - start


def _parts(count: int, chunks: int) -> list[slice]:
    """`chunks` slices of nearly equal size that cover range(count)."""
    bounds = [round(i * count / chunks) for i in range(chunks + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(bounds)]


class RayRewardService:
    """Starts (or joins) Ray and keeps one decoder and `workers` scoring actors there.

    Actors restart and tasks are retried after system failures; application errors are not retried and
    reach the caller. A group that still has no scores after `retries` comes back without any
    (`RolloutScore.rewards` None), with the reason in `GroupScore.failure`.

    Raises:
        RayUnavailableError: no cluster at the address, or no room for the actors within `timeout_s`.
    """

    def __init__(
        self,
        skin_vae: str | Path,
        settings: RewardSettings,
        *,
        workers: int = 2,
        timeout_s: float = 300.0,
        retries: int = 2,
        device: str = "cpu",
        address: str | None = None,
        namespace: str = "tokenrig-rl",
    ) -> None:
        self.timeout_s, self.retries = timeout_s, retries
        self._started = _connect(address, namespace, workers)
        name = f"rewards-{uuid.uuid4().hex[:8]}"
        self.address = ServiceAddress(ray.get_runtime_context().gcs_address, namespace, name, workers)
        environment = {"env_vars": {**_THREADS, "PYTHONPATH": _python_path()}}
        restart = {"max_restarts": -1, "max_task_retries": retries, "runtime_env": environment}
        self._directory = (
            ray.remote(_MeshDirectory)
            .options(name=f"{name}-meshes", num_cpus=0, runtime_env=environment)
            .remote()
        )
        gpus = 0.01 if device.startswith("cuda") else 0  # room beside the training, not a share of the card
        self._decoder = (
            ray.remote(_DecoderActor)
            .options(name=f"{name}-decoder", num_cpus=0, num_gpus=gpus, **restart)
            .remote(str(Path(skin_vae).resolve()), device, self._directory)
        )
        self._scorers = [
            ray.remote(_ScoringActor)
            .options(name=f"{name}-scorer-{i}", num_cpus=1, **restart)
            .remote(settings, self._directory)
            for i in range(workers)
        ]
        self._turn = 0
        self._keep: list[Any] = []
        ready = [actor.ready.remote() for actor in (self._decoder, *self._scorers)]
        try:
            ray.get(ready, timeout=timeout_s)
        except GetTimeoutError as error:
            self.close()
            raise RayUnavailableError(
                f"Ray had no room for {workers} scoring workers within {timeout_s:g} s; "
                "lower workers.count or give Ray more CPUs"
            ) from error

    @classmethod
    def join(cls, address: ServiceAddress, *, timeout_s: float = 300.0, retries: int = 2) -> RayRewardService:
        """Use the service another process of this job has started."""
        service = cls.__new__(cls)
        service.timeout_s, service.retries = timeout_s, retries
        service._started = _connect(address.ray_address, address.namespace, address.workers)
        service.address = address
        service._directory = ray.get_actor(f"{address.name}-meshes")
        service._decoder = ray.get_actor(f"{address.name}-decoder")
        service._scorers = [ray.get_actor(f"{address.name}-scorer-{i}") for i in range(address.workers)]
        service._turn = 0
        service._keep = []
        return service

    def prepare_meshes(self, meshes: Sequence[RewardMesh]) -> list[str | None]:
        """See `RewardService`; the scoring actors share the work."""
        sources = [ray.put(mesh) for mesh in meshes]
        prepared = [
            self._scorers[i % len(self._scorers)].prepare.remote(source) for i, source in enumerate(sources)
        ]
        reasons: list[str | None] = []
        for mesh, (source, reference) in enumerate(zip(sources, prepared, strict=True)):
            ready = ray.get(reference)
            reasons.append(ready if isinstance(ready, str) else None)
            ray.get(self._directory.publish.remote(mesh, [source, reference]))
        # The object store keeps an object while its owner holds the reference.
        self._keep = [*sources, *prepared]
        return reasons

    def submit(self, mesh: int, rigs: Sequence[RolloutRig | None], pose_seed: int) -> PendingScores:
        """See `RewardService`."""
        return _PendingGroup(self, mesh, list(rigs), pose_seed)

    def start(self, mesh: int, rigs: list[RolloutRig], pose_seed: int) -> list[Any]:
        """Send one group off: decoded in one batch, scored in chunks by all scoring actors in turn."""
        chunks = max(1, min(len(self._scorers), len(rigs)))
        decoded = self._decoder.decode.options(num_returns=chunks).remote(mesh, rigs, chunks)
        references = []
        for part, weights in zip(
            _parts(len(rigs), chunks), [decoded] if chunks == 1 else decoded, strict=True
        ):
            scorer = self._scorers[self._turn % len(self._scorers)]
            self._turn += 1
            references.append(scorer.score.remote(mesh, rigs[part], weights, pose_seed))
        return references

    def close(self) -> None:
        """Stop the actors, and Ray if this process started it."""
        if not ray.is_initialized():
            return
        for actor in (*self._scorers, self._decoder, self._directory):
            ray.kill(actor)
        self._keep = []
        if self._started:
            ray.shutdown()


class _PendingGroup:
    """One group on its way; retried as a whole after a time-out or a system failure."""

    def __init__(
        self, service: RayRewardService, mesh: int, rigs: list[RolloutRig | None], pose_seed: int
    ) -> None:
        self._service, self._mesh, self._rigs, self._seed = service, mesh, rigs, pose_seed
        self._complete = [rig for rig in rigs if rig is not None]
        self._references = self._start()
        self._result: GroupScore | None = None

    def _start(self) -> list[Any]:
        return self._service.start(self._mesh, self._complete, self._seed) if self._complete else []

    def result(self) -> GroupScore:
        if self._result is None:
            self._result = self._collect()
        return self._result

    def _collect(self) -> GroupScore:
        reason = ""
        for attempt in range(self._service.retries + 1):
            if attempt:
                self._references = self._start()
            try:
                parts = ray.get(self._references, timeout=self._service.timeout_s)
            except GetTimeoutError:
                reason = f"no scores within {self._service.timeout_s:g} s"
                for reference in self._references:
                    ray.cancel(reference)
            except RayTaskError:
                raise  # an error of our code, not of the system: trying again would hide it
            except (RaySystemError, TaskCancelledError, RayError) as error:
                reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            else:
                scores = [score for part in parts for score in part[0]]
                return GroupScore(
                    merge_invalid(self._rigs, scores),
                    sum(part[1] for part in parts),
                    sum(part[2] for part in parts),
                )
        scores = merge_invalid(self._rigs, [UNSCORED] * len(self._complete))
        return GroupScore(scores, 0.0, 0.0, failure=reason)


def _connect(address: str | None, namespace: str, workers: int) -> bool:
    """Make sure Ray runs; True if this process started or joined it (and so should leave it)."""
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"namespace": namespace, "log_to_driver": False, "logging_level": "error"}
    if address is None:
        # At least one slot per scoring worker: on a small machine they share its cores.
        options |= {"num_cpus": max(workers, os.cpu_count() or 1), "include_dashboard": False}
    else:
        options["address"] = address
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = "an embedded Ray" if address is None else f"Ray at '{address}'"
        raise RayUnavailableError(
            f"{where} could not be reached ({str(error).splitlines()[0]}); check 'ray.address'"
        ) from error
    return True


def _python_path() -> str:
    """Import path of the workers: this checkout first, so that they run the same code."""
    root = str(Path(__file__).resolve().parent.parent)
    return os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
