"""Profiles some steps of training with torch's profiler: a trace for Perfetto and a table of operators."""

from __future__ import annotations

import gzip
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

PROFILE_FOLDER = "profile"
# Lines of each table.
_ROWS = 40
# gzip's level: 9 takes four times as long for 4 % less.
_LEVEL = 4


class ProfileSteps(TrainerCallback):
    """Profiles steps `first` to `last` (from 1) of this process and writes two files to `folder`.

    `steps_F-L_rankR.json.gz`: a trace that Perfetto and chrome://tracing open; its user annotations are the
    phases of `rl.phases`. `steps_F-L_rankR.txt`: operators and kernels by their own time. F and L are the
    steps that were profiled: fewer than requested if the run resumed or stopped among them. Outside of them
    nothing is recorded, and the numbers of a run do not change.
    """

    def __init__(self, first: int, last: int, folder: Path) -> None:
        self.first, self.last, self.folder = first, last, folder
        self._profiler: profile | None = None
        self._began = 0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start before the first of the steps, or where a run resumes among them."""
        step = state.global_step + 1
        if self._profiler is None and self.first <= step <= self.last:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # it prints two lines per profile below that
            self._began = step
            self._profiler = profile(activities=activities)
            self._profiler.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the files after the last of the steps."""
        if state.global_step >= self.last:
            self._write(state.global_step, args.process_index)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write what was recorded if the run stops among the steps."""
        self._write(state.global_step, args.process_index)

    def _write(self, last: int, rank: int) -> None:
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"steps_{self._began}-{last}_rank{rank}"
        plain, packed = (self.folder / f".{name}.{suffix}.partial" for suffix in ("json", "gz"))
        profiler.export_chrome_trace(str(plain))
        with plain.open("rb") as source, gzip.open(packed, "wb", _LEVEL) as target:
            shutil.copyfileobj(source, target, 1 << 20)
        plain.unlink()
        os.replace(packed, self.folder / f"{name}.json.gz")
        # torch's own table takes a quarter of a minute per 100,000 events.
        events = [
            Event(event.name(), event.start_ns(), event.end_ns(), _track(event))
            for event in profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
        ]
        (self.folder / f"{name}.txt").write_text(operator_table(events))


@dataclass(frozen=True)
class Event:
    """An operator, annotation or kernel: begin and end in ns; `track`: its CPU thread, or None on a GPU."""

    name: str
    start: int
    end: int
    track: int | None


def operator_table(events: Iterable[Event]) -> str:
    """Text tables of CPU operators and, if there are any, GPU kernels by own time, the longest first."""
    on_cpu: dict[int, list[Event]] = defaultdict(list)
    on_gpu: dict[str, list[int]] = defaultdict(list)
    for event in events:
        if event.track is None:
            on_gpu[event.name].append(event.end - event.start)
        else:
            on_cpu[event.track].append(event)
    tables = [_table("CPU operator", own_times(on_cpu.values()))]
    return "\n".join(tables + ([_table("GPU kernel", on_gpu)] if on_gpu else []))


def own_times(threads: Iterable[list[Event]]) -> dict[str, list[int]]:
    """By name, the time of each call without that of the calls inside it, ns; a list of events per thread.

    Of a phase that is the time outside of operators: Python, and waiting.
    """
    own: dict[str, list[int]] = defaultdict(list)
    for events in threads:
        stack: list[tuple[Event, int]] = []  # open events, with the time of their children so far

        def close(stack: list[tuple[Event, int]] = stack) -> None:
            event, inner = stack.pop()
            whole = event.end - event.start
            own[event.name].append(whole - inner)
            if stack:
                stack[-1] = (stack[-1][0], stack[-1][1] + whole)

        for event in sorted(events, key=lambda event: (event.start, -event.end)):
            while stack and stack[-1][0].end <= event.start:
                close()
            stack.append((event, 0))
        while stack:
            close()
    return own


def _table(kind: str, times: dict[str, list[int]]) -> str:
    rows = sorted(times.items(), key=lambda row: -sum(row[1]))
    total = sum(sum(own) for own in times.values()) or 1
    lines = [f"{kind:<80} {'own ms':>10} {'share':>7} {'calls':>9} {'mean us':>10}"]
    for name, own in rows[:_ROWS]:
        whole, count = sum(own), len(own)
        lines.append(
            f"{name[:80]:<80} {whole / 1e6:>10.1f} {whole / total:>7.1%} {count:>9} "
            f"{whole / count / 1e3:>10.1f}"
        )
    return "\n".join([*lines, f"{len(rows)} names, {total / 1e6:.1f} ms", ""])


def _track(event: Any) -> int | None:
    return int(event.start_thread_id()) if event.device_type() == DeviceType.CPU else None
