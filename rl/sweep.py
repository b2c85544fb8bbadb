"""Runs a W&B sweep file without an account, `python -m rl.sweep SWEEP.yaml`: command line.

Overrides are `run_cap`, `jobs`, `seed` and other keys of the file, or keys of the GRPO recipe for all trials.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import yaml

from data.command_line import run_command
from data.typed_recipe import to_mapping
from rl.sweeps.sweep_file import SweepRecipe, load_recipe


def _sweep(recipe: SweepRecipe) -> None:
    from rl.library_settings import importing

    with importing():  # takes seconds: not for --help
        from rl.sweeps.command import run

    run(recipe)


def _as_yaml(recipe: SweepRecipe) -> str:
    """The resolved file; not as a recipe, in which `${args}` would be an interpolation."""
    return yaml.safe_dump(to_mapping(recipe), sort_keys=False, allow_unicode=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: `python -m rl.sweep recipes/sweeps/reward_weights.yaml`; the same command resumes."""
    return run_command(__doc__ or "", load_recipe, _sweep, argv, "python -m rl.sweep", show=_as_yaml)


if __name__ == "__main__":
    sys.exit(main())
