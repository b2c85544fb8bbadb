"""Opens the reward service that a recipe names (inline or Ray); other ranks join rank 0's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from data.command_line import RunFailedError
from data.typed_recipe import RecipeError
from policy.bundle import RigPolicy, find_skin_vae
from rewards.service import InlineRewardService, RewardService
from rl.recipe import Recipe, reward_settings

# `rewards.ray_service` is imported where it is used: the inline backend needs no Ray, and Ray reads this
# variable when it is imported.
_RAY_AUTH_MODE = "RAY_AUTH_MODE"


@contextmanager
def reward_service(recipe: Recipe, policy: RigPolicy) -> Iterator[RewardService]:
    """The recipe's reward service, closed on exit; raises RunFailedError if Ray is unavailable."""
    settings = reward_settings(recipe)
    workers = recipe.workers
    _check_device(recipe)
    service: RewardService
    if workers.backend == "inline":
        service = InlineRewardService(
            policy.skin_vae, settings, workers.decoder_device, dtype=workers.decoder_dtype
        )
    else:
        from rewards.ray_service import RayRewardService, RayUnavailableError

        try:
            service = RayRewardService(
                find_skin_vae(recipe.policy.path, recipe.policy.skin_vae),
                settings,
                workers=workers.count,
                timeout_s=workers.timeout_s,
                retries=workers.retries,
                device=workers.decoder_device,
                dtype=workers.decoder_dtype,
                address=recipe.ray.address,
                namespace=recipe.ray.namespace,
            )
        except RayUnavailableError as error:
            raise RunFailedError(str(error)) from error
    try:
        yield service
    finally:
        service.close()


def _check_device(recipe: Recipe) -> None:
    """Refuse an unknown decoder device, one that cannot do the decoder's dtype, and one this machine lacks if
    the decoder runs on this machine."""
    name = recipe.workers.decoder_device
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RecipeError(
            f"'workers.decoder_device' '{name}' is not a device; use cpu, cuda or cuda:N"
        ) from error
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
def shared_service(recipe: Recipe, policy: RigPolicy) -> Iterator[RewardService]:
    """The reward service of this rank: with Ray, rank 0 starts it and the others join; inline, one each."""
    state = PartialState()
    if state.num_processes == 1 or recipe.workers.backend == "inline":
        with reward_service(recipe, policy) as service:
            yield service
        return
    if state.is_main_process:
        from rewards.ray_service import RayRewardService

        with reward_service(recipe, policy) as service:
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

    timeout, retries = recipe.workers.timeout_s, recipe.workers.retries
    yield RayRewardService.join(ServiceAddress(**address), timeout_s=timeout, retries=retries)
    state.wait_for_everyone()
