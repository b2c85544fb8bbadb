"""Marks the phases of a training step (rollout, log-probs, reward wait, update) for profiles and timings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

from torch.profiler import record_function
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

ROLLOUT, LOG_PROBS, REWARD_WAIT, UPDATE = "rollout", "log-probs", "reward wait", "update"


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


class UpdatePhase(TrainerCallback):
    """The update of a step: from its first loss (`begin`) to the end of the step, optimiser included."""

    def __init__(self) -> None:
        self._open: ExitStack | None = None

    def begin(self) -> None:
        """Begin the phase unless an earlier micro-batch of the step has."""
        if self._open is None:
            self._open = ExitStack()
            self._open.enter_context(phase(UPDATE))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End the phase."""
        if self._open is not None:
            self._open.close()
            self._open = None
