"""Scores kept rollouts again from their rows, `python -m rl.replay ROW`: command line.

ROW is `rollouts.jsonl:12` (its twelfth row), a file of rows, a JSON file with one row, or a folder with
`rollouts.jsonl`. Prints each reward as it was kept and as it is now. Exit codes: 0, all agree; 1, some
differ; 2, a row cannot be scored.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from data.command_line import RunFailedError
from data.launcher import show_error
from data.mesh import MeshError
from data.typed_recipe import RecipeError

# Largest difference of a reward that counts as none. The skin decoder sums in another order for a row alone
# than for its group, on another CPU or GPU, and with other threads.
TOLERANCE = 1e-4


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: `python -m rl.replay ROW [key.sub=value …]`."""
    description, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser("python -m rl.replay", description=description, epilog=epilog)
    parser.add_argument("row", metavar="ROW", help="rollouts.jsonl:12, rollouts.jsonl, row.json or a folder")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key.sub=value",
        help="override the run's recipe, such as workers.decoder_device=cpu",
    )
    parser.add_argument("--recipe", help="recipe of the run; by default recipe.yaml beside rollouts/")
    parser.add_argument(
        "--meshes", metavar="FOLDER", help="where the mesh files are now, if they have moved; by file name"
    )
    parser.add_argument(
        "--tolerance",
        type=_tolerance,
        default=TOLERANCE,
        help=f"largest difference of a reward that counts as none (default {TOLERANCE:g})",
    )
    options = parser.parse_intermixed_args(argv)
    try:
        from rl.library_settings import importing

        with importing():  # takes seconds: not for --help
            from rl.replaying import replay

        return replay(options.row, options.recipe, options.overrides, options.meshes, options.tolerance)
    except (RecipeError, MeshError, RunFailedError) as error:  # the last of a reward of the user's own
        show_error(f"error: {error}")
        return 2


def _tolerance(text: str) -> float:
    value = float(text)
    if not value >= 0:
        raise ValueError
    return value


if __name__ == "__main__":
    sys.exit(main())
