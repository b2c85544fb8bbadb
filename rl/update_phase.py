"""Marks the update of a step, from its first loss to the end of the optimiser's step, as a phase."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rl.phases import UPDATE, phase


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
