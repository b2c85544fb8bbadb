"""Kernels are compiled by one process of a machine and loaded from disk by the others."""

import fcntl
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import numba
import numpy as np
import pytest

from data import compiled
from data.compiled import compile_once, kernel, read_only

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import sys, numpy as np
from data.compiled import compile_once, read_only
from small_kernels import double
compile_once([double], lambda: double(read_only(np.ones(2))))
double(read_only(np.arange(3.0)))
print(sum(double.stats.cache_hits.values()), sum(double.stats.cache_misses.values()))
"""


@pytest.fixture
def project(tmp_path):
    """A folder with a module of one kernel, and an empty cache folder beside it."""
    (tmp_path / "small_kernels.py").write_text(
        "from data.compiled import kernel\n\n\n@kernel()\ndef double(values):\n    return values * 2\n"
    )
    return tmp_path


def start(project: Path) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(project)]),
        "NUMBA_CACHE_DIR": str(project / "cache"),
    }
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env=environment, stdout=subprocess.PIPE, text=True
    )


def hits_and_misses(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return output.strip()


def test_of_processes_that_start_together_one_compiles(project):
    results = [hits_and_misses(process) for process in [start(project) for _ in range(3)]]
    assert sorted(results) == ["0 1", "1 0", "1 0"]
    assert hits_and_misses(start(project)) == "1 0"


def test_a_changed_source_is_compiled_again(project):
    assert hits_and_misses(start(project)) == "0 1"
    source = project / "small_kernels.py"
    source.write_text(source.read_text().replace("* 2", "* 2.5"))
    assert hits_and_misses(start(project)) == "0 1"
    assert len(list((project / "cache").rglob("compiled-*"))) == 2


def test_an_error_is_not_recorded_as_compiled(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    double = kernel()(lambda values: values * 2)

    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        compile_once([double], fail)
    folder = Path(double.stats.cache_path)
    assert not list(folder.glob("compiled-*"))
    with (folder / "compiling.lock").open("w") as lock:  # released
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_without_a_cache_the_kernels_are_just_called():
    called = []
    compile_once([numba.njit(lambda x: x), abs], lambda: called.append(1))
    assert called == [1]


def test_read_only_and_writable_arrays_share_one_version():
    total = numba.njit(lambda values: values.sum())
    frozen = np.arange(3.0)
    frozen.flags.writeable = False
    own = np.arange(4.0)
    assert (total(read_only(frozen)), total(read_only(own))) == (3, 6)
    assert len(total.signatures) == 1
    assert own.flags.writeable


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user's cache folder and a virtual environment's; numba has no folder yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    return tmp_path


def test_kernels_are_cached_in_the_users_folder_and_not_in_the_checkout(home):
    compiled._choose_folder()
    kernel()(lambda x: x)(1)
    assert list((home / "home" / "tokenrig-rl" / "numba").rglob("*.nbc"))
    assert not list(Path(__file__).parent.rglob("*.nbc"))


def test_without_a_home_kernels_are_cached_in_the_environment(home, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # no HOME and no such user
    compiled._choose_folder()
    assert Path(numba.config.CACHE_DIR) == home / "environment" / ".cache" / "tokenrig-rl" / "numba"


def test_a_folder_that_the_user_chose_is_kept(home, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(home / "own"))
    compiled._choose_folder()
    assert str(home / "own") == numba.config.CACHE_DIR


@pytest.fixture
def no_folder(home, monkeypatch):
    """Neither the user's cache folder nor the environment can be written."""
    for name in ("home", "environment"):
        (home / name).write_text("a file, so that root cannot make a folder of this name either")
    return home / f"tokenrig-rl-numba-{os.getuid()}"


def test_a_read_only_installation_without_a_home_is_cached_in_a_private_folder(no_folder):
    compiled._choose_folder()
    assert stat.S_IMODE(no_folder.stat().st_mode) == 0o700
    kernel()(lambda x: x)(1)
    assert list(no_folder.rglob("*.nbc"))


def test_a_folder_that_others_can_write_is_refused(no_folder):
    no_folder.mkdir(mode=0o777)
    no_folder.chmod(0o777)
    with pytest.raises(RuntimeError, match="NUMBA_CACHE_DIR"):
        compiled._choose_folder()
