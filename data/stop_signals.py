"""Stops a run on SIGINT, SIGTERM, SIGUSR1 or its launcher's death: at once, or after a step of training."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

import psutil

from data.launcher import is_launcher

# SIGUSR1: what Slurm's `--signal=USR1@300` sends before the time limit.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# A launcher passes on a signal that the run also received itself, as with Ctrl-C, and a launcher that dies of
# it causes another: within this time (seconds), further signals are the same request.
SAME_REQUEST_SECONDS = 3.0
_PR_SET_PDEATHSIG = 1


class StopRun(KeyboardInterrupt):
    """A signal stopped the run; a KeyboardInterrupt, so that no `except Exception` holds it up.

    Attributes:
        signum: the signal, 0 if the run's time is up. The exit code is 128 + signum, as a shell reports a
            process killed by it, and 0.
        message: what the user is told.
        together: whether all processes of the run stop at the same place, after a step.
    """

    def __init__(
        self,
        signum: int = signal.SIGINT,
        message: str = "interrupted; run the same command again to resume from the last checkpoint",
        together: bool = False,
    ) -> None:
        super().__init__(message)
        self.signum, self.message, self.together = signum, message, together


class StopSignals:
    """The stop signals of this process. The first one ends `handling_stop_signals` with `StopRun`.

    During `finishing_steps` it only sets `requested`: the training loop finishes its step, saves and stops. A
    later one ends the block at once.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.requested: int = 0
        self.raised: StopRun | None = None
        """What a handler has raised: libraries written in Rust turn it into an error of their own."""
        self.closed = False
        self._clock, self._since = clock, 0.0
        self._deferred = False
        self._process, self._parent = os.getpid(), os.getppid()

    def install(self) -> None:
        """Handle the signals here; again after a library, such as Ray, has set handlers of its own.

        Only the main thread can: in another one nothing is done.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        for signum in STOP_SIGNALS:
            # A parent may have had SIGINT ignored, as shells do for background commands: keep that.
            if signum == signal.SIGINT and signal.getsignal(signum) is signal.SIG_IGN:
                continue
            signal.signal(signum, self._handle)

    @contextmanager
    def finishing_steps(self) -> Iterator[None]:
        """For training: a signal only sets `requested`. StopRun at the end if the loop did not see it."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.requested:
            raise StopRun(self.requested)

    def closing(self) -> None:
        """From now on SIGTERM and SIGUSR1 have no effect: everything is saved, and only closing is left.

        A launcher sends SIGTERM to all its processes as soon as one of them has ended, and may die itself.
        This holds until the process has ended, so that its exit code is the right one. Once more after Ray
        has shut down, which restores the system's handler of SIGTERM behind Python's back.
        """
        self.closed = True
        on_parents_death(0)
        for signum in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(signum, signal.SIG_IGN)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a fork, such as a data loader's worker
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
            return
        if not self.requested:
            self.requested, self._since = signum, self._clock()
            if not self._deferred:
                self._raise()
            if is_first_rank():
                _say(
                    f"\n{signal.Signals(signum).name}: finishing this step and saving; send it again after "
                    f"{SAME_REQUEST_SECONDS:g} s to stop at once\n"
                )
            return
        orphaned = os.getppid() != self._parent
        self._parent = os.getppid()
        if not orphaned and self._clock() - self._since >= SAME_REQUEST_SECONDS:
            self._raise()

    def _raise(self) -> NoReturn:
        self.raised = StopRun(self.requested)
        raise self.raised


# Of this process: handlers are global.
_current: StopSignals | None = None


def stop_signals() -> StopSignals:
    """The stop signals of this process, handled since `handling_stop_signals`; without effect outside it."""
    return _current or StopSignals()


@contextmanager
def handling_stop_signals(until_the_end: bool = True) -> Iterator[StopSignals]:
    """Handle the stop signals during the block, and restore the handlers before it.

    After `closing` they are not restored, since the process is about to end; with `until_the_end` false, for
    a block after which it goes on, they are. Outside the main thread, where Python runs no handlers, the
    signals are left alone.
    """
    global _current
    signals = StopSignals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
    outer, _current = _current, signals
    signals.install()
    _stop_with_launcher()
    try:
        yield signals
    finally:
        _current = outer
        for signum, handler in before.items():
            if not signals.closed or signum == signal.SIGINT or not until_the_end:
                signal.signal(signum, handler)


def ignore_stop_signals() -> None:
    """For a helper process, such as a data loader's worker: it ends with the run, not before it.

    A terminal and Slurm send signals to all processes, and a run that finishes its step needs its workers.
    """
    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


def _stop_with_launcher() -> None:
    """Have Linux send SIGTERM when the launcher dies: its processes must not train on without it.

    A parent is a launcher if it is `rl.launch` or if, as with `accelerate launch`, it was started with this
    script or module among its arguments. The death of any other parent, such as a shell, changes nothing.
    """
    if sys.platform != "linux":
        return
    parent = os.getppid()
    _, *options = sys.orig_argv
    programs = {sys.argv[0], *(options[1:2] if options[:1] == ["-m"] else ())}
    with suppress(psutil.Error):
        if is_launcher(parent) or (parent > 1 and programs & set(psutil.Process(parent).cmdline())):
            on_parents_death(signal.SIGTERM)
            if os.getppid() != parent:  # it died in between
                os.kill(os.getpid(), signal.SIGTERM)


def on_parents_death(signum: int) -> None:
    """Have Linux send a signal, 0 for none, when this process's parent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0)


def is_first_rank() -> bool:
    """Whether this process speaks for its run: launchers number the others from 1."""
    return os.environ.get("RANK", "0") == "0"


def _say(text: str) -> None:
    """Write to standard error from a handler: Python's own streams may be in the middle of a write."""
    with suppress(OSError):
        os.write(2, text.encode())
