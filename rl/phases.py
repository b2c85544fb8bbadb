"""Marks the phases of a run (rollout, log-probs, reward wait, update, …) for profiles and timings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from torch.profiler import record_function

ROLLOUT, LOG_PROBS, REWARD_WAIT, UPDATE = "rollout", "log-probs", "reward wait", "update"
EVALUATION, CHECKPOINT, EXPORT, RIG = "evaluation", "checkpoint", "export", "rig"


class PhaseWatcher(Protocol):
    """Is called at both ends of every phase while it is registered with `watching`."""

    def begins(self, name: str) -> None: ...

    def ends(self, name: str) -> None: ...


_watchers: list[PhaseWatcher] = []


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Mark a block as a phase: a range of that name in profiles; watchers are called at both ends."""
    with record_function(name):
        for watcher in _watchers:
            watcher.begins(name)
        try:
            yield
        finally:
            for watcher in _watchers:
                watcher.ends(name)


@contextmanager
def watching(watcher: PhaseWatcher) -> Iterator[None]:
    """Register a watcher for the block."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)
