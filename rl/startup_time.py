"""Measures the time from the command to the first step, and adds it to that step's metrics."""

from __future__ import annotations

import sys
import time
from typing import Any

import psutil
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from data.launcher import is_launcher


class StartupTime(TrainerCallback):
    """Adds `seconds/startup` to the metrics of the first step of this process.

    It is the time from the start of the command, launcher included, to the beginning of the step, without
    the evaluation before training. Must run before the reporting callbacks.

    Args:
        began: when the command started, in seconds since the epoch.
        evaluation_seconds: how long that evaluation took.
    """

    def __init__(self, began: float, evaluation_seconds: float = 0.0) -> None:
        self.began, self.evaluation_seconds = began, evaluation_seconds
        self._seconds: float | None = None
        self._logged = False

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the time of the first step."""
        if self._seconds is None:
            self._seconds = time.time() - self.began - self.evaluation_seconds

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add it to the first metrics of a step."""
        if logs is not None and "step_time" in logs and not self._logged and self._seconds is not None:
            logs["seconds/startup"] = self._seconds
            self._logged = True


def command_start(script: str | None = None) -> float:
    """When the command that runs this script started, in seconds since the epoch.

    A launcher such as `accelerate launch` passes on the script's path, so the command is the oldest of this
    process and its ancestors, without a gap, that has it among its arguments.

    Args:
        script: path as on the command line; that of this process if not given.
    """
    name = sys.argv[0] if script is None else script
    process = psutil.Process()
    start = process.create_time()
    for ancestor in process.parents():
        try:
            arguments = ancestor.cmdline()
        except psutil.Error:  # it has ended, or belongs to another user
            break
        if name not in arguments and not is_launcher(ancestor.pid):
            break
        start = ancestor.create_time()
    return start
