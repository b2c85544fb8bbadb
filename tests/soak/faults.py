"""The faults of the long run, as data: what is done to the run, how it must end, and what it must say."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from rl.checkpoints import CHECKPOINTS_FOLDER, checkpoint_folders
from tests.rl.commands import ROOT, TIMEOUT
from tests.soak.usage import role_of


@dataclass
class Running:
    """A run's present command. `head`: its external Ray head, if it has one."""

    process: psutil.Process
    recipe: Path
    output: Path
    head: psutil.Process | None = None

    def worker(self, role: str) -> psutil.Process:
        """A process of Ray by what it does: `scorer`, `decoder`, `raylet`, …"""
        parents = [parent for parent in (self.process, self.head) if parent is not None]
        return next(
            child
            for parent in parents
            for child in parent.children(recursive=True)
            if role_of(child) == role and child.status() != psutil.STATUS_STOPPED
        )

    def trainers(self) -> list[psutil.Process]:
        """The training process, or that of `accelerate launch` behind it."""
        launched = [c for c in self.process.children() if "train_grpo.py" in " ".join(c.cmdline())]
        return launched or [self.process]


Inject = Callable[[Running], Any]


@dataclass(frozen=True)
class Fault:
    """One row of the table.

    Attributes:
        name: what happens.
        inject: does it, once the run has made steps.
        exit_code: the command's; None if the run goes on.
        says: must be on standard error, of the run or, with `afterwards`, of the next command.
        damage: done to the output directory before the next command.
        afterwards: what the next command must say.
        start: how the command starts: `python`, `accelerate` (launcher), `external` (external Ray head), or a
            script of this folder that patches the trainer.
    """

    name: str
    inject: Inject
    exit_code: int | None
    says: str = ""
    damage: Callable[[Path], Any] | None = None
    afterwards: str = "resuming from"
    start: str = "python"


def _send(role: str, signum: int) -> Inject:
    return lambda run: run.worker(role).send_signal(signum)


def _second_run(run: Running) -> None:
    """Another command in the same directory: refused by name, within seconds."""
    again = subprocess.run(
        [sys.executable, ROOT / "rl/train_grpo.py", run.recipe],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert again.returncode == 2, again.stderr
    assert f"is in use by process {run.process.pid}" in again.stderr
    assert "Traceback" not in again.stderr


def _kill_launcher_and_rank(run: Running) -> None:
    (rank,) = run.trainers()
    run.process.kill()
    rank.kill()


def newest(output: Path) -> Path:
    """The newest checkpoint, whole or not."""
    return checkpoint_folders(output / CHECKPOINTS_FOLDER)[-1]


def _truncate(output: Path) -> None:
    path = newest(output) / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)


def _flip(output: Path) -> None:
    path = newest(output) / "optimizer.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


TERM, STOPPED = signal.SIGTERM, signal.SIGSTOP
_stop = lambda run: run.process.terminate()  # noqa: E731
DAMAGED = "skipping a damaged checkpoint"

FAULTS = [
    Fault("a scorer is killed", _send("scorer", signal.SIGKILL), None, "is replaced: it died"),
    Fault("a scorer is stopped (SIGSTOP)", _send("scorer", STOPPED), None, "it hung"),
    Fault("the decoder is killed", _send("decoder", signal.SIGKILL), None, "decoder is replaced: it died"),
    Fault(
        "the decoder is stopped (SIGSTOP)", _send("decoder", STOPPED), None, "decoder is replaced: it hung"
    ),
    Fault("a second run in the same directory", _second_run, None),
    Fault("SIGTERM", _stop, 143, "which is saved"),
    Fault("SIGINT", lambda run: run.process.send_signal(signal.SIGINT), 130, "which is saved"),
    Fault("SIGUSR1", lambda run: run.process.send_signal(signal.SIGUSR1), 138, "which is saved"),
    Fault("kill -9 of the training process", lambda run: run.process.kill(), -9),
    Fault(
        "kill -9 of the launcher: its rank stops by itself",
        lambda run: run.process.kill(),
        -9,
        "which is saved",
        start="accelerate",
    ),
    Fault("kill -9 of launcher and rank", _kill_launcher_and_rank, -9, start="accelerate"),
    Fault("newest checkpoint truncated", _stop, 143, damage=_truncate, afterwards=DAMAGED),
    Fault(
        "newest checkpoint without its optimiser",
        _stop,
        143,
        damage=lambda output: (newest(output) / "optimizer.pt").unlink(),
        afterwards=DAMAGED,
    ),
    Fault("bytes of the newest checkpoint flipped", _stop, 143, damage=_flip, afterwards=DAMAGED),
    Fault("disk full while saving", lambda run: None, 1, "No space left on device", start="full_disk.py"),
    Fault("the raylet is killed", _send("raylet", signal.SIGKILL), 1, "failed: Ray's node process (raylet"),
    Fault(
        "the external Ray head is killed",
        lambda run: run.worker("gcs_server").kill(),
        1,
        "failed: ",
        start="external",
    ),
]
