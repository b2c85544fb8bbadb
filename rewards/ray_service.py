"""The reward service on Ray: connects or starts a cluster, creates the actors, submits and retries groups."""

from __future__ import annotations

import itertools
import os
import socket
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from rewards.ray_actors import DecoderActor, MeshRegistry, ScoringActor, StoredMesh, even_slices
from rewards.ray_folder import ray_folder_problem
from rewards.score import RewardSettings
from rewards.worker import (
    UNSCORED,
    GroupScore,
    RewardMesh,
    RolloutRig,
    check_prepared,
    merge_invalid,
    with_progress,
)

if TYPE_CHECKING:
    from rewards.service import PendingGroupScore
    from rewards.skin_decoder import DecoderDtype

# One thread per actor: parallelism comes from the actors, and sums keep their order.
_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


class RayUnavailableError(RuntimeError):
    """Ray or the reward workers could not be started or reached; the message says what to change."""


@dataclass(frozen=True)
class ServiceAddress:
    """Where other processes of the job find the service; plain data, so that it can be broadcast."""

    ray_address: str
    namespace: str
    name: str
    workers: int

    @property
    def registry(self) -> str:
        """Name of the mesh registry actor."""
        return f"{self.name}-meshes"

    @property
    def decoder(self) -> str:
        """Name of the decoder actor."""
        return f"{self.name}-decoder"

    @property
    def scorers(self) -> list[str]:
        """Names of the scoring actors."""
        return [f"{self.name}-scorer-{i}" for i in range(self.workers)]


