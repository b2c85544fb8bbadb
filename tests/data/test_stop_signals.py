"""Stop signals: at once, after a step, repeated, inherited by children, on a launcher's death."""

# ruff: noqa: PT012 (a signal is sent in the block it ends)

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from data.stop_signals import (
    SAME_REQUEST_SECONDS,
    STOP_SIGNALS,
    StopRun,
    StopSignals,
    handling_stop_signals,
    stop_signals,
)

pytestmark = pytest.mark.usefixtures("stop_signal_handlers")

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_a_signal_ends_the_block_at_once(signum):
    before = [signal.getsignal(each) for each in STOP_SIGNALS]
    with pytest.raises(StopRun) as stop, handling_stop_signals():
        os.kill(os.getpid(), signum)
        pytest.fail("went on")
    assert stop.value.signum == signum
    assert [signal.getsignal(each) for each in STOP_SIGNALS] == before


def test_training_finishes_its_step(capfd):
    with pytest.raises(StopRun) as stop, handling_stop_signals() as signals:
        assert stop_signals() is signals
        with signals.finishing_steps():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)  # passed on by a launcher: the same request
            assert signals.requested == signal.SIGTERM
        pytest.fail("the loop did not stop")
    assert stop.value.signum == signal.SIGTERM
    assert "SIGTERM: finishing this step and saving; send it again after 3 s" in capfd.readouterr().err


def test_the_second_request_stops_at_once():
    now = 100.0
    with pytest.raises(StopRun) as stop, handling_stop_signals() as signals:
        signals._clock = lambda: now
        with signals.finishing_steps():
            os.kill(os.getpid(), signal.SIGUSR1)
            now += SAME_REQUEST_SECONDS / 2
            os.kill(os.getpid(), signal.SIGTERM)
            now += SAME_REQUEST_SECONDS / 2
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("went on")
    assert stop.value.signum == signal.SIGUSR1  # the first


def test_a_handler_that_a_library_sets_is_replaced():
    with pytest.raises(StopRun), handling_stop_signals() as signals:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signals.install()
        os.kill(os.getpid(), signal.SIGTERM)


def test_after_the_save_only_ctrl_c_counts():
    with pytest.raises(StopRun) as stop, handling_stop_signals() as signals:
        signals.closing()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGINT)
    assert stop.value.signum == signal.SIGINT
    os.kill(os.getpid(), signal.SIGTERM)  # as the process ends


def test_in_another_thread_handlers_stay():
    before = [signal.getsignal(each) for each in STOP_SIGNALS]
    seen = []

    def run():
        with handling_stop_signals() as signals:
            seen.append((isinstance(signals, StopSignals), [signal.getsignal(each) for each in STOP_SIGNALS]))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(True, before)]


def test_a_fork_dies_of_the_signal():
    with handling_stop_signals() as signals, signals.finishing_steps():
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        assert signals.requested == 0


CHILD = """
import sys, time
from data.command_line import run_command
from data.stop_signals import stop_signals

def run(recipe):
    with stop_signals().finishing_steps():
        print("training", flush=True)
        while not stop_signals().requested:
            time.sleep(0.01)
        print("saved", flush=True)

sys.exit(run_command("", lambda path, overrides: {}, run))
"""
LAUNCHER = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, *sys.argv[1:]]).returncode)"


@pytest.mark.skipif(sys.platform != "linux", reason="the system's notice of a parent's death is Linux's")
def test_a_run_stops_when_its_launcher_is_killed(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(CHILD)
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, script, "recipe.yaml"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert launcher.stdout.readline() == "training\n"
    launcher.kill()
    # The pipe ends when the run does.
    assert launcher.stdout.read() == "saved\n"
    assert "SIGTERM: finishing this step" in launcher.stderr.read()
    launcher.wait()


def test_the_exit_code_is_that_of_the_signal(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(CHILD)
    for signum in STOP_SIGNALS:
        process = subprocess.Popen(
            [sys.executable, script, "recipe.yaml"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            # As `trap "" USR1` in a batch script has it, so that launchers survive the signal.
            preexec_fn=lambda: [
                signal.signal(signal.SIGUSR1, signal.SIG_IGN),
                signal.signal(signal.SIGINT, signal.SIG_DFL),
            ],
        )
        assert process.stdout.readline() == "training\n"
        process.send_signal(signum)
        assert process.communicate()[0] == "saved\n"
        assert process.returncode == 128 + signum
