"""Starts a pre-training run: checks the launch and the starting weights, writes the recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import parse_flag_from_env

from data.typed_recipe import RecipeError, write_recipe
from data.wandb_id import refuse_shared_directory
from policy.pretraining.loop_recipe import LoopRecipe
from policy.pretraining.processes import is_main_process, shared_lock


@contextmanager
def started_run(recipe: Any, loop: LoopRecipe) -> Iterator[Path]:
    """Create the output directory, lock it for the block, write the resolved recipe into it, and yield it.

    Raises RecipeError if the directory is not writable, in use by a live run or shared by the trials of a
    sweep, or if DeepSpeed launched this process and the recipe uses Muon.
    """
    # Checked before the processes connect.
    if loop.optimizer == "muon" and parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        raise RecipeError(
            "'loop.optimizer: muon' needs whole matrices, which DeepSpeed splits into flat pieces; set "
            "loop.optimizer=adamw, or launch without DeepSpeed, as recipes/accelerate/multi_gpu.yaml does"
        )
    refuse_shared_directory(Path(loop.output_dir), "loop.output_dir")
    output = created_output(loop.output_dir, "loop.output_dir")
    with shared_lock(output, "loop.output_dir"):
        if is_main_process():
            write_recipe(recipe, output / "recipe.yaml")
        yield output


def created_output(directory: str, key: str) -> Path:
    """Create a run's output directory; RecipeError, naming the recipe's `key`, if it cannot be written."""
    output = Path(directory)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(
            f"'{key}': '{output}' cannot be written ({error.strerror}); choose another directory"
        ) from error
    return output


def check_same_sizes(start: str, own: Mapping[str, Any], recipe: Mapping[str, Any]) -> None:
    """Raise RecipeError, listing all differences, if the weights in `start` do not have the recipe's sizes.

    `own` and `recipe` map dotted recipe keys to sizes; keys of `own` alone do not count.
    """
    different = [key for key in recipe if _as_written(own.get(key)) != _as_written(recipe[key])]
    if different:
        values = ", ".join(f"{key}={_as_written(own.get(key))}" for key in different)
        raise RecipeError(
            f"'start_from': the weights in '{start}' do not match the recipe's '{different[0]}'; set "
            f"{values}, or start from other weights"
        )


def _as_written(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
