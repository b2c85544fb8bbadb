"""The lock of an output directory: live owners, dead ones, other machines, simultaneous starts."""

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

import data.run_lock
from data.run_lock import STALE_SECONDS, LockLostError, Owner, Process, RunLock, refuse_live_owner, run_lock
from data.typed_recipe import RecipeError

ROOT = Path(__file__).resolve().parents[2]
# Waits for its standard input to end.
SLEEPER = [sys.executable, "-c", "import sys; sys.stdin.read()"]


def write_owner(directory: Path, *processes: Process, age: float = 0.0) -> None:
    lock = directory / "run.lock"
    lock.write_text(json.dumps(asdict(Owner(list(processes), "train_grpo.py r.yaml", "2026-01-01"))))
    os.utime(lock, (time.time() - age,) * 2)


@pytest.fixture
def other():
    """A live process of another program."""
    with subprocess.Popen(SLEEPER, stdin=subprocess.PIPE) as process:
        yield replace(Process.current(), pid=process.pid, start=data.run_lock._start_of(process.pid))
        process.stdin.close()


def test_the_directory_is_free_again_after_the_run(tmp_path):
    with run_lock(tmp_path):
        owner = json.loads((tmp_path / "run.lock").read_text())
        assert owner["processes"] == [asdict(Process.current())]
        with pytest.raises(RecipeError, match="in use"):
            refuse_live_owner(tmp_path)
    assert not list(tmp_path.iterdir())
    refuse_live_owner(tmp_path)
    with pytest.raises(ZeroDivisionError), run_lock(tmp_path):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_a_live_owner_is_refused_by_name(tmp_path, other, capsys):
    write_owner(tmp_path, other, age=10 * STALE_SECONDS)  # a stopped process gives no sign of life
    message = (
        f"'output_dir' {tmp_path} is in use by process {other.pid} on {socket.gethostname()} since "
        r"2026-01-01 \(train_grpo.py r.yaml\); wait for it, stop it, or choose another directory"
    )
    with pytest.raises(RecipeError, match=f"^{message}$"), run_lock(tmp_path):
        pytest.fail("two runs in one directory")
    assert json.loads((tmp_path / "run.lock").read_text())["since"] == "2026-01-01"
    # Any rank that is left over counts, not only the main one.
    write_owner(tmp_path, replace(other, pid=2**22 - 1), other)
    with pytest.raises(RecipeError, match=f"process {other.pid} "), run_lock(tmp_path):
        pytest.fail("beside a rank of another run")


@pytest.mark.parametrize("change", [{"pid": 2**22 - 1}, {"start": 1.0}], ids=["gone", "number_reused"])
def test_a_dead_owner_is_taken_over(tmp_path, other, capsys, change):
    write_owner(tmp_path, replace(other, **change))
    with run_lock(tmp_path):
        assert "has ended without releasing the directory; taking it over" in capsys.readouterr().err
        assert json.loads((tmp_path / "run.lock").read_text())["processes"][0]["pid"] == os.getpid()


def test_a_killed_process_that_nobody_has_waited_for_is_dead(tmp_path):
    process = subprocess.Popen(SLEEPER, stdin=subprocess.PIPE)
    dead = replace(Process.current(), pid=process.pid, start=data.run_lock._start_of(process.pid))
    write_owner(tmp_path, dead)
    process.kill()
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    with run_lock(tmp_path):
        pass
    process.communicate()


@pytest.mark.parametrize(
    "elsewhere",
    [{"host": "node-7"}, {"boot": "another pid:[1]"}],
    ids=["another_machine", "another_container"],
)
def test_elsewhere_the_last_sign_of_life_decides(tmp_path, elsewhere):
    far = replace(Process.current(), **elsewhere)
    write_owner(tmp_path, far, age=0.9 * STALE_SECONDS)
    with pytest.raises(RecipeError, match="with a sign of life in the last 120 s"), run_lock(tmp_path):
        pytest.fail("beside a run elsewhere")
    write_owner(tmp_path, far, age=1.1 * STALE_SECONDS)
    with run_lock(tmp_path):
        pass


def test_after_a_reboot_of_the_owners_machine_nothing_waits(tmp_path, monkeypatch):
    before = replace(Process.current(), boot="the boot before this pid:[1]")
    write_owner(tmp_path, before, age=60)
    monkeypatch.setattr(psutil, "boot_time", lambda: time.time() - 30)
    with run_lock(tmp_path):
        pass
    # Another machine's last sign of life says nothing about this one's boot.
    write_owner(tmp_path, replace(before, host="node-7"), age=60)
    with pytest.raises(RecipeError), run_lock(tmp_path):
        pytest.fail("beside a run elsewhere")


def test_of_many_runs_started_together_exactly_one_wins(tmp_path, other):
    """All of them find a dead owner; each looks at it for a while before it writes."""
    write_owner(tmp_path, replace(other, pid=2**22 - 1))
    script = (
        "import sys, time; from pathlib import Path; import data.run_lock\n"
        "from data.run_lock import run_lock\n"
        "life = data.run_lock._life\n"
        "data.run_lock._life = lambda *given: [life(*given), time.sleep(0.3)][0]\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "try:\n"
        "    with run_lock(Path(sys.argv[1])):\n"
        "        print('won', flush=True); sys.stdin.read()\n"
        "except ValueError:\n"
        "    print('refused', flush=True)\n"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", script, tmp_path],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(4)
    ]
    for run in runs:
        assert run.stdout.readline() == "ready\n"
    for run in runs:
        run.stdin.write("go\n")
        run.stdin.flush()
    answers = [run.stdout.readline() for run in runs]
    assert sorted(answers) == ["refused\n"] * 3 + ["won\n"]
    for run in runs:
        run.communicate()
    assert not (tmp_path / "run.lock").exists()


def test_an_owner_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(data.run_lock, "BEAT_SECONDS", 0.01)
    with run_lock(tmp_path):
        lock = tmp_path / "run.lock"
        os.utime(lock, (0, 0))
        while lock.stat().st_mtime == 0:
            time.sleep(0.01)


def test_a_run_whose_directory_was_taken_over_notices(tmp_path):
    """As after a stop of some minutes on another machine."""
    with run_lock(tmp_path) as lock:
        lock.check()
        usurper = RunLock(lock.path, "output_dir", Owner.of([replace(Process.current(), host="node-7")]))
        lock.path.write_text(json.dumps(asdict(usurper.owner)))
        with pytest.raises(LockLostError, match=r"taken over by process \d+ on node-7"):
            lock.check()
    assert (tmp_path / "run.lock").exists()  # the other's


def test_a_torn_file_has_no_owner(tmp_path):
    (tmp_path / "run.lock").write_text('{"processes": [{"host": "a')
    with run_lock(tmp_path) as lock:
        lock.check()


def test_a_directory_that_cannot_be_written(tmp_path):
    with (
        pytest.raises(RecipeError, match=r"cannot be locked \(No such file or directory\)"),
        run_lock(tmp_path / "x"),
    ):
        pass
