"""Saves pre-training checkpoints atomically, keeps the last one, and loads it to resume."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn

from data.command_line import RunFailedError
from data.disk_space import free_bytes, mount_point, readable, require_space, write_failure
from data.manifest import MANIFEST_FILE, damage, folder_bytes, read_manifest, sync, write_manifest
from data.typed_recipe import RecipeError
from policy.layers.finite import non_finite_names, not_finite_message, refuse_to_save, training_state
from policy.pretraining.metrics_log import RunningMeans
from policy.pretraining.processes import exit_together
from policy.pretraining.validation import Validator


def save_checkpoint(
    accelerator: Accelerator,
    output: Path,
    step: int,
    means: RunningMeans,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    validator: Validator | None = None,
) -> None:
    """Write `state-<step>` with its manifest under a temporary name, rename it, delete older checkpoints.

    Raises RunFailedError, and keeps the last checkpoint, if a weight or moment is not finite or the disk is
    full.
    """
    refuse_to_save(_not_finite(model, optimizer), f"state-{step}")
    partial, final, old = output / "state.partial", output / f"state-{step}", output / "state.old"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        if states := _states(output):
            require_space(output, folder_bytes(states[-1]), "the next checkpoint")
    accelerator.wait_for_everyone()
    # Silences a note about tied weights, which would break the progress bar.
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
    try:
        accelerator.save_state(str(partial))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            (partial / "means.json").write_text(json.dumps(means.state()))
            if validator is not None:
                validator.save(partial)
            write_manifest(partial, {"step": step, "processes": accelerator.num_processes})
    except Exception as error:
        reason, free = write_failure(error), free_bytes(output)
        shutil.rmtree(partial, ignore_errors=True)
        if reason is None:
            raise
        raise RunFailedError(
            f"{final.name} could not be written to {output} ({reason}): the disk at {mount_point(output)} "
            f"had {readable(free)} free; the last checkpoint is kept, free some space and run it again"
        ) from error
    if accelerator.is_main_process:
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():  # from an earlier run, when this one started over
            os.replace(final, old)
        os.replace(partial, final)
        sync(output)
        for other in (old, *(path for path in _states(output) if path != final)):
            shutil.rmtree(other, ignore_errors=True)
    accelerator.wait_for_everyone()


def load_checkpoint(
    accelerator: Accelerator,
    output: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    validator: Validator | None = None,
) -> tuple[int, RunningMeans]:
    """Load the last whole checkpoint; (steps done, running means), or (0, empty means) if there is none.

    Raises RecipeError if the checkpoint has different sizes or a different optimizer, or is not finite, or if
    all checkpoints are damaged.
    """
    found: list[Path | str | None] = [_last_whole(output) if accelerator.is_main_process else None]
    if accelerator.num_processes > 1:
        broadcast_object_list(found)
    last = found[0]
    if last is None:
        return 0, RunningMeans()
    if isinstance(last, str):
        raise RecipeError(last)
    try:
        accelerator.load_state(str(last))
    except (RuntimeError, ValueError, KeyError) as error:  # KeyError: another optimizer's groups
        raise RecipeError(
            f"'loop.output_dir': '{last}' is a checkpoint of a different model size or optimizer; choose "
            "another directory, or start over with loop.resume=false"
        ) from error
    not_finite = _not_finite(model, optimizer)
    if not_finite:
        raise RecipeError(f"'loop.output_dir': {not_finite_message(last, not_finite)}")
    if validator is not None:
        failure: RecipeError | None = None
        try:
            if accelerator.is_main_process:
                validator.load(last)
        except RecipeError as error:
            failure = error
        exit_together(failure)
    means = last / "means.json"
    return _step_of(last), RunningMeans(json.loads(means.read_text()) if means.is_file() else None)


def _not_finite(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of weights and moments that are not finite on any process."""
    return sorted(set(gather_object(non_finite_names(training_state(model, optimizer)))))


def _last_whole(output: Path) -> Path | str | None:
    """The newest undamaged checkpoint, None without any, or the refusal if all are damaged."""
    problems = []
    for state in reversed(_states(output)):
        problem = _problem(state)
        if problem is None:
            return state
        problems.append(f"{state.name}: {problem}")
        print(f"skipping a damaged checkpoint: {output / problems[-1]}", file=sys.stderr)
    if not problems:
        return None
    return (
        f"'loop.output_dir': no checkpoint in '{output}' is whole ({'; '.join(problems)}); restore the files "
        "of one, or start over with loop.resume=false"
    )


def _problem(state: Path) -> str | None:
    """What is wrong with a checkpoint. One from before manifests counts as whole: it was renamed last."""
    try:
        manifest = read_manifest(state)
    except (OSError, ValueError) as error:
        return f"{MANIFEST_FILE} cannot be read ({error})"
    return None if manifest is None else damage(state, manifest)


def _states(output: Path) -> Sequence[Path]:
    """Complete checkpoints, oldest first."""
    paths = output.glob("state-*")
    return sorted((path for path in paths if path.name.removeprefix("state-").isdigit()), key=_step_of)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("state-"))
