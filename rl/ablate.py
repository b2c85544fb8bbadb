"""Trains and evaluates variants of a GRPO recipe, `python -m rl.ablate RECIPE.yaml`: command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from data.command_line import run_command
from rl.ablation.matrix import AblationRecipe, load_recipe


def _ablate(recipe: AblationRecipe) -> None:
    from rl.library_settings import importing

    with importing():  # takes seconds: not for --help
        from rl.ablation.command import run

    run(recipe)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: `python -m rl.ablate recipes/ablations/rewards.yaml`; the same command resumes."""
    return run_command(__doc__ or "", load_recipe, _ablate, argv, "python -m rl.ablate")


if __name__ == "__main__":
    sys.exit(main())
