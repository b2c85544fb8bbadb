"""Checkpoints of a run: written beside, moved to their place when complete, found again for a resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

CHECKPOINTS_FOLDER = "checkpoints"
# The trainer writes this file of a checkpoint last.
TRAINER_STATE_FILE = "trainer_state.json"


def find_checkpoints(directory: Path) -> list[Path]:
    """The complete `checkpoint-N` folders of `directory`, oldest first."""
    return sorted((path for path in directory.glob("checkpoint-*") if _is_complete(path)), key=_step)


class MoveWhenComplete(TrainerCallback):
    """Moves a checkpoint that the trainer has finished into `directory`, and keeps the newest there.

    The trainer writes `checkpoint-N` into its own output directory file by file. Only whole folders get
    here, by one rename, so a run may stop at any moment. With `save_total_limit` older ones are removed.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Clear away what an earlier run did not finish."""
        if state.is_world_process_zero:
            for path in Path(str(args.output_dir)).glob("checkpoint-*"):
                shutil.rmtree(path)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Called by the trainer on every process when the process has written its share."""
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
        """Take the folder out of sight before its files go one by one."""
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
