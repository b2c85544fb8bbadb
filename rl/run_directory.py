"""A run's output directory: starts a run, or picks the checkpoint to resume; refuses another recipe's."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from data.run_lock import RunLock
from data.typed_recipe import RecipeError, flat, read_recipe, to_mapping, write_recipe
from data.wandb_id import WANDB_ID_FILE
from policy.bundle import tidy_directory
from policy.policy_folder import PolicyError, check_replaceable
from policy.pretraining.processes import exit_together, shared_lock
from rewards.quarantine import QUARANTINE_FILE
from rl.checkpoints import (
    CHECKPOINTS_FOLDER,
    TRAINER_STATE_FILE,
    checkpoint_folders,
    checkpoint_processes,
    last_whole_checkpoint,
)
from rl.recipe import Recipe
from rl.run_files import (
    BEST_FOLDER,
    METRICS_FILE,
    POLICY_FOLDER,
    RECIPE_FILE,
    ROLLOUTS_FOLDER,
    START_FILE,
)

# Keys and sections that a resumed run may change: they do not affect the steps already trained.
MAY_CHANGE = (
    "output_dir",
    "resume",
    "rollout",
    "workers",
    "ray",
    "eval",
    "report",
    "rig",
    "train_guard",
    "profile",
    "data.max_quarantined",
    "train.max_steps",
    "train.save_steps",
    "train.save_total_limit",
    "train.logging_steps",
    "train.report_to",
    "train.run_name",
    "train.disable_tqdm",
    "train.log_completions",
)


@dataclass(frozen=True)
class OpenRun:
    """A run that this process takes part in: where it resumes, and the lock if this is the main process."""

    checkpoint: Path | None
    lock: RunLock | None


@dataclass(frozen=True)
class RunPlan:
    """What a run would do in its output directory.

    Attributes:
        checkpoint: the checkpoint that it resumes from, if any.
        problems: clauses about newer checkpoints that are damaged.
        starts_over: whether an earlier run's checkpoints are moved away first.
    """

    checkpoint: Path | None
    problems: list[str]
    starts_over: bool


def plan_run(recipe: Recipe) -> RunPlan:
    """What a run of this recipe would do in its output directory; writes nothing.

    Raises:
        RecipeError: the directory holds something else than a run, a run of a different recipe, or only
            damaged checkpoints.
    """
    output = Path(recipe.output_dir)
    try:
        for name in (POLICY_FOLDER, BEST_FOLDER):
            check_replaceable(output / name)  # fail before training, not after
    except PolicyError as error:
        raise RecipeError(f"'output_dir': {error}") from error
    folder = output / CHECKPOINTS_FOLDER
    if not checkpoint_folders(folder):
        return RunPlan(None, [], False)
    if not recipe.resume:
        return RunPlan(None, [], True)
    written = output / RECIPE_FILE
    if written.is_file():
        key = first_difference(read_recipe(written), to_mapping(recipe))
        if key is not None:
            raise RecipeError(
                f"'output_dir' {output} holds a run with a different '{key}'; choose another directory, or "
                "start over with resume=false (the earlier checkpoints are kept in previous-N/)"
            )
    checkpoint, problems = last_whole_checkpoint(folder)
    if checkpoint is None:
        raise RecipeError(
            f"'output_dir': no checkpoint in {folder} is whole ({'; '.join(problems)}); restore the files of "
            "one, or start over with resume=false (they are kept in previous-N/)"
        )
    return RunPlan(checkpoint, problems, False)


def open_run(recipe: Recipe) -> Path | None:
    """Prepare the output directory, write the recipe there, and return the checkpoint to resume from, if any.

    A damaged checkpoint is reported on standard error, and the newest whole one used. With `resume` false,
    checkpoints, metrics, recipe, quarantined meshes, best policy and kept rollouts of an earlier run are
    moved to `previous-N/`; its other results are overwritten. Raises RecipeError, as `plan_run` does, or if
    the directory cannot be created.
    """
    output = make_directory(recipe)
    plan = plan_run(recipe)
    for name in (POLICY_FOLDER, BEST_FOLDER):
        tidy_directory(output / name)
    if plan.starts_over:
        _set_aside(output)
    for problem in plan.problems:
        print(f"skipping a damaged checkpoint: {output / CHECKPOINTS_FOLDER / problem}", file=sys.stderr)
    write_recipe(recipe, output / RECIPE_FILE)
    return plan.checkpoint


@contextmanager
def shared_run(recipe: Recipe) -> Iterator[OpenRun]:
    """Lock and open the output directory: the main process does, every process gets the checkpoint.

    Raises RecipeError, as `open_run` does, or if a live run holds the directory. Only the main process
    reports it; the others exit with the same code.
    """
    state = PartialState()
    with shared_lock(make_directory(recipe), "output_dir") as lock:
        opened: list[Path | None] = [None]
        failure = None
        if state.is_main_process:
            try:
                opened = [open_run(recipe)]
            except RecipeError as error:
                failure = error
        exit_together(failure)
        if state.num_processes > 1:
            broadcast_object_list(opened)
        checkpoint = opened[0]
        if checkpoint is not None and state.is_main_process:
            saved_by = checkpoint_processes(checkpoint)
            if saved_by != state.num_processes:
                print(
                    f"{checkpoint} was saved by {saved_by} processes and this run has {state.num_processes}: "
                    "its random states start anew, so the steps differ from those of an undisturbed run",
                    file=sys.stderr,
                )
        yield OpenRun(checkpoint, lock)


def make_directory(recipe: Recipe) -> Path:
    """The recipe's output directory, created if missing (RecipeError if that fails)."""
    output = Path(recipe.output_dir)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"'output_dir' {output} cannot be created ({error}); choose another") from error
    return output


def first_difference(
    before: dict[str, Any], now: dict[str, Any], may_change: Sequence[str] = MAY_CHANGE
) -> str | None:
    """The first key on which two recipes differ, None if there is none.

    Keys and sections in `may_change` are passed over: by default, those that do not affect training.
    """
    old, new = flat(before), flat(now)
    for key in dict.fromkeys([*new, *old]):
        if _is_in(key, may_change):
            continue
        if key not in old or key not in new or old[key] != new[key]:
            return key
    return None


def affects_training(key: str) -> bool:
    """Whether a run's steps depend on a dotted key of its recipe; a resumed run may change the others."""
    return not _is_in(key, MAY_CHANGE)


def _is_in(key: str, names: Sequence[str]) -> bool:
    """Whether a dotted key is one of the names or in a section that is."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def is_finished(checkpoint: Path, max_steps: int) -> bool:
    """Whether a checkpoint was saved at step `max_steps` or later."""
    return steps_done(checkpoint) >= max_steps


def steps_done(checkpoint: Path) -> int:
    """The step after which a checkpoint was saved."""
    return int(json.loads((checkpoint / TRAINER_STATE_FILE).read_text())["global_step"])


def _set_aside(output: Path) -> None:
    number = 1
    while (output / f"previous-{number}").exists():
        number += 1
    aside = output / f"previous-{number}"
    aside.mkdir()
    moved = (
        *(CHECKPOINTS_FOLDER, METRICS_FILE, RECIPE_FILE, QUARANTINE_FILE, START_FILE),
        *(BEST_FOLDER, ROLLOUTS_FOLDER, WANDB_ID_FILE),
    )
    for name in moved:
        if (output / name).exists():
            (output / name).rename(aside / name)
