"""Locks an output directory for one run: a live owner is refused by name, a dead one is taken over."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

import psutil

from data.command_line import RunFailedError
from data.typed_recipe import RecipeError

RUN_LOCK = "run.lock"
# The owner touches the file this often (seconds). Only runs on other hosts, whose processes cannot be
# looked up, are judged by it.
BEAT_SECONDS = 10.0
# An owner on another host whose last beat is older than this counts as dead (seconds).
STALE_SECONDS = 120.0
# Errors of file systems that do not have flock.
_NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class LockLostError(RunFailedError):
    """Another run took the directory over while this one was stopped or cut off from the file system."""


@dataclass(frozen=True)
class Process:
    """A process of a run: its machine, number and start. Numbers are reused; the pair with the start is not.

    Attributes:
        host: name of the machine.
        boot: identifies the machine's boot and the container (PID namespace): within one, numbers are
            comparable.
        pid: process number.
        start: clock ticks from boot to the start of the process; seconds since the epoch outside Linux.
    """

    host: str
    boot: str
    pid: int
    start: float

    @staticmethod
    def current() -> Process:
        """This process."""
        pid = os.getpid()
        return Process(socket.gethostname(), _boot(), pid, _start_of(pid) or 0.0)

    @property
    def here(self) -> bool:
        """Whether its number can be looked up by this process."""
        return (self.host, self.boot) == (socket.gethostname(), _boot())

    @property
    def alive(self) -> bool:
        """Whether it runs; valid only where `here` is true."""
        return _start_of(self.pid) == self.start


@dataclass(frozen=True)
class Owner:
    """The run that holds a lock: all its processes, the main one first, its command and when it began."""

    processes: list[Process]
    command: str
    since: str
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    @staticmethod
    def of(processes: Sequence[Process]) -> Owner:
        """The run of this process, from now on."""
        now = datetime.now().astimezone().isoformat(" ", "seconds")
        return Owner(list(processes), " ".join(sys.argv), now)


@contextmanager
def run_lock(
    directory: Path,
    key: str = "output_dir",
    processes: Sequence[Process] | None = None,
    name: str = RUN_LOCK,
) -> Iterator[RunLock]:
    """Hold the lock of an existing `directory` for the block.

    `key` is the recipe's key for error messages; `processes` are all of this run, this one first. The others
    share the lock.

    Raises:
        RecipeError: a live run holds it, or the directory is not writable.
    """
    lock = RunLock(directory / name, key, Owner.of(processes or [Process.current()]))
    lock.acquire()
    try:
        yield lock
    finally:
        lock.release()


def refuse_live_owner(directory: Path, key: str = "output_dir", name: str = RUN_LOCK) -> None:
    """Raise RecipeError if a live run holds the lock of `directory` now; does not take it.

    For an answer before slow imports. Only the main process of a run may ask, before it has the lock.
    """
    path = directory / name
    owner = _read(path)
    if owner is not None and (alive := _life(owner, path)) is not None:
        raise RecipeError(_refusal(path, key, owner, alive))


class RunLock:
    """A lock file with its owner in JSON.

    A claim is decided under `flock`, which the kernel releases with its process, so of two runs that start
    together exactly one wins. The file then stays with its owner: `flock` alone would be lost on file systems
    that forget locks, and could not tell who holds it.

    An owner on this machine is alive while any of its processes is (number and start time agree): ranks
    outlive a killed launcher. One on another machine is alive while it touches the file, every
    `BEAT_SECONDS`; ages are taken from the file server's clock. A run that was stopped for longer than
    `STALE_SECONDS` may find its directory taken over by another machine: `check` then raises, so that it
    saves nothing more.
    """

    def __init__(self, path: Path, key: str, owner: Owner) -> None:
        self.path, self.key, self.owner = path, key, owner
        self._stop = threading.Event()
        self._beats: threading.Thread | None = None

    def acquire(self) -> None:
        """Take the lock, or raise RecipeError."""
        try:
            with _exclusive(self.path) as descriptor:
                owner = _parse(os.read(descriptor, 1 << 20))
                if owner is not None:
                    alive = _life(owner, self.path)
                    if alive is not None:
                        raise RecipeError(_refusal(self.path, self.key, owner, alive))
                    main = owner.processes[0]
                    print(
                        f"{self.path.parent}: the run of process {main.pid} on {main.host} since "
                        f"{owner.since} has ended without releasing the directory; taking it over",
                        file=sys.stderr,
                    )
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(asdict(self.owner), indent=2).encode(), 0)
                os.fsync(descriptor)
        except OSError as error:
            raise RecipeError(
                f"'{self.key}' {self.path.parent} cannot be locked ({error.strerror}); choose a directory "
                "that you can write to"
            ) from error
        self._beats = threading.Thread(target=self._beat, name="run lock", daemon=True)
        self._beats.start()

    def check(self) -> None:
        """Raise LockLostError if another run has taken the directory over."""
        owner = _read(self.path)
        if owner is not None and owner.token != self.owner.token:
            other = owner.processes[0]
            raise LockLostError(
                f"{self.path.parent} was taken over by process {other.pid} on {other.host} while this run "
                "was stopped or cut off from the file system; this run saves nothing more"
            )

    def release(self) -> None:
        """Remove the file if it is still this run's."""
        self._stop.set()
        if self._beats is not None:
            self._beats.join()
        with suppress(OSError), _exclusive(self.path) as descriptor:  # such as a directory that was deleted
            owner = _parse(os.read(descriptor, 1 << 20))
            if owner is None or owner.token == self.owner.token:
                self.path.unlink()

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            owner = _read(self.path)
            if owner is not None and owner.token == self.owner.token:
                with suppress(OSError):  # a file server that is away: the next beat tries again
                    os.utime(self.path)


