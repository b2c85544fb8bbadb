"""Times a piece of work on a device, including the GPU work that it has queued."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import torch

A = TypeVar("A")


def timed(work: Callable[[], A], device: torch.device) -> tuple[A, float]:
    """The result of `work` and its wall-clock time in seconds; on CUDA, from idle to idle."""
    _wait(device)
    start = time.perf_counter()
    result = work()
    _wait(device)
    return result, time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
