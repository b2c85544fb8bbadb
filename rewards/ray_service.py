"""The reward service on Ray: one decoder actor, several scoring actors, meshes in the object store."""

from __future__ import annotations

import itertools
import os
import socket
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from rewards.score import RewardSettings, ScoringMesh
from rewards.worker import (
    UNSCORED,
    GroupScore,
    LRUCache,
    RewardMesh,
    RolloutRig,
    RolloutScore,
    check_prepared,
    merge_invalid,
    prepare,
    score_rollouts,
    with_progress,
)

if TYPE_CHECKING:
    from rewards.service import PendingGroupScore

# One thread per actor: the actors are the parallelism, and sums keep one order.
_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

# Meshes an actor keeps unpacked: a grid takes up to 7.5 MB. The others wait in the object store.
_MESHES_KEPT = 64


class RayUnavailableError(RuntimeError):
    """Ray or the reward workers could not be started or found; the message says what to change."""


@dataclass(frozen=True)
class ServiceAddress:
    """Where another process of the same job finds the service."""

    ray_address: str
    namespace: str
    name: str
    workers: int

    @property
    def directory(self) -> str:
        """Name of the actor that knows the prepared meshes."""
        return f"{self.name}-meshes"

    @property
    def decoder(self) -> str:
        """Name of the decoder actor."""
        return f"{self.name}-decoder"

    @property
    def scorers(self) -> list[str]:
        """Names of the scoring actors."""
        return [f"{self.name}-scorer-{i}" for i in range(self.workers)]


class _StoredMesh(NamedTuple):
    """A prepared mesh: why it cannot be scored, or where the object store holds it."""

    key: str
    reason: str | None
    source: Any  # reference to a RewardMesh
    ready: Any  # reference to a ScoringMesh


class _MeshDirectory:
    """Prepared meshes by key, so that every process of the job prepares none twice."""

    def __init__(self) -> None:
        self._meshes: dict[str, _StoredMesh] = {}
        self._latest: list[_StoredMesh] = []

    def find(self, keys: list[str]) -> dict[str, _StoredMesh]:
        return {key: self._meshes[key] for key in keys if key in self._meshes}

    def publish(self, meshes: list[_StoredMesh], order: list[str]) -> list[_StoredMesh]:
        """Take in meshes, unless another process was first; mesh k of `order` is k from now on."""
        for mesh in meshes:
            self._meshes.setdefault(mesh.key, mesh)
        self._latest = [self._meshes[key] for key in order]
        return self._latest

    def latest(self) -> list[_StoredMesh]:
        return self._latest


class _DecoderActor:
    def __init__(self, skin_vae: str, device: str) -> None:
        # torch is imported here alone: the scoring actors do without its memory.
        import torch

        from policy.skintokens.skin_vae import SkinVAE
        from rewards.skin_decoder import SkinDecoder

        torch.set_num_threads(1)
        self._decoder = SkinDecoder(SkinVAE.load(skin_vae), device, threads=1)
        self._meshes: LRUCache[tuple[RewardMesh, Any, Any]] = LRUCache(_MESHES_KEPT)

    def decode(self, mesh: _StoredMesh, codes: list[Any], chunks: int) -> Any:
        """One batch for the whole group, handed out in `chunks` objects of (seconds, weights)."""
        start = time.perf_counter()
        weights = self._decoder.decode(*self._meshes.get(mesh.key, lambda: self._fetch(mesh)), codes)
        seconds = (time.perf_counter() - start) / chunks
        parts = [(seconds, weights[part]) for part in _parts(len(codes), chunks)]
        return parts[0] if chunks == 1 else parts

    @staticmethod
    def _fetch(mesh: _StoredMesh) -> tuple[RewardMesh, Any, Any]:
        source, ready = ray.get([mesh.source, mesh.ready])
        return source, ready.vertices, ready.normals


