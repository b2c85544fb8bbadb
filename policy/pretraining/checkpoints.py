"""Saves pre-training checkpoints atomically, keeps the last one, and loads it to resume."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from data.typed_recipe import RecipeError
from policy.layers.finite import damage, non_finite_names, refuse_to_save, training_state
from policy.pretraining.metrics_log import RunningMeans


def save_checkpoint(
    accelerator: Accelerator,
    output: Path,
    step: int,
    means: RunningMeans,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write `state-<step>` under a temporary name, rename it, and delete older checkpoints.

    Raises RunFailedError on all processes, and keeps the older ones, if a weight or moment is not finite.
    """
    refuse_to_save(_not_finite(model, optimizer), f"state-{step}")
    partial, final, old = output / "state.partial", output / f"state-{step}", output / "state.old"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    # Silences a note about tied weights, which would break the progress bar.
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (partial / "means.json").write_text(json.dumps(means.state()))
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():  # from an earlier run, when this one started over
            os.replace(final, old)
        os.replace(partial, final)
        for other in (old, *(path for path in _states(output) if path != final)):
            shutil.rmtree(other, ignore_errors=True)
    accelerator.wait_for_everyone()


def load_checkpoint(
    accelerator: Accelerator, output: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, RunningMeans]:
    """Load the last checkpoint; (steps done, running means), or (0, empty means) if there is none.

    Raises RecipeError if the checkpoint has different sizes or a different optimizer, or is not finite.
    """
    states = _states(output)
    if not states:
        return 0, RunningMeans()
    last = states[-1]
    try:
        accelerator.load_state(str(last))
    except (RuntimeError, ValueError, KeyError) as error:  # KeyError: another optimizer's groups
        raise RecipeError(
            f"'loop.output_dir': '{last}' is a checkpoint of a different model size or optimizer; choose "
            "another directory, or start over with loop.resume=false"
        ) from error
    not_finite = _not_finite(model, optimizer)
    if not_finite:
        raise RecipeError(f"'loop.output_dir': {damage(last, not_finite)}")
    means = last / "means.json"
    return _step_of(last), RunningMeans(json.loads(means.read_text()) if means.is_file() else None)


def _not_finite(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of weights and moments that are not finite on any process."""
    return sorted(set(gather_object(non_finite_names(training_state(model, optimizer)))))


def _states(output: Path) -> Sequence[Path]:
    """Complete checkpoints, oldest first."""
    paths = output.glob("state-*")
    return sorted((path for path in paths if path.name.removeprefix("state-").isdigit()), key=_step_of)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("state-"))
