"""Errors of a run that `rl.launch` started go to that launcher, which prints each once for all processes."""

from __future__ import annotations

import json
import os
import sys
import time

# Set by rl.launch to its process id, for the processes that it starts.
LAUNCHER = "TOKENRIG_LAUNCHER"


def is_launcher(pid: int) -> bool:
    """Whether process `pid` is the `rl.launch` that started this run."""
    return os.environ.get(LAUNCHER) == str(pid)


def show_error(text: str) -> None:
    """Write one line to standard error or, in one of several processes of `rl.launch`, leave it to that."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not file or not is_launcher(os.getppid()):
        print(text, file=sys.stderr)
        return
    with open(file, "w", encoding="utf-8") as stream:  # torch's format, which it reads when a process failed
        json.dump({"message": text, "timestamp": int(time.time())}, stream)
