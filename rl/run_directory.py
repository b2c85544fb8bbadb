"""A run's output directory: starts a run, or picks the checkpoint to resume; refuses another recipe's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from data.typed_recipe import RecipeError, read_recipe, to_mapping, write_recipe
from policy.policy_folder import PolicyError, check_replaceable
from rewards.quarantine import QUARANTINE_FILE
from rl.checkpoints import CHECKPOINTS_FOLDER, TRAINER_STATE_FILE, find_checkpoints
from rl.recipe import Recipe

RECIPE_FILE = "recipe.yaml"
POLICY_FOLDER = "policy"
METRICS_FILE = "metrics.jsonl"

# Keys and sections that a resumed run may change: they do not affect the steps already trained.
_MAY_CHANGE = (
    "output_dir",
    "resume",
    "rollout",
    "workers",
    "ray",
    "eval",
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


def open_run(recipe: Recipe) -> Path | None:
    """Prepare the output directory, write the recipe there, and return the checkpoint to resume from, if any.

    With `resume` false, the checkpoints, metrics, recipe and list of quarantined meshes of an earlier run
    that has a complete checkpoint are moved to `previous-N/`; its other results are overwritten.

    Raises:
        RecipeError: the directory cannot be used, or holds a run of a different recipe.
    """
    output = make_directory(recipe)
    try:
        check_replaceable(output / POLICY_FOLDER)  # fail before training, not after
    except PolicyError as error:
        raise RecipeError(f"'output_dir': {error}") from error
    checkpoints = find_checkpoints(output / CHECKPOINTS_FOLDER)
    if checkpoints and not recipe.resume:
        _set_aside(output)
        checkpoints = []
    written = output / RECIPE_FILE
    if checkpoints and written.is_file():
        key = first_difference(read_recipe(written), to_mapping(recipe))
        if key is not None:
            raise RecipeError(
                f"'output_dir' {output} holds a run with a different '{key}'; choose another directory, or "
                "start over with resume=false (the earlier checkpoints are kept in previous-N/)"
            )
    write_recipe(recipe, written)
    return checkpoints[-1] if checkpoints else None


def open_shared_run(recipe: Recipe) -> Path | None:
    """`open_run` in a multi-process run: the main process opens it, every process gets the checkpoint."""
    state = PartialState()
    checkpoint = [open_run(recipe) if state.is_main_process else None]
    if state.num_processes > 1:
        broadcast_object_list(checkpoint)
    return checkpoint[0]


def make_directory(recipe: Recipe) -> Path:
    """The recipe's output directory, created if missing (RecipeError if that fails)."""
    output = Path(recipe.output_dir)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"'output_dir' {output} cannot be created ({error}); choose another") from error
    return output


def first_difference(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """The first key on which two recipes differ and that affects training, None if there is none."""
    old, new = _flat(before), _flat(now)
    for key in dict.fromkeys([*new, *old]):
        if any(key == name or key.startswith(f"{name}.") for name in _MAY_CHANGE):
            continue
        if key not in old or key not in new or old[key] != new[key]:
            return key
    return None


def is_finished(checkpoint: Path, max_steps: int) -> bool:
    """Whether a checkpoint was saved at step `max_steps` or later."""
    return json.loads((checkpoint / TRAINER_STATE_FILE).read_text())["global_step"] >= max_steps


def _set_aside(output: Path) -> None:
    number = 1
    while (output / f"previous-{number}").exists():
        number += 1
    aside = output / f"previous-{number}"
    aside.mkdir()
    for name in (CHECKPOINTS_FOLDER, METRICS_FILE, RECIPE_FILE, QUARANTINE_FILE):
        if (output / name).exists():
            (output / name).rename(aside / name)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
