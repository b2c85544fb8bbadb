"""Peak memory of this process over a stretch of work: resident, and allocated on its GPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# Written to clear_refs, it sets the peak back to what is resident now (proc(5)).
_RESET_PEAK = "5"


@dataclass(frozen=True)
class Peak:
    """Bytes; `gpu` is None without CUDA."""

    resident: int
    gpu: int | None


def reset_peak() -> None:
    """Begin a stretch."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:  # not Linux, or not permitted: peaks are then those since the process began
        return


def read_peak() -> Peak:
    """The peaks since `reset_peak`; without Linux's /proc, what is resident now."""
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    try:
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        return Peak(int(lines["VmHWM"].split()[0]) << 10, gpu)
    except (OSError, KeyError):
        return Peak(psutil.Process().memory_info().rss, gpu)