class RayRewardService:
    """`RewardService` on Ray: one decoder actor, `workers` scoring actors, meshes in the object store.

    After system failures actors restart and tasks are retried; application errors are not retried and reach
    the caller. A group that still has no scores after `retries` is returned without rewards
    (`RolloutScore.rewards` is None), with the reason in `GroupScore.failure`.

    Args:
        skin_vae: directory of the frozen VAE, readable where the decoder runs.
        settings: the rewards' parameters.
        workers: number of scoring actors, one CPU each, and of groups that a CPU decodes at once.
        timeout_s: seconds to wait for a group, for the actors to start and for a mesh to be prepared.
        retries: retries of a task, and of a group as a whole.
        device: torch device of the decoder: `cpu`, `cuda` (the GPU that Ray assigns) or `cuda:N`.
        dtype: of the decoder, see `SkinDecoder`.
        address: address of a running Ray cluster; None starts a local one.
        namespace: Ray namespace of the actors' names.

    Raises:
        RayUnavailableError: there is no cluster at the address, no room for the actors within `timeout_s`, or
            an actor cannot start.
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
        dtype: DecoderDtype = "float32",
        address: str | None = None,
        namespace: str = "tokenrig-rl",
    ) -> None:
        connected = _connect(address, namespace, workers)
        where = ServiceAddress(
            ray.get_runtime_context().gcs_address, namespace, f"rewards-{uuid.uuid4().hex[:8]}", workers
        )
        environment = {"env_vars": {**_THREADS, "PYTHONPATH": _python_path()}}
        common = {"namespace": namespace, "runtime_env": environment}
        # In order, an actor would wait 30 s for the place of a cancelled task in its queue.
        restart = {"max_restarts": -1, "max_task_retries": retries, "allow_out_of_order_execution": True}
        registry = ray.remote(MeshRegistry).options(name=where.registry, num_cpus=0, **common).remote()
        # A nominal fraction of a GPU: the decoder shares it with the training. `cuda:N` needs all GPUs
        # visible.
        gpus = 0.01 if device == "cuda" else 0
        # On a CPU, groups are decoded side by side, each by one thread, as scoring is: while this process
        # waits for rewards, no core is idle. A GPU decodes one after the other.
        at_once = workers if device == "cpu" else 1
        decoder = (
            ray.remote(DecoderActor)
            .options(
                name=where.decoder,
                num_cpus=0,
                num_gpus=gpus,
                max_concurrency=at_once,
                **restart,
                **common,
            )
            .remote(str(Path(skin_vae).resolve()), device, dtype)
        )
        scorers = [
            ray.remote(ScoringActor).options(name=name, num_cpus=1, **restart, **common).remote(settings)
            for name in where.scorers
        ]
        self._set_up(where, registry, decoder, scorers, timeout_s, retries)
        self._owner, self._connected = True, connected
        try:
            ray.get(
                [actor.__ray_ready__.remote() for actor in (registry, decoder, *scorers)], timeout=timeout_s
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
                f"a reward worker could not start ({_reason(error)}); check 'workers.decoder_device', "
                f"'workers.decoder_dtype' and the skin VAE in '{skin_vae}'"
            ) from error

    @classmethod
    def join(cls, address: ServiceAddress, *, timeout_s: float = 300.0, retries: int = 2) -> RayRewardService:
        """Use the service that another process of this job started, with the meshes it prepared.

        Raises:
            RayUnavailableError: no such service is running.
        """
        connected = _connect(address.ray_address, address.namespace, address.workers)
        service = cls.__new__(cls)
        try:
            registry, decoder, *scorers = [
                ray.get_actor(name, namespace=address.namespace)
                for name in (address.registry, address.decoder, *address.scorers)
            ]
            service._set_up(address, registry, decoder, scorers, timeout_s, retries)
            service._adopt(ray.get(registry.latest.remote(), timeout=timeout_s))
        except (ValueError, RayError) as error:
            if connected:
                ray.shutdown()
            raise RayUnavailableError(
                f"no reward service '{address.name}' is running at {address.ray_address}; "
                "the process that started it has exited: restart the job"
            ) from error
        service._owner, service._connected = False, connected
        return service

    def _set_up(
        self,
        address: ServiceAddress,
        registry: Any,
        decoder: Any,
        scorers: list[Any],
        timeout_s: float,
        retries: int,
    ) -> None:
        self.address, self.timeout_s, self.retries = address, timeout_s, retries
        self._registry, self._decoder, self._scorers = registry, decoder, scorers
        self._turn = 0
        self._adopt([])

    def _adopt(self, meshes: list[StoredMesh]) -> None:
        self._meshes = meshes
        self._reasons = [mesh.reason for mesh in meshes]

    def prepare_meshes(self, meshes: Sequence[RewardMesh]) -> list[str | None]:
        """See `RewardService`; the scoring actors share the work, and meshes prepared before cost nothing."""
        order = [mesh.key for mesh in meshes]
        known = ray.get(self._registry.find.remote(order))
        missing = {mesh.key: mesh for mesh in meshes if mesh.key not in known}
        started = []
        for scorer, (key, mesh) in zip(itertools.cycle(self._scorers), missing.items(), strict=False):
            # This process owns the object, not an actor: objects are lost with their owner.
            source = ray.put(mesh)
            started.append((key, source, *scorer.prepare.options(num_returns=2).remote(source)))
        stored = [
            StoredMesh(key, self._reason_of(reason, missing[key].name), source, ready)
            for key, source, reason, ready in with_progress(started, len(started))
        ]
        self._adopt(ray.get(self._registry.publish.remote(stored, order)))
        return list(self._reasons)

    def _reason_of(self, reference: Any, name: str) -> str | None:
        try:
            return ray.get(reference, timeout=self.timeout_s)
        except RayError as error:
            if not _is_system_failure(error):
                raise
            return f"{name}: no worker could prepare it ({_reason(error)}); simplify the mesh if it is large"

    def submit(self, mesh: int, rigs: Sequence[RolloutRig | None], pose_seed: int) -> PendingGroupScore:
        """See `RewardService`."""
        check_prepared(mesh, self._reasons)
        return _PendingGroup(self, self._meshes[mesh], list(rigs), pose_seed)

    def start(self, mesh: StoredMesh, rigs: list[RolloutRig], pose_seed: int) -> tuple[list[Any], list[Any]]:
        """Submit one group: decoded in one batch, scored in chunks by the scoring actors in turn.

        Returns:
            References to the decoded chunks and to their scores.
        """
        chunks = max(1, min(len(self._scorers), len(rigs)))
        reply = self._decoder.decode.options(num_returns=chunks).remote(
            mesh, [rig.codes for rig in rigs], chunks
        )
        decoded = [reply] if chunks == 1 else list(reply)
        scores = []
        for part, weights in zip(even_slices(len(rigs), chunks), decoded, strict=True):
            scorer = self._scorers[self._turn % len(self._scorers)]
            self._turn += 1
            scores.append(scorer.score.remote(mesh, rigs[part], weights, pose_seed))
        return decoded, scores

    def wait_for_workers(self) -> None:
        """Wait up to `timeout_s` until dead actors have restarted: until then every call fails at once."""
        ready = [
            actor.__ray_ready__.options(max_task_retries=-1).remote()
            for actor in (self._decoder, *self._scorers)
        ]
        ray.wait(ready, num_returns=len(ready), timeout=self.timeout_s)

    def close(self) -> None:
        """Stop the actors if this process started them; disconnect from Ray if this process connected."""
        if ray.is_initialized():
            if self._owner:
                for actor in (*self._scorers, self._decoder, self._registry):
                    ray.kill(actor)
            if self._connected:
                ray.shutdown()
        self._adopt([])
        self._owner, self._connected = False, False


class _PendingGroup:
    """A submitted group, retried as a whole after a time-out or a system failure."""

    def __init__(
        self, service: RayRewardService, mesh: StoredMesh, rigs: list[RolloutRig | None], pose_seed: int
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
                # Tasks still queued must not delay the next attempt.
                for reference in (*self._scores, *self._decoded):
                    ray.cancel(reference)
            except RayError as error:
                if not _is_system_failure(error):
                    raise  # an application error: a retry would hide it
                failure = _reason(error)
                self._service.wait_for_workers()
            else:
                scores = merge_invalid(self._rigs, [score for part in parts for score in part[0]])
                return GroupScore(scores, sum(part[1] for part in parts), sum(part[2] for part in parts))
        scores = merge_invalid(self._rigs, [UNSCORED] * len(self._complete))
        return GroupScore(scores, 0.0, 0.0, failure=failure)


def _root_cause(error: BaseException) -> BaseException:
    """The first error: a task that depends on a failed one fails with that one's error as its cause."""
    while isinstance(error, RayTaskError) and error.cause is not None:
        error = error.cause
    return error


