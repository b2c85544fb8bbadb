"""The reward service on Ray: creates the actors, submits groups, and has them scored again after failures."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rewards.custom import find_reward, import_folder
from rewards.deadlines import WorkerLimits
from rewards.quarantine import QuarantinedMesh, QuarantineFile
from rewards.ray_actors import PULSE, DecoderActor, ScoringActor, StoredMesh, SupervisorName
from rewards.ray_connection import (
    RayUnavailableError,
    connect,
    disconnect,
    python_path,
    reason_of,
)
from rewards.ray_pending import Attempts, PendingGroup, QuietError
from rewards.ray_supervisor import Supervisor
from rewards.ray_watch import ServiceWatch
from rewards.score import RewardSettings
from rewards.worker import RewardMesh, RolloutRig, ServiceHealth, check_prepared, with_progress

if TYPE_CHECKING:
    from rewards.service import PendingGroupScore
    from rewards.skin_decoder import DecoderDtype

# One thread per actor: parallelism comes from the actors, and sums keep their order.
_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
# Seconds between looks at the watch while waiting for Ray.
_SLICE_S = 0.2
# Calls that the supervisor answers at once: two from each worker, and from each process of the job.
_SUPERVISOR_THREADS = 32


@dataclass(frozen=True)
class ServiceAddress:
    """Where other processes of the job find the service; plain data, so that it can be broadcast."""

    ray_address: str
    namespace: str
    name: str
    workers: int

    @property
    def supervisor(self) -> str:
        """Name of the supervisor actor, which also holds the meshes."""
        return f"{self.name}-supervisor"

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

    A supervisor actor knows what each worker does since when. It kills a worker that misses its deadline
    (`rewards.deadlines`); Ray starts another, and the work is done again, with the same numbers. A mesh that
    stops workers twice without being scored in between is quarantined: its rigs have no score from then on
    (`RolloutScore.rewards` is None, the reason in `GroupScore.failure`). Application errors are not retried
    and reach the caller.

    Args:
        skin_vae: directory of the frozen VAE, readable where the decoder runs.
        settings: the rewards' parameters.
        workers: number of scoring actors, one CPU each, and of groups that a CPU decodes at once.
        limits: deadlines, retries and budgets.
        device: torch device of the decoder: `cpu`, `cuda` (the GPU that Ray assigns) or `cuda:N`.
        dtype: of the decoder, see `SkinDecoder`.
        address: address of a running Ray cluster; None starts a local one.
        namespace: Ray namespace of the actors' names.
        quarantine: meshes quarantined by an earlier run, and the file for further ones.
        abandon: set by another thread to give up starting.

    Raises:
        CustomRewardError: one of `settings.custom` cannot be imported.
        RayUnavailableError: there is no cluster at the address, no room for the actors within
            `limits.startup_timeout_s`, or an actor cannot start. All other methods raise it when the cluster
            or the supervisor died, or a budget of `limits` is exhausted.
    """

    def __init__(
        self,
        skin_vae: str | Path,
        settings: RewardSettings,
        *,
        workers: int = 2,
        limits: WorkerLimits | None = None,
        device: str = "cpu",
        dtype: DecoderDtype = "float32",
        address: str | None = None,
        namespace: str = "tokenrig-rl",
        quarantine: QuarantineFile | None = None,
        abandon: threading.Event | None = None,
    ) -> None:
        limits = limits or WorkerLimits()
        self._connected = connect(address, namespace, workers)
        self._owner = True
        self._watch: ServiceWatch | None = None
        self._quarantine_file = quarantine or QuarantineFile(None)
        context = ray.get_runtime_context()
        where = ServiceAddress(context.gcs_address, namespace, f"rewards-{uuid.uuid4().hex[:8]}", workers)
        for place in settings.custom:
            find_reward(place)
        folders = map(import_folder, settings.custom)
        environment = {"env_vars": {**_THREADS, "PYTHONPATH": python_path(folders)}}
        common = {"namespace": namespace, "runtime_env": environment}
        # Tasks are repeated by this class, which knows whether their mesh is to blame. In order, an actor
        # would wait 30 s for the place of a cancelled task in its queue.
        restart = {
            "max_restarts": limits.max_restarts,
            "max_task_retries": 0,
            "allow_out_of_order_execution": True,
        }
        # On this node: without it the job has ended anyway.
        here = NodeAffinitySchedulingStrategy(context.get_node_id(), soft=False)
        supervisor = (
            ray.remote(Supervisor)
            .options(
                name=where.supervisor,
                num_cpus=0,
                max_concurrency=_SUPERVISOR_THREADS,
                scheduling_strategy=here,
                **common,
            )
            .remote(limits, self._quarantine_file.meshes)
        )
        supervisor_name = SupervisorName(where.supervisor, namespace)
        # A nominal fraction of a GPU: the decoder shares it with the training. `cuda:N` needs all GPUs
        # visible.
        gpus = 0.01 if device == "cuda" else 0
        # On a CPU, groups are decoded side by side, each by one thread, as scoring is: while this process
        # waits for rewards, no core is idle. A GPU decodes one after the other.
        at_once = workers if device == "cpu" else 1
        remote = ray.remote(concurrency_groups={PULSE: 1})
        decoder = (
            remote(DecoderActor)
            .options(
                name=where.decoder,
                num_cpus=0,
                num_gpus=gpus,
                max_concurrency=at_once,
                **restart,
                **common,
            )
            .remote("decoder", supervisor_name, str(Path(skin_vae).resolve()), device, dtype)
        )
        scorers = [
            remote(ScoringActor)
            .options(name=name, num_cpus=1, scheduling_strategy="SPREAD", **restart, **common)
            .remote(f"scorer-{i}", supervisor_name, settings)
            for i, name in enumerate(where.scorers)
        ]
        self._set_up(where, supervisor, decoder, scorers, limits)
        try:
            self._await_start(device, abandon or threading.Event())
            ray.get(supervisor.watch.remote(self._workers()))
            self._watch = ServiceWatch(supervisor, self._list_quarantined)
        except RayUnavailableError:
            self.close()
            raise
        except RayError as error:
            self.close()
            raise RayUnavailableError(
                f"a reward worker could not start ({reason_of(error)}); check 'workers.decoder_device', "
                f"'workers.decoder_dtype' and the skin VAE in '{skin_vae}'"
            ) from error

    def _await_start(self, device: str, abandon: threading.Event) -> None:
        """Wait until all actors have started; raises RayUnavailableError and RayError."""
        pending = [
            actor.__ray_ready__.remote() for actor in (self._supervisor, self._decoder, *self._scorers)
        ]
        limit = time.monotonic() + self.limits.startup_timeout_s
        while pending:
            ready, pending = ray.wait(pending, num_returns=1, timeout=_SLICE_S)
            ray.get(ready)
            if abandon.is_set():
                raise RayUnavailableError("the reward workers were no longer needed while they started")
            if pending and time.monotonic() > limit:
                raise RayUnavailableError(
                    f"Ray had no room for {len(self._scorers)} scoring workers and a decoder on '{device}' "
                    f"within {self.limits.startup_timeout_s:g} s, or they start more slowly; lower "
                    "'workers.count', give Ray more CPUs, or raise 'workers.startup_timeout_s'"
                )

    @classmethod
    def join(cls, address: ServiceAddress, *, limits: WorkerLimits | None = None) -> RayRewardService:
        """Use the service that another process of this job started, with the meshes it prepared.

        Raises:
            RayUnavailableError: no such service is running.
        """
        limits = limits or WorkerLimits()
        connected = connect(address.ray_address, address.namespace, address.workers)
        service = cls.__new__(cls)
        service._owner, service._connected = False, connected
        service._quarantine_file = QuarantineFile(None)
        try:
            supervisor, decoder, *scorers = [
                ray.get_actor(name, namespace=address.namespace)
                for name in (address.supervisor, address.decoder, *address.scorers)
            ]
            service._set_up(address, supervisor, decoder, scorers, limits)
            service._adopt(ray.get(supervisor.latest.remote(), timeout=limits.startup_timeout_s))
            service._watch = ServiceWatch(supervisor, None)
        except (ValueError, RayError) as error:
            if connected:
                disconnect()
            raise RayUnavailableError(
                f"no reward service '{address.name}' is running at {address.ray_address}; "
                "the process that started it has exited: restart the job"
            ) from error
        return service

    def _set_up(
        self, address: ServiceAddress, supervisor: Any, decoder: Any, scorers: list[Any], limits: WorkerLimits
    ) -> None:
        self.address, self.limits = address, limits
        self._supervisor, self._decoder, self._scorers = supervisor, decoder, scorers
        self._turn = 0
        self._files: dict[str, str | None] = {}
        self._adopt([])

    def _workers(self) -> dict[str, Any]:
        return {"decoder": self._decoder} | {f"scorer-{i}": actor for i, actor in enumerate(self._scorers)}

    def _adopt(self, meshes: list[StoredMesh]) -> None:
        self._meshes = meshes
        self._reasons = [mesh.reason for mesh in meshes]

    # ------------------------------------------------------------ meshes

    def prepare_meshes(self, meshes: Sequence[RewardMesh]) -> list[str | None]:
        """See `RewardService`; the scoring actors share the work, and meshes prepared before cost nothing."""
        self.watch.check()
        order = [mesh.key for mesh in meshes]
        self._files |= {mesh.key: mesh.file for mesh in meshes}
        ray.get(self._supervisor.expect.remote(order))
        known = ray.get(self._supervisor.find.remote(order))
        missing = {mesh.key: mesh for mesh in meshes if mesh.key not in known}
        quarantined = {mesh.key: mesh for mesh in self.watch.fresh().quarantined}
        jobs = [_Preparation(self, mesh, quarantined.get(key)) for key, mesh in missing.items()]
        stored = [job.result() for job in with_progress(jobs, len(jobs))]
        self._adopt(ray.get(self._supervisor.publish.remote(stored, order)))
        self.watch.fresh()  # raises if too many were quarantined
        return list(self._reasons)

    def put(self, mesh: RewardMesh) -> Any:
        """Put a mesh into the object store; raises RayUnavailableError if that is full."""
        self.watch.check()
        try:
            return ray.put(mesh)
        except RayError as error:
            raise RayUnavailableError(
                f"mesh '{mesh.name}' could not be stored: {reason_of(error)}"
            ) from error

    def start_preparing(self, mesh: RewardMesh, source: Any) -> list[Any]:
        """Submit a mesh; returns references to (reason, number of vertices) and to the scoring mesh."""
        self.watch.check()
        units = len(mesh.vertices) + len(mesh.faces)
        return self._next_scorer().prepare.options(num_returns=2).remote(source, mesh.key, units)

    def _next_scorer(self) -> Any:
        self._turn += 1
        return self._scorers[(self._turn - 1) % len(self._scorers)]

    # ------------------------------------------------------------ groups

    @property
    def scorers(self) -> int:
        """Number of scoring actors."""
        return len(self._scorers)

    def submit(self, mesh: int, rigs: Sequence[RolloutRig | None], pose_seed: int) -> PendingGroupScore:
        """See `RewardService`."""
        check_prepared(mesh, self._reasons)
        self.watch.check()
        return PendingGroup(self, self._meshes[mesh], list(rigs), pose_seed)

    def start(
        self, mesh: StoredMesh, parts: Sequence[list[RolloutRig]], wanted: Sequence[int], pose_seed: int
    ) -> tuple[dict[int, Any], list[Any]]:
        """Submit one group: decoded in one batch, scored in parts by the scoring actors in turn.

        Args:
            mesh: of the group.
            parts: the rigs, split as they are scored.
            wanted: the parts to score.
            pose_seed: of the group.

        Returns:
            References to the scores, by part, and to the decoded parts.
        """
        self.watch.check()
        codes = [rig.codes for part in parts for rig in part]
        reply = self._decoder.decode.options(num_returns=len(parts)).remote(mesh, codes, len(parts))
        decoded = [reply] if len(parts) == 1 else list(reply)
        scores = {
            part: self._next_scorer().score.remote(mesh, parts[part], decoded[part], pose_seed)
            for part in wanted
        }
        return scores, decoded

    def wait(self, references: Sequence[Any]) -> None:
        """Wait until all of them have a value or an error.

        Raises:
            QuietError: no worker has done anything for `limits.timeout_s`.
            RayUnavailableError: the run must stop.
        """
        pending, events, since = list(references), -1, time.monotonic()
        while pending:
            _, pending = ray.wait(pending, num_returns=len(pending), timeout=_SLICE_S, fetch_local=False)
            self.watch.check()
            status = self.watch.status
            if status.running or status.events != events:
                events, since = status.events, time.monotonic()
            elif pending and time.monotonic() - since > self.limits.timeout_s:
                raise QuietError(f"no scores within {self.limits.timeout_s:g} s")

    def recover(self) -> None:
        """Wait until all workers answer, after one died: until then every call to it fails at once.

        Raises RayUnavailableError if the run must stop.
        """
        for actor in self._workers().values():
            answered = False
            while not answered:
                self.watch.check()
                reference = actor.pulse.options(max_task_retries=-1).remote()
                while not ray.wait([reference], timeout=_SLICE_S)[0]:
                    self.watch.check()
                try:
                    ray.get(reference)
                    answered = True
                except RayError:
                    time.sleep(_SLICE_S)  # dead for good: the supervisor is about to stop the run
        self.watch.fresh()

    def forget_strikes(self, mesh: StoredMesh) -> None:
        """A whole group of this mesh has been scored."""
        if mesh.key in self.watch.status.struck:
            self._supervisor.scored.remote(mesh.key)

    # ------------------------------------------------------------ health

    @property
    def watch(self) -> ServiceWatch:
        """The watch over the cluster and the workers."""
        if self._watch is None:
            raise RuntimeError("the reward service is closed")
        return self._watch

    def health(self) -> ServiceHealth:
        """See `SupervisedService`."""
        status = self.watch.status
        return ServiceHealth(status.restarts, status.hung, len(status.quarantined))

    def at_step(self, step: int | None) -> None:
        """See `SupervisedService`."""
        self._quarantine_file.step = step

    def _list_quarantined(self, mesh: QuarantinedMesh) -> str:
        """List a newly quarantined mesh in the file; returns what to tell the user."""
        self._quarantine_file.add(mesh, self._files.get(mesh.key))
        where = f"; listed in {path}" if (path := self._quarantine_file.path) is not None else ""
        return f"{mesh.sentence()}; its rigs are not scored from now on{where}"

    def close(self) -> None:
        """Stop the actors if this process started them; disconnect from Ray if this process connected."""
        dead = False
        if self._watch is not None:
            dead = self._watch.cluster_is_dead
            self._watch.stop()
        if ray.is_initialized():
            if self._owner and not dead:
                for actor in (*self._scorers, self._decoder, self._supervisor):
                    ray.kill(actor)
            if self._connected:
                disconnect()
        self._adopt([])
        self._owner, self._connected, self._watch = False, False, None


