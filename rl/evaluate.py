"""Evaluates policies on held-out meshes, `python -m rl.evaluate RECIPE.yaml policy.path=A`: command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from data.command_line import run_command
from rl.recipe import Recipe, load_recipe


def _evaluate(recipe: Recipe) -> None:
    from rl.library_settings import importing

    with importing():  # takes seconds: not for --help
        from rl.evaluation import run

    run(recipe)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: `python -m rl.evaluate RECIPE.yaml policy.path=A [eval.compare='[B,C]']`."""
    return run_command(__doc__ or "", load_recipe, _evaluate, argv, "python -m rl.evaluate")


if __name__ == "__main__":
    sys.exit(main())