class _ScoringActor:
    def __init__(self, settings: RewardSettings) -> None:
        self._settings = settings
        self._meshes: LRUCache[ScoringMesh] = LRUCache(_MESHES_KEPT)

    def prepare(self, mesh: RewardMesh) -> tuple[str | None, ScoringMesh | None]:
        """Reason and scoring mesh, one of which is None: two objects, so that the caller fetches only one."""
        ready = prepare(mesh, self._settings)
        return (ready, None) if isinstance(ready, str) else (None, ready)

    def score(
        self, mesh: _StoredMesh, rigs: list[RolloutRig], decoded: tuple[float, list[Any]], seed: int
    ) -> tuple[list[RolloutScore], float, float]:
        """(scores, seconds of decoding, seconds of scoring) of a part of a group."""
        start = time.perf_counter()
        decode_seconds, weights = decoded
        ready = self._meshes.get(mesh.key, lambda: ray.get(mesh.ready))
        scores = score_rollouts(ready, rigs, weights, seed, self._settings)
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

    Args:
        skin_vae: directory of the frozen VAE, readable where the decoder runs.
        settings: the rewards' parameters.
        workers: scoring actors, one CPU each.
        timeout_s: how long to wait for a group, for the actors to start and for a mesh to be prepared.
        retries: of a task, and of a group as a whole.
        device: of the decoder: `cpu`, `cuda` (the card Ray chooses) or `cuda:N`.
        address: of a running Ray cluster; None starts one on this machine.
        namespace: Ray's, in which the actors have their names.

    Raises:
        RayUnavailableError: no cluster at the address, no room for the actors within `timeout_s`, or an
            actor that cannot start.
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
        connected = _connect(address, namespace, workers)
        where = ServiceAddress(
            ray.get_runtime_context().gcs_address, namespace, f"rewards-{uuid.uuid4().hex[:8]}", workers
        )
        environment = {"env_vars": {**_THREADS, "PYTHONPATH": _python_path()}}
        common = {"namespace": namespace, "runtime_env": environment}
        # Out of order: an actor would wait 30 s for the place in the queue of a cancelled task.
        restart = {"max_restarts": -1, "max_task_retries": retries, "allow_out_of_order_execution": True}
        directory = ray.remote(_MeshDirectory).options(name=where.directory, num_cpus=0, **common).remote()
        # Room beside the training rather than a share of a card; with a number, every card stays visible.
        gpus = 0.01 if device == "cuda" else 0
        decoder = (
            ray.remote(_DecoderActor)
            .options(name=where.decoder, num_cpus=0, num_gpus=gpus, **restart, **common)
            .remote(str(Path(skin_vae).resolve()), device)
        )
        scorers = [
            ray.remote(_ScoringActor).options(name=name, num_cpus=1, **restart, **common).remote(settings)
            for name in where.scorers
        ]
        self._set_up(where, directory, decoder, scorers, timeout_s, retries)
        self._owner, self._connected = True, connected
        try:
            ray.get(
                [actor.__ray_ready__.remote() for actor in (directory, decoder, *scorers)], timeout=timeout_s
            )
        except GetTimeoutError as error:
            self.close()
            raise RayUnavailableError(
                f"Ray had no room for {workers} scoring workers and a decoder on '{device}' within "
                f"{timeout_s:g} s; lower 'workers.count' or give Ray more CPUs"
            ) from error
        except RayError as error:
            self.close()
            raise RayUnavailableError(
                f"a reward worker could not start ({_reason(error)}); check 'workers.decoder_device' and the "
                f"skin VAE in '{skin_vae}'"
            ) from error

    @classmethod
    def join(cls, address: ServiceAddress, *, timeout_s: float = 300.0, retries: int = 2) -> RayRewardService:
        """Use the service another process of this job has started, with the meshes it has prepared.

        Raises RayUnavailableError if it is not there (any more).
        """
        connected = _connect(address.ray_address, address.namespace, address.workers)
        service = cls.__new__(cls)
        try:
            directory, decoder, *scorers = [
                ray.get_actor(name, namespace=address.namespace)
                for name in (address.directory, address.decoder, *address.scorers)
            ]
            service._set_up(address, directory, decoder, scorers, timeout_s, retries)
            service._adopt(ray.get(directory.latest.remote(), timeout=timeout_s))
        except (ValueError, RayError) as error:
            if connected:
                ray.shutdown()
            raise RayUnavailableError(
                f"no reward service '{address.name}' runs at {address.ray_address}; "
                "the process that started it has ended or failed"
            ) from error
        service._owner, service._connected = False, connected
        return service

    def _set_up(
        self,
        address: ServiceAddress,
        directory: Any,
        decoder: Any,
        scorers: list[Any],
        timeout_s: float,
        retries: int,
    ) -> None:
        self.address, self.timeout_s, self.retries = address, timeout_s, retries
        self._directory, self._decoder, self._scorers = directory, decoder, scorers
        self._turn = 0
        self._adopt([])

    def _adopt(self, meshes: list[_StoredMesh]) -> None:
        self._meshes = meshes
        self._reasons = [mesh.reason for mesh in meshes]

    def prepare_meshes(self, meshes: Sequence[RewardMesh]) -> list[str | None]:
        """See `RewardService`; the scoring actors share the work, and meshes known already cost nothing."""
        order = [mesh.key for mesh in meshes]
        known = ray.get(self._directory.find.remote(order))
        missing = {mesh.key: mesh for mesh in meshes if mesh.key not in known}
        started = []
        for scorer, (key, mesh) in zip(itertools.cycle(self._scorers), missing.items(), strict=False):
            # Owned by this process, not by an actor: objects are lost with their owner.
            source = ray.put(mesh)
            started.append((key, source, *scorer.prepare.options(num_returns=2).remote(source)))
        stored = [
            _StoredMesh(key, self._reason_of(reason, missing[key].name), source, ready)
            for key, source, reason, ready in with_progress(started, len(started))
        ]
        self._adopt(ray.get(self._directory.publish.remote(stored, order)))
        return list(self._reasons)

    def _reason_of(self, reference: Any, name: str) -> str | None:
        try:
            return ray.get(reference, timeout=self.timeout_s)
        except RayError as error:
            if not _is_system_failure(error):
                raise
            return f"{name}: no worker could prepare it ({_reason(error)}); is it too large?"

    def submit(self, mesh: int, rigs: Sequence[RolloutRig | None], pose_seed: int) -> PendingGroupScore:
        """See `RewardService`."""
        check_prepared(mesh, self._reasons)
        return _PendingGroup(self, self._meshes[mesh], list(rigs), pose_seed)

    def start(self, mesh: _StoredMesh, rigs: list[RolloutRig], pose_seed: int) -> tuple[list[Any], list[Any]]:
        """Send one group off: decoded in one batch, scored in chunks by the scoring actors in turn.

        Returns references to the decoded chunks and to their scores.
        """
        chunks = max(1, min(len(self._scorers), len(rigs)))
        reply = self._decoder.decode.options(num_returns=chunks).remote(
            mesh, [rig.codes for rig in rigs], chunks
        )
        decoded = [reply] if chunks == 1 else list(reply)
        scores = []
        for part, weights in zip(_parts(len(rigs), chunks), decoded, strict=True):
            scorer = self._scorers[self._turn % len(self._scorers)]
            self._turn += 1
            scores.append(scorer.score.remote(mesh, rigs[part], weights, pose_seed))
        return decoded, scores

    def wait_for_workers(self) -> None:
        """Wait until actors that died are back, at most `timeout_s`: until then every call fails at once."""
        ready = [
            actor.__ray_ready__.options(max_task_retries=-1).remote()
            for actor in (self._decoder, *self._scorers)
        ]
        ray.wait(ready, num_returns=len(ready), timeout=self.timeout_s)

    def close(self) -> None:
        """Stop the actors if this process started them, and leave Ray if it started or joined it."""
        if ray.is_initialized():
            if self._owner:
                for actor in (*self._scorers, self._decoder, self._directory):
                    ray.kill(actor)
            if self._connected:
                ray.shutdown()
        self._adopt([])
        self._owner, self._connected = False, False