class _Preparation:
    """A mesh that is being prepared, again after a worker died."""

    def __init__(
        self, service: RayRewardService, mesh: RewardMesh, quarantined: QuarantinedMesh | None
    ) -> None:
        self._service, self._mesh = service, mesh
        self._quarantined = quarantined
        if quarantined is None:
            # This process owns the object, not an actor: objects are lost with their owner.
            self._source = service.put(mesh)
            self._attempts = Attempts(service, mesh.key)
            self._replies = service.start_preparing(mesh, self._source)

    def result(self) -> StoredMesh:
        """The prepared mesh. One that stopped workers while it was prepared is refused; one that did later
        has no scores."""
        mesh = self._mesh
        while self._quarantined is None:
            failure = self._attempts.outcome({0: self._replies[0]})
            if failure is None:
                reason, vertices = self._attempts.values[0]
                return StoredMesh(mesh.key, mesh.name, reason, vertices, self._source, self._replies[1])
            self._quarantined = self._attempts.quarantined
            if self._quarantined is None:
                if self._attempts.exhausted:
                    reason = f"no worker could prepare it ({failure}); simplify the mesh if it is large"
                    return StoredMesh(mesh.key, mesh.name, f"{mesh.name}: {reason}", 0, None, None)
                self._attempts.begin()
                self._replies = self._service.start_preparing(mesh, self._source)
        refused = f"{mesh.name}: {self._quarantined.sentence()}"
        reason = refused if self._quarantined.stage == "prepare" else None
        return StoredMesh(mesh.key, mesh.name, reason, 0, None, None)
