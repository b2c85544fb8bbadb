"""The Weights & Biases id of a run, kept in its output directory: a resumed run goes on under its id."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path
from typing import Any

from data.typed_recipe import RecipeError

WANDB_ID_FILE = "wandb_id.txt"
_ID = re.compile(r"[\w.-]{1,128}")


def wandb_arguments(output: Path, resumed: bool) -> dict[str, Any]:
    """The arguments `id`, `resume` and `dir` of `wandb.init` for a run in the directory `output`.

    The id is WANDB_RUN_ID, which `wandb agent` sets, or else that of the run that is resumed, or else a new
    one; it is written to `output`. An id that W&B may know is continued if it does, and begun if it does not,
    as after a first part that was offline. W&B's own files go to `output/wandb`, or to WANDB_DIR.

    Raises RecipeError if the file with the id is damaged.
    """
    output.mkdir(parents=True, exist_ok=True)
    file = output / WANDB_ID_FILE
    given = os.environ.get("WANDB_RUN_ID")
    known = given or (_read(file) if resumed and file.is_file() else None)
    chosen = known or secrets.token_hex(4)
    file.write_text(f"{chosen}\n")
    return {
        "id": chosen,
        "resume": os.environ.get("WANDB_RESUME") or ("allow" if known else None),
        "dir": os.environ.get("WANDB_DIR") or str(output),
    }


def refuse_shared_directory(output: Path, key: str = "output_dir") -> None:
    """Raise RecipeError if `wandb agent` runs this command and its next trial would use the same directory.

    A trial's directory has WANDB_RUN_ID in its path. `key` is the recipe's, for the message.
    """
    sweep, trial = os.environ.get("WANDB_SWEEP_ID"), os.environ.get("WANDB_RUN_ID")
    if sweep and trial and not any(trial in part for part in output.parts):
        raise RecipeError(
            f"'{key}' {output} would be that of every trial of sweep {sweep}; put "
            f"'{key}={output}/$WANDB_RUN_ID' into the sweep's 'command'"
        )


def _read(file: Path) -> str:
    text = file.read_text(errors="replace").strip()
    if _ID.fullmatch(text) is None:
        raise RecipeError(
            f"{file} is damaged; write the run's W&B id into it, or delete it for a new W&B run"
        )
    return text
