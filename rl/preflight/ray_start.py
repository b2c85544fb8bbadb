"""Checks whether Ray can start here (folder, shared memory) or whether an external cluster has room."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rewards.ray_folder import ray_folder_problem
from rl.preflight.finding import Finding, in_bytes, ok, problem, warning
from rl.recipe import Recipe

# Ray's object store needs it: meshes, rigs and weights of a step, tens of MiB. Docker's default is 64 MiB.
LEAST_SHARED_MEMORY = 1 << 30
# Ray refuses to spill objects when its disk is fuller.
_FULL = 0.95
_SHARED_MEMORY = Path("/dev/shm")


def local_finding(recipe: Recipe, shared_memory: int | None, folder_used: float) -> Finding:
    """Whether a local Ray can start.

    shared_memory: free bytes of /dev/shm, None where there is none; folder_used: the full share of the disk
    that holds Ray's folder.
    """
    reason = ray_folder_problem()
    if reason is not None:
        return problem("Ray", f"a local Ray cannot start: {reason}")
    if folder_used > _FULL:
        return warning(
            "Ray",
            f"the disk of {ray_folder()} is {folder_used:.0%} full, where Ray writes its logs and spills "
            "objects; free space, or set RAY_TMPDIR",
        )
    if shared_memory is not None and shared_memory < LEAST_SHARED_MEMORY:
        return warning(
            "Ray",
            f"/dev/shm has {in_bytes(shared_memory)} free, so Ray keeps objects on disk, which is slow; give "
            "the container more (docker run --shm-size=4g)",
        )
    shm = "" if shared_memory is None else f", {in_bytes(shared_memory)} of shared memory"
    return ok("Ray", f"starts here with {recipe.workers.count} scoring workers and a decoder{shm}")


def ray_folder(environment: Mapping[str, str] = os.environ) -> str:
    """The folder of a local Ray."""
    return environment.get("RAY_TMPDIR") or environment.get("TMPDIR") or tempfile.gettempdir()


def local_ray(recipe: Recipe) -> Finding:
    """`local_finding` of this machine."""
    shared = shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.is_dir() else None
    folder = ray_folder()
    used = 0.0
    if os.path.isdir(folder):
        usage = shutil.disk_usage(folder)
        used = 1 - usage.free / max(1, usage.total)
    return local_finding(recipe, shared, used)


def cluster_finding(recipe: Recipe, available: Mapping[str, float]) -> Finding:
    """Whether a cluster's free resources hold the actors: one CPU per scorer, a share of a GPU."""
    workers, address = recipe.workers.count, recipe.ray.address
    cpus, gpus = available.get("CPU", 0.0), available.get("GPU", 0.0)
    if cpus < workers:
        return problem(
            "Ray",
            f"the cluster at '{address}' has {cpus:g} free CPUs for {workers} scoring workers; wait, add "
            f"nodes, or set workers.count={int(cpus)}",
        )
    if recipe.workers.decoder_device == "cuda" and gpus < 0.01:
        return problem(
            "Ray",
            f"the cluster at '{address}' has no free GPU for the decoder; set workers.decoder_device=cpu",
        )
    return ok("Ray", f"the cluster at '{address}' has room: {cpus:g} CPUs and {gpus:g} GPUs free")


def external_ray(recipe: Recipe) -> Finding:
    """Connect to the recipe's cluster and look at what is free."""
    import ray

    from rewards.ray_connection import RayUnavailableError, connect, disconnect

    assert recipe.ray.address is not None
    try:
        connected = connect(recipe.ray.address, recipe.ray.namespace, recipe.workers.count)
    except RayUnavailableError as error:
        return problem("Ray", str(error))
    try:
        available: dict[str, Any] = ray.available_resources()
    finally:
        if connected:
            disconnect()
    return cluster_finding(recipe, available)
