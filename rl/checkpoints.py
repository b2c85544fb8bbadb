"""Saves GRPO checkpoints: moved into place when complete, pruned, listed for resuming."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

CHECKPOINTS_FOLDER = "checkpoints"
# The last file the trainer writes into a checkpoint.
TRAINER_STATE_FILE = "trainer_state.json"


def find_checkpoints(directory: Path) -> list[Path]:
    """The complete `checkpoint-N` folders of `directory`, oldest first."""
    return sorted((path for path in directory.glob("checkpoint-*") if _is_complete(path)), key=_step)


class MoveWhenComplete(TrainerCallback):
    """Moves each finished checkpoint into `directory` and deletes old ones.

    The trainer writes `checkpoint-N` file by file into its own output directory. One rename moves the
    finished folder here, so a run may stop at any moment. Beyond `save_total_limit` the oldest are deleted.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Delete unfinished checkpoints of an earlier run."""
        if state.is_world_process_zero:
            for path in Path(str(args.output_dir)).glob("checkpoint-*"):
                shutil.rmtree(path)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Move the checkpoint; called on every process once that process has written its part."""
        PartialState().wait_for_everyone()
        if not state.is_world_process_zero:
            return
        working = Path(str(args.output_dir))
        written = working / f"checkpoint-{state.global_step}"
        self.directory.mkdir(parents=True, exist_ok=True)
        self._remove(self.directory / written.name, working)
        written.replace(self.directory / written.name)
        if args.save_total_limit is not None:
            for old in find_checkpoints(self.directory)[: -max(1, args.save_total_limit)]:
                self._remove(old, working)

    def _remove(self, checkpoint: Path, working: Path) -> None:
        """Rename the folder before deleting its files, so that a partial one is never found."""
        if checkpoint.exists():
            doomed = working / f"{checkpoint.name}-old"
            checkpoint.replace(doomed)
            shutil.rmtree(doomed)


def _step(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def _is_complete(path: Path) -> bool:
    if not path.name.removeprefix("checkpoint-").isdigit() or not any(path.glob("*.safetensors")):
        return False
    try:
        json.loads((path / TRAINER_STATE_FILE).read_text())
    except (OSError, ValueError):
        return False
    return True