class _PendingGroup:
    """One group on its way; retried as a whole after a time-out or a system failure."""

    def __init__(
        self, service: RayRewardService, mesh: _StoredMesh, rigs: list[RolloutRig | None], pose_seed: int
    ) -> None:
        self._service, self._mesh, self._rigs, self._seed = service, mesh, rigs, pose_seed
        self._complete = [rig for rig in rigs if rig is not None]
        self._decoded, self._scores = self._start()
        self._result: GroupScore | None = None

    def _start(self) -> tuple[list[Any], list[Any]]:
        return self._service.start(self._mesh, self._complete, self._seed) if self._complete else ([], [])

    def result(self) -> GroupScore:
        """See `PendingGroupScore`."""
        if self._result is None:
            self._result = self._collect()
            self._decoded, self._scores = [], []
        return self._result

    def _collect(self) -> GroupScore:
        failure = ""
        for attempt in range(self._service.retries + 1):
            if attempt:
                self._decoded, self._scores = self._start()
            try:
                parts = ray.get(self._scores, timeout=self._service.timeout_s)
            except GetTimeoutError:
                failure = f"no scores within {self._service.timeout_s:g} s"
                # What still waits in the queue of an actor must not delay the next attempt.
                for reference in (*self._scores, *self._decoded):
                    ray.cancel(reference)
            except RayError as error:
                if not _is_system_failure(error):
                    raise  # an error of our code: trying again would hide it
                failure = _reason(error)
                self._service.wait_for_workers()
            else:
                scores = merge_invalid(self._rigs, [score for part in parts for score in part[0]])
                return GroupScore(scores, sum(part[1] for part in parts), sum(part[2] for part in parts))
        scores = merge_invalid(self._rigs, [UNSCORED] * len(self._complete))
        return GroupScore(scores, 0.0, 0.0, failure=failure)


