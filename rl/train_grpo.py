"""Launches GRPO post-training of a TokenRig policy: `accelerate launch rl/train_grpo.py RECIPE.yaml`."""

import sys
from collections.abc import Sequence
from pathlib import Path

# Launched by path, Python puts rl/ first on the import path, where evaluate.py would shadow the library of
# that name; the project's root belongs there instead.
_HERE = Path(__file__).resolve().parent
sys.path[:] = [str(_HERE.parent), *(entry for entry in sys.path if Path(entry or ".").resolve() != _HERE)]

from data.command_line import run_command  # noqa: E402
from data.run_lock import refuse_live_owner  # noqa: E402
from data.stop_signals import is_first_rank  # noqa: E402
from data.wandb_id import refuse_shared_directory  # noqa: E402
from rl.recipe import Recipe, load_recipe  # noqa: E402


def _train(recipe: Recipe) -> None:
    if is_first_rank():  # the others may find the lock of their own run
        refuse_shared_directory(Path(recipe.output_dir))
        refuse_live_owner(Path(recipe.output_dir))  # before libraries and Ray take their time

    from rl.library_settings import importing, quiet_libraries

    with importing():  # takes seconds: not for --help
        quiet_libraries()
        from rl.preflight.at_start import check_start
        from rl.reward_service import starting_service

    check_start(recipe)
    with starting_service(recipe) as start:
        with importing():  # takes longest: Ray and its workers start meanwhile
            from rl.training import train

        train(recipe, start)


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