@contextmanager
def _exclusive(path: Path) -> Iterator[int]:
    """Descriptor of the file, created if missing, under `flock`."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in _NO_FLOCK:
                    raise
                print(
                    f"{path.parent}: this file system has no file locks (flock); of runs started in the same "
                    "instant, more than one may begin",
                    file=sys.stderr,
                )
            # The owner may have removed the file between opening and locking.
            if not path.exists() or path.stat().st_ino != os.fstat(descriptor).st_ino:
                continue
            yield descriptor
            return
        finally:
            os.close(descriptor)


def _life(owner: Owner, path: Path) -> Process | None:
    """A process of the owner that counts as alive, None if the whole run is dead."""
    for process in owner.processes:
        if process.here and process.alive:
            return process
    elsewhere = [process for process in owner.processes if not process.here]
    if not elsewhere:
        return None
    beat = path.stat().st_mtime
    if _now_at(path.parent) - beat > STALE_SECONDS:
        return None
    # The same machine, started again since the last beat: nothing of that run is left.
    rebooted = psutil.boot_time() > beat
    return next((p for p in elsewhere if not (rebooted and p.host == socket.gethostname())), None)


def _refusal(path: Path, key: str, owner: Owner, alive: Process) -> str:
    what = f"'{key}' {path.parent} is in use by process {alive.pid} on {alive.host} since {owner.since}"
    if alive.here:
        return f"{what} ({owner.command}); wait for it, stop it, or choose another directory"
    return (
        f"{what} ({owner.command}), on another machine or in another container, with a sign of life in the "
        f"last {STALE_SECONDS:g} s; wait for it, stop it, or choose another directory (if it is dead, try "
        f"again in {STALE_SECONDS:g} s)"
    )


def _read(path: Path) -> Owner | None:
    try:
        return _parse(path.read_bytes())
    except OSError:
        return None


def _parse(content: bytes) -> Owner | None:
    """The owner; None for a file without one, as a crash between creating and writing it leaves."""
    try:
        values = json.loads(content)
        processes = [Process(**process) for process in values["processes"]]
        return Owner(processes, values["command"], values["since"], values["token"]) if processes else None
    except (ValueError, KeyError, TypeError):
        return None


def _boot() -> str:
    """The machine's boot and this process's PID namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _start_of(pid: int) -> float | None:
    """When a process started, see `Process.start`; None if there is none, or only its exit status is left."""
    try:
        # The fields after the command, which may hold spaces and brackets: the 3rd is the state, the 22nd the
        # start.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else float(fields[19])
    except OSError:
        pass
    if sys.platform == "linux":
        return None
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def _now_at(directory: Path) -> float:
    """The time by the clock that dates the directory's files, in seconds since the epoch."""
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            os.utime(file.fileno())
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()
