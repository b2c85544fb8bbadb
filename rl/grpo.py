"""GRPO from Python: `train(load_recipe(...))` trains a policy as the training command does."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from data.run_lock import refuse_live_owner
from data.stop_signals import handling_stop_signals, is_first_rank
from data.wandb_id import refuse_shared_directory
from rl.recipe import Recipe

if TYPE_CHECKING:
    from rl.trained_run import TrainedRun


def train(recipe: Recipe) -> TrainedRun:
    """Train a policy with GRPO in this process: evaluate, train, evaluate again, export, rig one mesh.

    Everything is written to `output_dir`, where a call with the same recipe resumes an interrupted run.
    Progress goes to standard error. For the call, Ctrl-C (a notebook's interrupt), SIGTERM and SIGUSR1 finish
    the step and save it; `train_guard.stop_after_minutes` counts from its beginning.

    Raises:
        RecipeError, MeshError: the recipe or its meshes cannot be used, or a live run holds `output_dir`.
        RunFailedError: the run failed, for the reason in its message.
        StopRun: a signal or the clock stopped it after a step, which is saved; a KeyboardInterrupt.
    """
    with handling_stop_signals(until_the_end=False):
        return run_training(recipe, time.time())


def run_training(recipe: Recipe, began: float | None = None) -> TrainedRun:
    """What `train` does, for a command that handles the stop signals itself, in any number of processes.

    began: when the clock of the run started, in seconds since the epoch; None for the command's start.
    """
    if is_first_rank():  # the others may find the lock of their own run
        refuse_shared_directory(Path(recipe.output_dir))
        refuse_live_owner(Path(recipe.output_dir))  # before libraries and Ray take their time

    from rl.library_settings import importing, quiet_libraries

    with importing():  # takes seconds: not for --help
        quiet_libraries()
        from rl.preflight.at_start import check_start
        from rl.reward_service import starting_service

    check_start(recipe)
    with starting_service(recipe) as start:
        with importing():  # takes longest: Ray and its workers start meanwhile
            from rl import training

        return training.train(recipe, start, began=began)
