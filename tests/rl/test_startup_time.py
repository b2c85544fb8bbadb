"""The time from the command to the first step: whose start counts, and where it is logged."""

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from rl import startup_time
from rl.startup_time import StartupTime, command_start

ROOT = Path(__file__).resolve().parents[2]

# A script that starts itself once more, as a launcher does, and prints both ages.
SCRIPT = """
import subprocess, sys
import psutil
from rl.startup_time import command_start
if len(sys.argv) > 1:
    print(command_start(), psutil.Process().create_time())
else:
    subprocess.run([sys.executable, sys.argv[0], "inner"], check=True)
"""


def test_the_launcher_counts_and_what_started_it_does_not(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    before = time.time()
    result = subprocess.run(
        [sys.executable, script],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    command, inner = map(float, result.stdout.split())
    assert before - 1 < command < inner  # the outer of the two, not the test's own process


def test_a_process_without_a_launcher_counts_from_its_own_start():
    assert command_start("no such script") == psutil.Process().create_time()


def test_only_the_first_step_of_a_process_gets_the_time(monkeypatch):
    now = iter([1030.5, 1040.0])
    monkeypatch.setattr(startup_time.time, "time", lambda: next(now))
    callback = StartupTime(began=1000.0, evaluation_seconds=10.5)
    logged = []
    for _ in range(2):
        callback.on_step_begin(None, None, None)
        logs = {"step_time": 1.0}
        callback.on_log(None, SimpleNamespace(), None, logs=logs)
        logged.append(logs)
    assert logged == [{"step_time": 1.0, "seconds/startup": pytest.approx(20.0)}, {"step_time": 1.0}]
    callback.on_log(None, SimpleNamespace(), None, logs=None)
