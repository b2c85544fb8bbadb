"""Saves GRPO checkpoints: moved into place when complete, pruned, checked and listed for resuming."""

from __future__ import annotations

import json
import math
import shutil
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from data.command_line import RunFailedError
from data.disk_space import free_bytes, mount_point, readable, require_space, write_failure
from data.file_content import stand_in_at
from data.manifest import MANIFEST_FILE, damage, folder_bytes, read_manifest, sync, write_manifest
from data.run_lock import RunLock

CHECKPOINTS_FOLDER = "checkpoints"
TRAINER_STATE_FILE = "trainer_state.json"
# What DeepSpeed writes beside its folder of shards, which hold optimiser and scheduler.
_DEEPSPEED_MARK = "latest"
_PACKAGES = ("torch", "trl", "transformers", "accelerate", "peft", "tokenrig-rl")


def checkpoint_folders(directory: Path) -> list[Path]:
    """The `checkpoint-N` folders of `directory`, whole or not, oldest first."""
    folders = [path for path in directory.glob("checkpoint-*") if path.is_dir()]
    return sorted((path for path in folders if path.name.removeprefix("checkpoint-").isdigit()), key=_step)


def last_whole_checkpoint(directory: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint of `directory` that has all it was saved with, and what is wrong with newer ones.

    Each entry of the second is a clause such as "checkpoint-4: optimizer.pt is missing". Without a whole
    checkpoint it describes all of them. Reads every file of the checkpoint that it returns.
    """
    problems: list[str] = []
    for folder in reversed(checkpoint_folders(directory)):
        problem = checkpoint_problem(folder)
        if problem is None:
            return folder, problems
        problems.append(f"{folder.name}: {problem}")
    return None, problems


def checkpoint_problem(folder: Path, content: bool = True) -> str | None:
    """Why a run cannot resume from a checkpoint, None if it can; without `content`, files are not hashed.

    The manifest decides. A checkpoint from before manifests is whole if it has every kind of file that
    resuming reads, safetensors have the length that their header states, and torch files their table of
    contents. In both cases weights, optimiser, scheduler and random state are required: transformers would
    start what is missing afresh without a word.
    """
    try:
        manifest = read_manifest(folder)
    except (OSError, ValueError) as error:
        return stand_in_at(folder / MANIFEST_FILE) or f"{MANIFEST_FILE} cannot be read ({error})"
    if manifest is not None and (problem := damage(folder, manifest, content)) is not None:
        return problem
    if (problem := _missing_state(folder)) is not None or manifest is not None:
        return problem
    return _damaged_without_manifest(folder)


def _missing_state(folder: Path) -> str | None:
    """The kind of file that resuming needs and the checkpoint lacks."""
    state = folder / TRAINER_STATE_FILE
    if not state.is_file():
        return f"{TRAINER_STATE_FILE} is missing"
    try:
        json.loads(state.read_bytes())["global_step"]
    except (OSError, ValueError, KeyError, TypeError):
        return stand_in_at(state) or f"{TRAINER_STATE_FILE} is not a trainer's state"
    deepspeed = (folder / _DEEPSPEED_MARK).is_file()
    needed = {
        "weights (*.safetensors)": ["*.safetensors", "pytorch_model_fsdp*", *(["global_step*"] * deepspeed)],
        "optimiser state (optimizer.pt)": [
            *("optimizer.pt", "optimizer.bin", "optimizer_*"),
            "global_step*/*optim_states*",
        ],
        "scheduler state (scheduler.pt)": ["scheduler.pt", *(["global_step*"] * deepspeed)],
        "random state (rng_state.pth)": ["rng_state*.pth"],
    }
    for what, patterns in needed.items():
        if not any(any(folder.glob(pattern)) for pattern in patterns):
            return f"it has no {what}"
    ranks = {path.stem.removeprefix("rng_state_") for path in folder.glob("rng_state_*.pth")}
    absent = {str(rank) for rank in range(len(ranks))} - ranks
    return f"rng_state_{min(absent)}.pth is missing" if absent else None


def _damaged_without_manifest(folder: Path) -> str | None:
    for path in sorted(folder.rglob("*.safetensors")):
        if (problem := _safetensors_problem(path)) is not None:
            return stand_in_at(path) or f"{path.name} {problem}"
    for index in folder.glob("*.safetensors.index.json"):
        for name in sorted(set(json.loads(index.read_bytes())["weight_map"].values())):
            if not (folder / name).is_file():
                return f"{name} is missing"
    for path in sorted([*folder.rglob("*.pt"), *folder.rglob("*.pth")]):
        if not zipfile.is_zipfile(path):  # a ZIP archive whose table of contents is at its end
            return stand_in_at(path) or f"{path.name} is truncated or not a torch file"
    return None


def _safetensors_problem(path: Path) -> str | None:
    """A header in JSON, its length before it, states where each tensor ends."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, size)))
        end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):
        return "has no readable header"
    expected = 8 + length + end
    return None if size == expected else f"has {size:,} bytes instead of {expected:,}"


