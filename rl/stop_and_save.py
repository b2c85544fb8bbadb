"""Ends a step with a save, or the run, when a signal or the clock says so; all processes decide alike."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from data.stop_signals import StopRun, StopSignals
from policy.pretraining.processes import largest
from rl.recipe.run_control import TrainGuardRecipe


class StopAndSave(TrainerCallback):
    """Checked at the end of each step: stop signals of any process, and the clock of the main one.

    A stop logs the step's metrics and saves a checkpoint first, so that no step is lost. The decision is the
    largest value over all processes, one small all-reduce per step: a signal may reach only one of them, or
    reach them in different steps. Must run before the callbacks that save and report.

    Args:
        signals: this process's.
        guard: the recipe's `train_guard`.
        started: when the command started, in seconds since the epoch.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        signals: StopSignals,
        guard: TrainGuardRecipe,
        started: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.signals, self.guard, self.started, self._clock = signals, guard, started, clock
        self.stopped_by: int | None = None
        """The signal that ended training, 0 for the clock, None if training ended by itself."""
        self._saved = 0.0
        self._step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the time to the first save."""
        self._saved = self._clock()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Request a save, or a save and the end of training."""
        self._step = state.global_step
        signum, time_is_up, save = self._agree()
        if signum or time_is_up:
            self.stopped_by = signum
            control.should_log = control.should_save = control.should_training_stop = True
        elif save:
            control.should_save = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop here if a signal came or the time ran out while the checkpoint was written."""
        self._saved = self._clock()
        signum, time_is_up, _ = self._agree()
        if self.stopped_by is None and (signum or time_is_up):
            self.stopped_by = signum
            control.should_log = control.should_training_stop = True

    def raise_if_stopped(self, max_steps: int) -> None:
        """After training: StopRun if a signal or the clock ended it, with exit code 0 for the clock.

        From then on only SIGINT counts: what is left is to close.
        """
        if self.stopped_by is None:
            return
        self.signals.closing()
        why = (
            signal.Signals(self.stopped_by).name
            if self.stopped_by
            else f"train_guard.stop_after_minutes={self.guard.stop_after_minutes:g}"
        )
        raise StopRun(
            self.stopped_by,
            f"{why}: stopped after step {self._step} of {max_steps}, which is saved; run the same command "
            "again to resume",
            together=True,
        )

    def _agree(self) -> tuple[int, bool, bool]:
        """(signal or 0, time is up, save) as all processes see it."""
        now, stop, save = self._clock(), self.guard.stop_after_minutes, self.guard.save_every_minutes
        main = PartialState().is_main_process
        own = [
            self.signals.requested,
            int(main and stop is not None and now - self.started >= 60 * stop),
            int(main and save is not None and now - self._saved >= 60 * save),
        ]
        signum, time_is_up, save_now = largest(own)
        return signum, bool(time_is_up), bool(save_now)
