"""Opens the reward service that a recipe names (inline or Ray); other ranks join rank 0's."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, get_int_from_env

from data.command_line import RunFailedError
from data.typed_recipe import RecipeError
from policy.policy_folder import PolicyError, find_skin_vae
from rewards.deadlines import WorkerLimits
from rewards.quarantine import QUARANTINE_FILE, QuarantineFile
from rewards.service import InlineRewardService, RewardService
from rl.recipe import Recipe, reward_settings

if TYPE_CHECKING:
    from policy.bundle import RigPolicy

# This module is imported before the trainer's libraries, which load while Ray starts: keep transformers and
# TRL out of it. `rewards.ray_service` is imported where it is used: the inline backend needs no Ray, and Ray
# reads this variable when it is imported.
_RAY_AUTH_MODE = "RAY_AUTH_MODE"
_IMPORTED_BY_RAY = ("click", "pyarrow.json", "pydantic.v1")
# Variables that hold the number of processes, from torchrun and MPI.
_WORLD_SIZE = ["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"]


class ServiceStart:
    """Starts a recipe's reward service in the background: this process loads libraries and meshes meanwhile.

    With Ray, starting processes and importing in them takes most of the time from the command to the first
    step. The inline service needs the policy, and is created when it is requested.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        # Lives as long as the service: the system kills a local Ray with the thread that started it.
        self._thread = ThreadPoolExecutor(1)
        self._started: Future[RewardService] | None = None
        self._abandon = threading.Event()

    def begin(self) -> None:
        """Start Ray and its actors now, unless that was done before; does not wait for them.

        Raises:
            RecipeError: the decoder's device is unknown or not there.
            RunFailedError: the list of quarantined meshes in `output_dir` cannot be read.
        """
        _check_device(self.recipe)
        if self.recipe.workers.backend == "inline" or self._started is not None:
            return
        policy = self.recipe.policy
        try:
            skin_vae = find_skin_vae(policy.path, policy.skin_vae)
        except PolicyError:
            return  # loading the policy reports it
        try:
            quarantine = QuarantineFile(Path(self.recipe.output_dir) / QUARANTINE_FILE, self.recipe.resume)
        except ValueError as error:
            raise RunFailedError(str(error)) from error
        # What Ray imports while it starts, imported first by this thread: when two threads import the same
        # packages, one can see half of a module.
        for name in _IMPORTED_BY_RAY:
            import_module(name)
        from rewards.ray_service import RayRewardService

        workers, settings = self.recipe.workers, reward_settings(self.recipe)
        self._started = self._thread.submit(
            RayRewardService,
            skin_vae,
            settings,
            workers=workers.count,
            limits=worker_limits(self.recipe),
            device=workers.decoder_device,
            dtype=workers.decoder_dtype,
            address=self.recipe.ray.address,
            namespace=self.recipe.ray.namespace,
            quarantine=quarantine,
            abandon=self._abandon,
        )

    def service(self, policy: RigPolicy) -> RewardService:
        """The service, once it is ready; `policy` is the recipe's.

        Raises:
            RunFailedError: Ray is unavailable.
            RecipeError: as in `begin`.
        """
        self.begin()
        if self._started is None:
            workers = self.recipe.workers
            return InlineRewardService(
                policy.skin_vae,
                reward_settings(self.recipe),
                workers.decoder_device,
                dtype=workers.decoder_dtype,
            )
        return self._started.result()

    def close(self) -> None:
        """Close a service that was started; one that still waits for Ray's resources gives up."""
        self._abandon.set()
        if self._started is not None and self._started.exception() is None:
            self._started.result().close()
        self._thread.shutdown()


def worker_limits(recipe: Recipe) -> WorkerLimits:
    """The recipe's deadlines and budgets for reward workers and for meshes that stop them."""
    workers = recipe.workers
    return WorkerLimits(
        timeout_s=workers.timeout_s,
        min_deadline_s=workers.min_deadline_s,
        startup_timeout_s=workers.startup_timeout_s,
        retries=workers.retries,
        max_restarts=workers.max_restarts,
        max_quarantined=recipe.data.max_quarantined,
    )


@contextmanager
def starting_service(recipe: Recipe) -> Iterator[ServiceStart]:
    """The start of the recipe's reward service, which is closed on exit.

    A single process begins at once. Processes of a distributed run do when they know their rank.
    """
    start = ServiceStart(recipe)
    try:
        if get_int_from_env(_WORLD_SIZE, 1) == 1:
            start.begin()
        yield start
    finally:
        start.close()


@contextmanager
def reward_service(recipe: Recipe, policy: RigPolicy) -> Iterator[RewardService]:
    """The recipe's reward service, closed on exit; raises RunFailedError if Ray is unavailable."""
    with starting_service(recipe) as start:
        yield start.service(policy)


def _check_device(recipe: Recipe) -> None:
    """Refuse a decoder device that cannot do the decoder's dtype, and one this machine lacks if the decoder
    runs on this machine."""
    name = recipe.workers.decoder_device
    device = torch.device(name)
    if recipe.workers.decoder_dtype == "tf32" and device.type != "cuda":
        raise RecipeError(
            f"'workers.decoder_dtype' is tf32 but 'workers.decoder_device' is '{name}'; tf32 needs CUDA: use "
            "float32 or bfloat16"
        )
    local = recipe.workers.backend == "inline" or recipe.ray.address is None
    if local and device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RecipeError(
            f"'workers.decoder_device' is '{name}' but this machine has {torch.cuda.device_count()} CUDA "
            "devices; set it to cpu"
        )


@contextmanager
def shared_service(start: ServiceStart, policy: RigPolicy) -> Iterator[RewardService]:
    """The reward service of this rank: with Ray, rank 0 starts it and the others join; inline, one each.

    `start` closes what it started.
    """
    state, recipe = PartialState(), start.recipe
    if state.num_processes == 1 or recipe.workers.backend == "inline":
        yield start.service(policy)
        return
    if state.is_main_process:
        from rewards.ray_service import RayRewardService

        service = start.service(policy)
        assert isinstance(service, RayRewardService)
        # Ray enables its token authentication only in the process that starts a cluster.
        broadcast_object_list([asdict(service.address), os.environ.get(_RAY_AUTH_MODE)])
        yield service
        state.wait_for_everyone()
        return
    received: list[Any] = [None, None]
    broadcast_object_list(received)
    address, auth_mode = received
    if auth_mode is not None:
        os.environ[_RAY_AUTH_MODE] = auth_mode
    from rewards.ray_service import RayRewardService, ServiceAddress

    yield RayRewardService.join(ServiceAddress(**address), limits=worker_limits(recipe))
    state.wait_for_everyone()
