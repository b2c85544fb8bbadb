"""rl.launch: mistakes before anything starts, each error once, and the exit code of the run."""

import os
import signal
from argparse import Namespace

import pytest
from accelerate.commands import launch as accelerate_launch
from torch.distributed.elastic.multiprocessing import errors

from data.launcher import LAUNCHER
from rl.launch import main
from tests.docs.pages import ROOT

TWO = ("--config_file", str(ROOT / "recipes" / "accelerate" / "two_cores.yaml"))
INTERRUPTED = "interrupted; run the same command again to resume from the last checkpoint\n"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)


@pytest.fixture(autouse=True)
def _as_in_a_process_of_its_own(monkeypatch):
    handlers = {signum: signal.getsignal(signum) for signum in SIGNALS}
    for name in (
        LAUNCHER,
        "PET_SHUTDOWN_TIMEOUT",
        "ACCELERATE_USE_CPU",
        "PET_SIGNALS_TO_HANDLE",
        "TORCHELASTIC_SIGNALS_TO_HANDLE",
    ):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(accelerate_launch, "simple_launcher", accelerate_launch.simple_launcher)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    yield
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "recipe.yaml").write_text("ending: done\n")
    return str(tmp_path / "recipe.yaml")


def never(*_):
    pytest.fail("a process was started")


def test_mistakes_are_found_before_anything_starts(monkeypatch, capfd):
    monkeypatch.setattr(accelerate_launch, "launch_command", never)
    quickstart = str(ROOT / "recipes" / "quickstart.yaml")
    mistakes = {
        "unknown key 'train.max_stepz'": ["recipes/quickstart.yaml", "train.max_stepz=3"],
        "unknown key 'train.max_stepy'": ["recipes/quickstart.yaml", "--train.max_stepy=3"],
        "recipe 'nope.yaml' does not exist": ["nope.yaml"],
        "--config_file nope.yaml: no such file": ["--config_file", "nope.yaml", quickstart],
        "-m nope: No module named 'nope'": ["-m", "nope", quickstart],
    }
    monkeypatch.chdir(ROOT)
    for sentence, arguments in mistakes.items():
        assert main(arguments) == 2
        shown = capfd.readouterr()
        assert shown.out == ""
        assert shown.err.count("\n") == 1
        assert shown.err.startswith(f"error: {sentence}")
    assert main([quickstart, "--print-recipe", "train.max_steps=7"]) == 0
    assert "max_steps: 7" in capfd.readouterr().out


def test_one_process_replaces_the_launcher(monkeypatch, capfd):
    started = []
    monkeypatch.setattr(os, "execvpe", lambda *arguments: started.append(arguments))
    quickstart = str(ROOT / "recipes" / "quickstart.yaml")
    assert main(["--cpu", "--num_processes", "1", "--mixed_precision", "no", quickstart, "data.seed=7"]) == 0
    ((_, command, environment),) = started
    assert command[1:] == [str(ROOT / "rl" / "train_grpo.py"), quickstart, "data.seed=7"]
    assert environment["ACCELERATE_USE_CPU"].lower() == "true"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("ending", "code", "shown"),
    [
        ("mistake", 2, "error: 'policy.path': /nowhere: no such directory\n"),  # of both processes, once
        ("failed", 1, "failed: the disk is full\n"),  # of the second, while the first goes on
        ("killed", 137, "was ended by SIGKILL; the machine may have run out of memory\n"),
        ("crash", 1, "ended with exit code 1; its traceback is above\n"),
        ("stopped", 143, INTERRUPTED),  # the launcher received SIGTERM
        ("done", 0, ""),
    ],
)
def test_the_exit_code_of_two_processes_is_the_runs(ending, code, shown, recipe, capfd):
    assert main([*TWO, "-m", "tests.rl.launched", recipe, f"ending={ending}"]) == code
    err = capfd.readouterr().err
    if ending == "crash":
        assert err.count("Traceback") == 1
        assert "AssertionError: a bug" in err
    else:
        # The launcher ends the other process when one has failed; at a mistake that one may not be there yet.
        own = err.removeprefix(INTERRUPTED) if ending in ("failed", "killed", "mistake") else err
        assert own.count("\n") <= 1
    assert err.endswith(shown)


def test_options_that_accelerate_refuses_are_the_users_mistake(monkeypatch, recipe, capfd):
    def refuse(options: Namespace) -> None:
        raise ValueError("You need to use at least 2 processes to use `--multi_gpu`.")

    monkeypatch.setattr(accelerate_launch, "launch_command", refuse)
    assert main(["-m", "tests.rl.launched", recipe]) == 2
    assert capfd.readouterr().err == "error: You need to use at least 2 processes to use `--multi_gpu`.\n"


def test_an_error_file_of_torch_itself_is_no_sentence_of_ours(tmp_path, monkeypatch, recipe, capfd):
    (tmp_path / "error.json").write_text('{"message": {"message": "x", "extraInfo": {"timestamp": 1}}}')
    failure = errors.ProcessFailure(1, 42, 3, str(tmp_path / "error.json"))

    def fail(options: Namespace) -> None:
        raise errors.ChildFailedError("launched", {1: failure})

    monkeypatch.setattr(accelerate_launch, "launch_command", fail)
    assert main(["-m", "tests.rl.launched", recipe]) == 3
    assert capfd.readouterr().err.startswith("failed: rank 1 (process 42) ended with exit code 3")
