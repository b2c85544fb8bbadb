"""Rigs a mesh file, `python -m rl.rig RECIPE.yaml rig.mesh=FILE rig.out=RIGGED.glb`: the command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from data.command_line import run_command
from rl.recipe import Recipe, load_recipe


def _rig(recipe: Recipe) -> None:
    from rl.library_settings import importing

    with importing():  # takes seconds: not for --help
        from rl.rigging import run

    run(recipe)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: `python -m rl.rig RECIPE.yaml rig.mesh=FILE [rig.out=FILE.glb]`."""
    return run_command(__doc__ or "", load_recipe, _rig, argv, "python -m rl.rig")


if __name__ == "__main__":
    sys.exit(main())
