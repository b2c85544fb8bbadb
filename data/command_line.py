"""The command line all commands share: RECIPE.yaml, dotted overrides, --print-recipe, exit codes."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from data.commented_yaml import to_commented_yaml
from data.launcher import show_error
from data.mesh import MeshError
from data.stop_signals import StopRun, handling_stop_signals, is_first_rank, stop_signals
from data.typed_recipe import RecipeError

R = TypeVar("R")

# What the user can fix: exit code 2 and one sentence. A failed run exits with 1.
USER_ERRORS: tuple[type[Exception], ...] = (RecipeError, MeshError)


# Of OSError: no space left on the file system, or in the user's quota.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class RunFailedError(RuntimeError):
    """A run failed for a reason that one sentence explains better than a traceback."""


def run_command(
    description: str,
    load: Callable[[str, Sequence[str]], R],
    run: Callable[[R], Any],
    argv: Sequence[str] | None = None,
    program: str | None = None,
    dry_run: Callable[[R], Any] | None = None,
    show: Callable[[R], str] = to_commented_yaml,
) -> int:
    """Parse `RECIPE.yaml key.sub=value …`, load the recipe, run it and return the exit code.

    Overrides may have hyphens, `--key.sub=value`, as `wandb agent` writes a sweep's parameters.

    0: success. 1: the run failed. 2: invalid input. 130, 143, 138: stopped by SIGINT (Ctrl-C), SIGTERM,
    SIGUSR1. Messages go to standard error. `--help` and a malformed command line raise argparse's SystemExit
    with 0 and 2. With `dry_run`, the command has an option `--dry-run` that calls it instead of `run`.
    `show` is the text of `--print-recipe`.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        description=description,
        epilog="Overrides are dotted keys of the recipe, such as train.max_steps=10 or "
        "--train.max_steps=10; --print-recipe shows every key with its value and meaning.",
    )
    parser.add_argument("recipe", help="YAML recipe; see recipes/ for examples")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="override recipe values")
    parser.add_argument(
        "--print-recipe", action="store_true", help="print the resolved recipe with comments and exit"
    )
    if dry_run is not None:
        parser.add_argument(
            "--dry-run",
            action="store_true",
            help="do one step of everything in a temporary folder, print times and memory, and exit",
        )
    given = _without_hyphens(sys.argv[1:] if argv is None else argv)
    arguments = parser.parse_intermixed_args(given)  # options may stand between overrides
    chosen = dry_run if dry_run is not None and arguments.dry_run else run
    with handling_stop_signals():
        return _exit_code(arguments, load, chosen, show)


def _without_hyphens(arguments: Sequence[str]) -> list[str]:
    """The recipe first, and every `--key=value` as `key=value`: no option takes a value."""
    place = next((i for i, argument in enumerate(arguments) if not argument.startswith("-")), None)
    if place is None:
        return list(arguments)
    rest = (*arguments[:place], *arguments[place + 1 :])
    return [arguments[place], *(each.removeprefix("--") if "=" in each else each for each in rest)]


def _exit_code(
    arguments: argparse.Namespace,
    load: Callable[[str, Sequence[str]], R],
    run: Callable[[R], Any],
    show: Callable[[R], str],
) -> int:
    """Run the command and report how it ended; see `run_command`."""
    try:
        recipe = load(arguments.recipe, arguments.overrides)
        if arguments.print_recipe:
            print(show(recipe), end="")
            return 0
        run(recipe)
    except USER_ERRORS as error:
        show_error(f"error: {error}")
        return 2
    except RunFailedError as error:
        show_error(f"failed: {error}")
        return 1
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        where = f": {error.filename} cannot be written" if error.filename else ""
        show_error(
            f"failed: the disk is full ({error.strerror}){where}; free some space and run the same command "
            "again"
        )
        return 1
    except KeyboardInterrupt as interrupt:
        return _stopped(interrupt if isinstance(interrupt, StopRun) else StopRun())
    except Exception:
        stop = stop_signals().raised
        if stop is None:
            raise
        return _stopped(stop)
    return 0


def _stopped(stop: StopRun) -> int:
    """Report a run that was stopped; its exit code."""
    if (signals := stop_signals()).closed:
        signals.closing()  # again, after Ray has shut down
    if is_first_rank():
        print(stop.message, file=sys.stderr)
    return 128 + stop.signum if stop.signum else 0
