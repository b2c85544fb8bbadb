"""A program for tests of rl.launch: it takes a recipe and ends as the recipe's `ending` says."""

import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from data.command_line import RunFailedError, run_command
from data.typed_recipe import RecipeError, build, read_recipe


@dataclass
class Ending:
    """Recipe of the program.

    ending: mistake, failed, killed, crash, stopped or done.
    """

    ending: str = "done"


def _run(recipe: Ending) -> None:
    rank = int(os.environ["RANK"])
    if recipe.ending == "mistake":
        raise RecipeError("'policy.path': /nowhere: no such directory")
    if recipe.ending == "failed" and rank == 1:
        raise RunFailedError("the disk is full")
    if recipe.ending == "killed" and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if recipe.ending == "crash" and rank == 1:
        raise AssertionError("a bug")
    if recipe.ending == "stopped" and rank == 0:
        os.kill(os.getppid(), signal.SIGTERM)
    if recipe.ending != "done":
        time.sleep(60)  # the launcher ends this process


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("", _load, _run, argv, "launched")


def _load(path: str, overrides: Sequence[str]) -> Ending:
    return build(Ending, read_recipe(path, overrides))


if __name__ == "__main__":
    sys.exit(main())
