"""Checks processes, threads and scoring workers against the cores that this process may use."""

from __future__ import annotations

import os
from pathlib import Path

from rl.preflight.finding import Finding, counted, ok, warning
from rl.preflight.launch import Launch
from rl.recipe import Recipe

# Below this many weights of the language model, a second thread mostly waits for the first: a step is
# thousands of small operations (docs/performance.md).
SMALL_MODEL = 20_000_000
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def usable_cores(limit_file: Path = _CPU_MAX) -> int:
    """Cores that this process may use: its affinity, within a container's limit."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = limit_file.read_text().split()
        return min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no limit
        return cores


def threads_per_process(launch: Launch, cores: int) -> int:
    """OMP_NUM_THREADS; without it all cores, of which accelerate gives each of several processes a share."""
    return launch.threads or max(1, cores // launch.local_processes)


def thread_finding(
    recipe: Recipe, launch: Launch, cores: int, cuda: bool, language_weights: int | None
) -> Finding:
    """One line on threads; warns of too many, and of a second thread that a small model cannot use."""
    processes, threads = launch.local_processes, threads_per_process(launch, cores)
    text = f"{counted(processes, 'process', 'es')} x {counted(threads, 'thread')} on {counted(cores, 'core')}"
    if not cuda and processes * threads > cores:
        return warning(
            "threads",
            f"{text}: they wait for each other; set OMP_NUM_THREADS={max(1, cores // processes)}"
            + (f" or launch at most {cores} processes" if processes > cores else ""),
        )
    small = language_weights is not None and language_weights < SMALL_MODEL
    if small and not cuda and processes == 1 and threads > 1:
        return warning(
            "threads",
            f"{text}: on so small a model a second thread mostly waits; set OMP_NUM_THREADS=1 "
            f"and start {cores} processes with python -m rl.launch (recipes/accelerate/two_cores.yaml), "
            "each with its share of train.per_device_train_batch_size",
        )
    workers = recipe.workers.count
    if recipe.workers.backend == "ray" and recipe.ray.address is None and workers > cores:
        return warning(
            "threads", f"{text}: {workers} scoring workers share them; set workers.count={cores} or less"
        )
    return ok("threads", text)
