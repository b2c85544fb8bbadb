"""`--dry-run`: runs every part of a training run once, in a temporary folder, and prints times and memory.

Evaluates one held-out mesh, samples and scores the rollouts of a step with the recipe's own backend, updates,
saves a checkpoint, exports, rigs a mesh; then resumes from that checkpoint for a second step. The temporary
folder lies beside `output_dir`, on the same disk, and is removed at the end, also after a failure.
"""

from __future__ import annotations

import gc
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from trl import GRPOConfig

from data.formats.load import find_meshes
from data.sets.prepared import is_prepared
from data.typed_recipe import RecipeError
from rl.peak_memory import Peak, read_peak, reset_peak
from rl.phases import watching
from rl.preflight.disk import existing_parent
from rl.preflight.finding import in_bytes, in_time
from rl.preflight.launch import StepBatch
from rl.recipe import Recipe, grpo_arguments
from rl.reward_service import starting_service
from rl.training import train

# Files read beyond the groups of a step, in case some of them are unusable.
_SPARE_FILES = 4


@dataclass(frozen=True)
class Part:
    """One part of the run: seconds, and the main process's peak memory."""

    name: str
    seconds: float
    peak: Peak


class PartRecorder:
    """A watcher that records each outermost phase; phases inside another count to it."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self._depth, self._start = 0, 0.0
        self.idle_since = time.perf_counter()
        reset_peak()

    def begins(self, name: str) -> None:
        """Start the clock; what happened since the last phase is the start of the run, if it is the first."""
        if self._depth == 0:
            _synchronise()
            if not self.parts:
                self.parts.append(Part("start", time.perf_counter() - self.idle_since, read_peak()))
            reset_peak()
            self._start = time.perf_counter()
        self._depth += 1

    def ends(self, name: str) -> None:
        """Record the phase if it is not inside another."""
        self._depth -= 1
        if self._depth == 0:
            _synchronise()
            self.parts.append(Part(name, time.perf_counter() - self._start, read_peak()))


def dry_run(recipe: Recipe) -> None:
    """Run everything once and print a table of the parts; writes nothing into `output_dir`.

    Raises what `rl.training.train` raises.
    """
    try:
        # Before PartialState is used: these arguments decide how the processes find each other.
        processes = GRPOConfig(**grpo_arguments(recipe)).world_size
    except ValueError as error:
        raise RecipeError(f"'train': {error}") from error
    groups = StepBatch.of(recipe.train, processes).groups
    with temporary_directory(Path(recipe.output_dir)) as folder:
        first = shortened(recipe, folder / "run", groups)
        second = replace(
            first,
            train={**first.train, "max_steps": 2},
            eval=replace(first.eval, before_and_after=False),
        )
        recorder = PartRecorder()
        with starting_service(first) as start:
            with watching(recorder):
                train(first, start, held_out=1)
            _release()
            began = time.perf_counter()
            reset_peak()
            train(second, start, held_out=1)
            resumed = Part("resume and step 2", time.perf_counter() - began, read_peak())
    if PartialState().is_main_process:
        print(table([*recorder.parts, resumed]))
        print("ok: one step of everything, and one more after a resume; nothing was written")


def shortened(recipe: Recipe, output: Path, groups: int) -> Recipe:
    """The recipe with one step, one held-out mesh and the meshes of one step, writing to `output`."""
    data, count = recipe.data, groups + _SPARE_FILES
    if data.meshes is None:
        data = replace(data, train_count=min(data.train_count, groups))
    data = replace(
        data,
        meshes=few_files(data.meshes, count),
        eval_meshes=few_files(data.eval_meshes, _SPARE_FILES),
        eval_count=1,
    )
    train = {
        **recipe.train,
        "max_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "logging_steps": 1,
        "report_to": "none",
    }
    return replace(
        recipe,
        output_dir=str(output),
        data=data,
        train=train,
        train_guard=replace(recipe.train_guard, save_every_minutes=None, stop_after_minutes=None),
        profile=replace(recipe.profile, steps=None),
        resume=True,
    )


def few_files(names: str | Sequence[str] | None, count: int) -> list[str] | None:
    """Up to `count` of the files that the names match, evenly spread; prepared folders stay."""
    if names is None:
        return None
    listed = [names] if isinstance(names, str) else list(names)
    prepared = [name for name in listed if is_prepared(name)]
    unprepared = [name for name in listed if not is_prepared(name)]
    files = find_meshes(unprepared) if unprepared else []
    if not files:  # names that match nothing are reported when they are read
        return listed
    chosen = [files[i * len(files) // min(count, len(files))] for i in range(min(count, len(files)))]
    return [*prepared, *map(str, chosen)]


@contextmanager
def temporary_directory(output: Path) -> Iterator[Path]:
    """A temporary folder beside `output`, the same in all processes, removed by the main one.

    Raises RecipeError if the folder that holds `output` cannot be written.
    """
    state = PartialState()
    created = [""]
    if state.is_main_process:
        parent = existing_parent(output.absolute().parent)
        try:
            created[0] = tempfile.mkdtemp(prefix=".dry-run-", dir=parent)
        except OSError as error:
            raise RecipeError(
                f"'output_dir' {output}: {parent} cannot be written ({error.strerror}); choose another"
            ) from error
    if state.num_processes > 1:
        broadcast_object_list(created)
    folder = Path(created[0])
    try:
        yield folder
        state.wait_for_everyone()
    finally:
        if state.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)


def table(parts: Sequence[Part]) -> str:
    """One line per part: seconds, the peak of resident memory, and that of the GPU if there is one."""
    lines = [
        f"{'part':<20} {'time':>8} {'memory':>10}" + ("" if parts[0].peak.gpu is None else "        GPU")
    ]
    for part in parts:
        gpu = "" if part.peak.gpu is None else f" {in_bytes(part.peak.gpu):>10}"
        lines.append(f"{part.name:<20} {in_time(part.seconds):>8} {in_bytes(part.peak.resident):>10}{gpu}")
    return "\n".join(lines)


def _release() -> None:
    """Free the first trainer, so that the second does not add to it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