def checkpoint_processes(folder: Path) -> int:
    """How many processes saved a checkpoint, by their random states."""
    return len(list(folder.glob("rng_state_*.pth"))) or 1


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """For a block that writes a checkpoint: on an error the partial folder is removed.

    Raises RunFailedError, with the disk and its free space, if a file could not be written.
    """
    try:
        yield
    except Exception as error:
        reason = write_failure(error)
        size = folder_bytes(folder) if folder.is_dir() else 0
        free = free_bytes(folder)
        if PartialState().is_main_process:
            shutil.rmtree(folder, ignore_errors=True)
        if reason is None:
            raise
        raise RunFailedError(
            f"{folder.name} could not be written to {folder.parent} ({reason}): the disk at "
            f"{mount_point(folder)} had {readable(free)} free after {readable(size)} of it; earlier "
            "checkpoints are kept, free some space and run the command again"
        ) from error


class MoveWhenComplete(TrainerCallback):
    """Moves each finished checkpoint into `directory` and deletes old ones.

    The trainer writes `checkpoint-N` file by file into its own output directory. When all processes have
    written their part, the main one adds the manifest, waits until all is on the disk and moves the folder
    here with one rename, so that a run may stop at any moment. Beyond `save_total_limit` the oldest are
    deleted.

    Args:
        directory: where finished checkpoints go.
        lock: the run's, checked before the directory changes.
    """

    def __init__(self, directory: Path, lock: RunLock | None = None) -> None:
        self.directory, self.lock = directory, lock
        self.expected_bytes = 0
        """Estimate of a checkpoint's size, while there is none to go by."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Delete unfinished checkpoints of an earlier run; RunFailedError if the next would not fit."""
        if state.is_world_process_zero:
            for path in Path(str(args.output_dir)).glob("checkpoint-*"):
                shutil.rmtree(path)
            # One more than is kept: an old checkpoint is deleted once the new one is whole.
            missing = (args.save_total_limit or 0) + 1 - len(checkpoint_folders(self.directory))
            ahead = math.ceil((state.max_steps - state.global_step) / max(state.save_steps, 1))
            self._require_space(max(1, min(missing, ahead)))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Before a checkpoint: RunFailedError if it does not fit or the directory is another run's by now."""
        if control.should_save and state.is_world_process_zero:
            if self.lock is not None:
                self.lock.check()
            self._require_space()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Move the checkpoint; called on every process once that process has written its part."""
        processes = PartialState()
        processes.wait_for_everyone()
        if not state.is_world_process_zero:
            return
        working = Path(str(args.output_dir))
        written = working / f"checkpoint-{state.global_step}"
        with writing(written):
            write_manifest(
                written,
                {
                    "step": state.global_step,
                    "saved": datetime.now().astimezone().isoformat(timespec="seconds"),
                    "processes": processes.num_processes,
                    "versions": {name: _version(name) for name in _PACKAGES},
                },
            )
            self.directory.mkdir(parents=True, exist_ok=True)
            self._remove(self.directory / written.name, working)
            written.replace(self.directory / written.name)
            sync(self.directory)
        if args.save_total_limit is not None:
            whole = [
                folder
                for folder in checkpoint_folders(self.directory)
                if checkpoint_problem(folder, content=False) is None
            ]
            for old in whole[: -max(1, args.save_total_limit)]:
                self._remove(old, working)

    def _require_space(self, count: int = 1) -> None:
        earlier = checkpoint_folders(self.directory)
        size = folder_bytes(earlier[-1]) if earlier else self.expected_bytes
        what = "the next checkpoint" if count == 1 else f"room for {count} checkpoints"
        require_space(self.directory, count * size, what)

    def _remove(self, checkpoint: Path, working: Path) -> None:
        """Rename the folder before deleting its files, so that a partial one is never found."""
        if checkpoint.exists():
            doomed = working / f"{checkpoint.name}-old"
            checkpoint.replace(doomed)
            shutil.rmtree(doomed)


def _step(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # a checkout that was not installed
        return None
