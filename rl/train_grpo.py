"""Launches GRPO post-training of a TokenRig policy: `accelerate launch rl/train_grpo.py RECIPE.yaml`."""

import sys
from collections.abc import Sequence
from pathlib import Path

# Launched by path, Python puts rl/ first on the import path, where evaluate.py would shadow the library of
# that name; the project's root belongs there instead.
_HERE = Path(__file__).resolve().parent
sys.path[:] = [str(_HERE.parent), *(entry for entry in sys.path if Path(entry or ".").resolve() != _HERE)]

from data.command_line import run_command  # noqa: E402
from data.stop_signals import is_first_rank  # noqa: E402
from rl.grpo import run_training  # noqa: E402
from rl.recipe import Recipe, load_recipe  # noqa: E402


def _train(recipe: Recipe) -> None:
    run = run_training(recipe)
    if is_first_rank():
        from rl.trained_run import print_trained

        print_trained(run)


def _dry_run(recipe: Recipe) -> None:
    from rl.library_settings import importing, quiet_libraries

    with importing():
        quiet_libraries()
        from rl.dry_run import dry_run
        from rl.preflight.at_start import check_start

    check_start(recipe)
    dry_run(recipe)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of `rl/train_grpo.py`."""
    return run_command(__doc__ or "", load_recipe, _train, argv, "rl/train_grpo.py", _dry_run)


if __name__ == "__main__":
    sys.exit(main())
