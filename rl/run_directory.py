"""A run's output directory: new, to be gone on with, finished, or another run's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data.typed_recipe import RecipeError, read_recipe, to_mapping, write_recipe
from policy.bundle import PolicyError, check_replaceable
from rl.checkpoints import CHECKPOINTS_FOLDER, TRAINER_STATE_FILE, find_checkpoints
from rl.recipe import Recipe

RECIPE_FILE = "recipe.yaml"
POLICY_FOLDER = "policy"
METRICS_FILE = "metrics.jsonl"

# Keys and sections that may change when a run goes on: they do not change what has been trained.
_MAY_CHANGE = (
    "output_dir",
    "resume",
    "rollout_batch_size",
    "workers",
    "ray",
    "eval",
    "rig",
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
    """Make the output directory ready and write the recipe there; the checkpoint to go on from, if any.

    With `resume` false, the checkpoints and metrics of an earlier run are kept aside in `previous-N/`.

    Raises:
        RecipeError: the directory cannot be used, or holds a run of another recipe.
    """
    output = make_directory(recipe)
    try:
        check_replaceable(output / POLICY_FOLDER)  # now rather than after the training
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
                f"'output_dir' {output} holds a run with another '{key}'; give another directory, or "
                "resume=false to start over (the earlier checkpoints are kept aside)"
            )
    write_recipe(recipe, written)
    return checkpoints[-1] if checkpoints else None


def make_directory(recipe: Recipe) -> Path:
    """The recipe's output directory, made if it is not there (RecipeError if that cannot be)."""
    output = Path(recipe.output_dir)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"'output_dir' {output} cannot be made ({error}); give another") from error
    return output


def first_difference(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """The first key by which two recipes train differently, None if there is none."""
    old, new = _flat(before), _flat(now)
    for key in dict.fromkeys([*new, *old]):
        if any(key == name or key.startswith(f"{name}.") for name in _MAY_CHANGE):
            continue
        if key not in old or key not in new or old[key] != new[key]:
            return key
    return None


def is_finished(checkpoint: Path, max_steps: int) -> bool:
    """Whether a checkpoint is that of step `max_steps` or a later one."""
    return json.loads((checkpoint / TRAINER_STATE_FILE).read_text())["global_step"] >= max_steps


def _set_aside(output: Path) -> None:
    number = 1
    while (output / f"previous-{number}").exists():
        number += 1
    aside = output / f"previous-{number}"
    aside.mkdir()
    for name in (CHECKPOINTS_FOLDER, METRICS_FILE, RECIPE_FILE):
        if (output / name).exists():
            (output / name).rename(aside / name)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
