"""The W&B run of a training run: opened before anything is evaluated, and told the results at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trl import GRPOConfig

from data.typed_recipe import RecipeError, to_mapping
from data.wandb_id import wandb_arguments
from policy.pretraining.processes import exit_together
from rl.evaluation_results import Evaluation
from rl.recipe import Recipe

PROJECT = "tokenrig-rl"  # unless WANDB_PROJECT is set


@contextmanager
def wandb_run(recipe: Recipe, args: GRPOConfig, resumed: bool) -> Iterator[None]:
    """Keep a W&B run open for the block if the recipe reports to W&B; transformers' callback logs to it.

    The main process opens it. A program that has opened one before, such as a notebook, keeps its own.

    Raises RecipeError if W&B refuses, as without a login; the other processes exit with the same code.
    """
    if "wandb" not in args.report_to:
        yield
        return
    run: Any = None
    failure = None
    if args.process_index == 0:
        import wandb

        if wandb.run is None:
            try:
                run = wandb.init(
                    project=os.environ.get("WANDB_PROJECT", PROJECT),
                    name=args.run_name,
                    config={"recipe": to_mapping(recipe)},
                    **wandb_arguments(Path(recipe.output_dir), resumed),
                )
            except wandb.errors.Error as error:
                reason = str(error).splitlines()[0]
                failure = RecipeError(
                    f"'train.report_to' is wandb, but W&B refuses the run ({reason}); run wandb login, or "
                    "set WANDB_MODE=offline and run wandb sync later"
                )
            except RecipeError as error:
                failure = error
    exit_together(failure)
    try:
        yield
    except BaseException:
        if run is not None:
            run.finish(exit_code=1)
        raise
    if run is not None:
        run.finish()


def log_results(before: Evaluation, after: Evaluation, step: int) -> None:
    """Log `before/<measure>`, `after/<measure>` and `after/se/<measure>` if a W&B run is open."""
    import wandb

    if wandb.run is None:
        return
    wandb.log(
        {
            **{f"before/{name}": value for name, value in before.mean.items()},
            **{f"after/{name}": value for name, value in after.mean.items()},
            **{f"after/se/{name}": value for name, value in after.standard_error.items()},
            "train/global_step": step,
        }
    )