def _is_system_failure(error: RayError) -> bool:
    """Whether a worker or the object store failed, not the code that ran there."""
    cause = _root_cause(error)
    return isinstance(cause, RayError) and not isinstance(cause, RayTaskError)


def _reason(error: RayError) -> str:
    """A Ray error in one line: its first, or the last of a traceback, which names the cause."""
    cause = _root_cause(error)
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    if not lines:
        return type(cause).__name__
    line = lines[-1] if "ray::" in lines[0] or "Traceback" in lines[0] else lines[0]
    return f"{type(cause).__name__}: {line}"


def _connect(address: str | None, namespace: str, workers: int) -> bool:
    """Connect to Ray unless this process is connected; True if it was not (so that `close` disconnects)."""
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Actors that request no GPU still see all of them.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"namespace": namespace, "log_to_driver": False, "logging_level": "error"}
    if address is None:
        if (problem := ray_folder_problem()) is not None:
            raise RayUnavailableError(f"a local Ray cannot start: {problem}")
        # "local": otherwise Ray joins any cluster named by RAY_ADDRESS or left by an earlier run.
        # At least one slot per scoring worker: on a small machine they share cores.
        slots = max(workers, os.cpu_count() or 1)
        options |= {"address": "local", "num_cpus": slots, "include_dashboard": False}
    else:
        options["address"] = address
    try:
        _check_reachable(address)
        ray.init(**options)
    except (OSError, RuntimeError, ValueError) as error:
        where = "a local Ray" if address is None else f"Ray at '{address}'"
        raise RayUnavailableError(
            f"{where} could not be reached ({str(error).splitlines()[0]}); check 'ray.address'"
        ) from error
    return True


def _check_reachable(address: str | None) -> None:
    """Raise OSError if nothing listens at `host:port`: Ray itself would keep trying for many minutes."""
    host, separator, port = (address or "").rpartition(":")
    if separator and port.isdigit() and "//" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _python_path() -> str:
    """The workers' PYTHONPATH: this checkout first, so that they run the same code."""
    root = str(Path(__file__).resolve().parent.parent)
    return os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
