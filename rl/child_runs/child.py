"""A command of this project as a child process: its log, its signals, and why it failed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from data.stop_signals import on_parents_death

# What commands of this project say, and argparse with their name before it.
_SAID = re.compile(r"(?:python -m [\w.]+: )?(?:failed|error): (.+)")
_LONGEST = 300  # characters of a reason
_END_OF_LOG = 1 << 16


class Child:
    """`python -m MODULE …`, writing to `log` and reading nothing; `environment` is added to this process's.

    It has a process group of its own: a terminal's Ctrl-C reaches it once, through `send`. Should this
    process be killed, Linux sends it SIGTERM, so that it saves its step and does not train on unwatched.
    """

    def __init__(self, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stream:
            stream.write(f"$ python -m {' '.join(arguments)}\n".encode())
            stream.flush()
            self._start = stream.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                process_group=0,
                preexec_fn=_end_with_parent,
            )

    def send(self, signum: int) -> None:
        """Send it a signal, if it still runs."""
        self._process.send_signal(signum)

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""
        return self._process.poll()

    def wait(self) -> int:
        """Wait for its end; its exit code."""
        return self._process.wait()

    def reason(self, code: int) -> str:
        """Why it ended with this exit code, in its own words if it left any."""
        with self.log.open("rb") as stream:
            stream.seek(max(self._start, self.log.stat().st_size - _END_OF_LOG))
            lines = re.split(r"[\r\n]+", stream.read().decode(errors="replace"))
        said = [found[1] for line in lines if (found := _SAID.match(line))]
        if said:
            return said[-1][:_LONGEST]
        if code < 0:
            name = signal.Signals(-code).name
            more = "; the machine may have run out of memory" if name == "SIGKILL" else ""
            return f"it was ended by {name}{more}"
        raised = [line for line in lines if re.match(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt)\b", line)]
        if raised:
            return raised[-1][:_LONGEST]
        return f"it ended with exit code {code}"


def _end_with_parent() -> None:
    on_parents_death(signal.SIGTERM)