def _root_cause(error: BaseException) -> BaseException:
    """What went wrong first: a task that depends on a failed one fails with that one's error inside."""
    while isinstance(error, RayTaskError) and error.cause is not None:
        error = error.cause
    return error


def _is_system_failure(error: RayError) -> bool:
    """Whether a worker or the object store failed rather than the code that ran there."""
    cause = _root_cause(error)
    return isinstance(cause, RayError) and not isinstance(cause, RayTaskError)


def _reason(error: RayError) -> str:
    """One line of an error of Ray: its first, or the last of a traceback, which names the cause."""
    cause = _root_cause(error)
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    if not lines:
        return type(cause).__name__
    line = lines[-1] if "ray::" in lines[0] or "Traceback" in lines[0] else lines[0]
    return f"{type(cause).__name__}: {line}"


def _connect(address: str | None, namespace: str, workers: int) -> bool:
    """Make sure Ray runs; True if this process started or joined it (and so should leave it)."""
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Actors that ask for no card still see all of them.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"namespace": namespace, "log_to_driver": False, "logging_level": "error"}
    if address is None:
        # "local": without it Ray joins whatever cluster RAY_ADDRESS or an earlier run on this machine names.
        # At least one slot per scoring worker: on a small machine they share its cores.
        slots = max(workers, os.cpu_count() or 1)
        options |= {"address": "local", "num_cpus": slots, "include_dashboard": False}
    else:
        options["address"] = address
    try:
        _check_reachable(address)
        ray.init(**options)
    except (OSError, RuntimeError, ValueError) as error:
        where = "an embedded Ray" if address is None else f"Ray at '{address}'"
        raise RayUnavailableError(
            f"{where} could not be reached ({str(error).splitlines()[0]}); check 'ray.address'"
        ) from error
    return True


def _check_reachable(address: str | None) -> None:
    """Raise OSError if nobody listens at `host:port`: Ray itself goes on trying for many minutes."""
    host, separator, port = (address or "").rpartition(":")
    if separator and port.isdigit() and "//" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _python_path() -> str:
    """Import path of the workers: this checkout first, so that they run the same code."""
    root = str(Path(__file__).resolve().parent.parent)
    return os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
