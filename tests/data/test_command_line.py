"""The shared command line: exit codes, where messages go, --help and --print-recipe."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from data.command_line import RunFailedError, run_command
from data.mesh import MeshError
from data.typed_recipe import RecipeError, build, read_recipe


@dataclass(frozen=True)
class Loop:
    steps: int = 10
    """Steps to take; at least 1."""


@dataclass(frozen=True)
class Recipe:
    name: str = "run"
    loop: Loop = field(default_factory=Loop)


def load(path: str, overrides: Sequence[str]) -> Recipe:
    return build(Recipe, read_recipe(path, overrides))


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: mine\n")
    return str(path)


class Runs:
    """Stands in for a command: records the recipes it gets and raises `error`."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error, self.seen = error, []

    def __call__(self, recipe: Recipe) -> str:
        self.seen.append(recipe)
        if self.error is not None:
            raise self.error
        return "a value that is no exit code"


def test_runs_the_recipe_with_its_overrides(recipe, capsys):
    run = Runs()
    assert run_command("What it does.", load, run, [recipe, "loop.steps=3"]) == 0
    assert run.seen == [Recipe("mine", Loop(3))]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["RECIPE", "--loop.steps=3", "--name=a=b"],
        ["--loop.steps=3", "RECIPE", "name=a=b"],
        ["RECIPE", "--name=first", "loop.steps=3", "--name=a=b"],
    ],
)
def test_overrides_may_have_hyphens(recipe, capsys, arguments):
    run = Runs()
    assert run_command("", load, run, [recipe if item == "RECIPE" else item for item in arguments]) == 0
    assert run.seen == [Recipe("a=b", Loop(3))]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (RecipeError("'loop.steps' is wrong"), 2, "error: 'loop.steps' is wrong\n"),
        (MeshError("a.glb: no faces"), 2, "error: a.glb: no faces\n"),
        (RunFailedError("no worker is left"), 1, "failed: no worker is left\n"),
        (
            KeyboardInterrupt(),
            130,
            "interrupted; run the same command again to resume from the last checkpoint\n",
        ),
    ],
)
def test_exit_codes_and_messages(recipe, capsys, error, code, message):
    assert run_command("", load, Runs(error), [recipe]) == code
    assert capsys.readouterr() == ("", message)


def test_other_errors_keep_their_traceback(recipe):
    with pytest.raises(ZeroDivisionError):
        run_command("", load, Runs(ZeroDivisionError()), [recipe])


def test_a_signal_that_a_library_turned_into_its_own_error_is_still_a_signal(recipe, capsys):
    def run(recipe: Recipe) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException:
            raise ValueError("as pydantic's core does while it builds a model") from None

    assert run_command("", load, run, [recipe]) == 143
    message = "interrupted; run the same command again to resume from the last checkpoint\n"
    assert capsys.readouterr() == ("", message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.yaml"], "error: recipe 'gone.yaml' does not exist; pass the path of a YAML file\n"),
        (["RECIPE", "lop.steps=1"], "error: unknown key 'lop'; the nearest valid key is 'loop'\n"),
        (["RECIPE", "--lop.steps=1"], "error: unknown key 'lop'; the nearest valid key is 'loop'\n"),
        (
            ["RECIPE", "--print-recipe=1"],
            "error: unknown key 'print-recipe'; the nearest valid key is 'loop.steps'\n",
        ),
        (["RECIPE", "loop.steps=many"], "error: 'loop.steps' must be an integer, not 'many'\n"),
        (
            ["RECIPE", "steps"],
            "error: override 'steps' must have the form key.sub=value, such as train.max_steps=10\n",
        ),
    ],
)
def test_wrong_input_ends_with_2_before_anything_runs(recipe, capsys, arguments, message):
    run = Runs()
    assert run_command("", load, run, [recipe if item == "RECIPE" else item for item in arguments]) == 2
    assert capsys.readouterr() == ("", message)
    assert run.seen == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["RECIPE", "loop.steps=3", "--print-recipe"],
        ["--print-recipe", "RECIPE", "loop.steps=3"],
        ["RECIPE", "--print-recipe", "loop.steps=3"],
    ],
)
def test_print_recipe_resolves_and_stops(recipe, capsys, arguments):
    run = Runs()
    assert run_command("", load, run, [recipe if item == "RECIPE" else item for item in arguments]) == 0
    assert capsys.readouterr() == ("name: mine\n\nloop:\n  # Steps to take; at least 1.\n  steps: 3\n", "")
    assert run.seen == []


def test_print_recipe_can_be_run_again(recipe, tmp_path, capsys):
    run_command("", load, Runs(), [recipe, "name='1e-6'", "--print-recipe"])
    again = tmp_path / "again.yaml"
    again.write_text(capsys.readouterr().out)
    run = Runs()
    assert run_command("", load, run, [str(again)]) == 0
    assert run.seen == [Recipe("1e-6")]


def test_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        run_command("What it does.", load, Runs(), ["--help"], "python -m rl.it")
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for part in (
        "python -m rl.it",
        "What it does.",
        "RECIPE",
        "key.sub=value",
        "--print-recipe",
        "train.max_steps=10",
    ):
        assert part.lower() in shown.lower()


@pytest.mark.parametrize("arguments", [[], ["RECIPE", "--nonsense"]])
def test_a_malformed_command_line_ends_with_2(recipe, capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        run_command("", load, Runs(), [recipe if item == "RECIPE" else item for item in arguments])
    assert stopped.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_exit_codes_reach_the_shell(recipe):
    script = (
        "import sys; from data.command_line import *; from data.typed_recipe import *\n"
        "def load(path, overrides):\n    read_recipe(path, overrides); return {}\n"
        "def run(recipe):\n    raise RunFailedError('it broke')\n"
        "sys.exit(run_command('', load, run))"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script, recipe], cwd=root, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "failed: it broke\n")
