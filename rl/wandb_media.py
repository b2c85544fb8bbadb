"""Sends kept rollouts to Weights & Biases: 3D objects, pictures and a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl.rollout_store import KeptRollout

_COLUMNS = ("step", "why", "mesh", "total", "joints", "valid", "failure")


def send_rollouts(
    step: int, new: Sequence[tuple[KeptRollout, Path | None, Path | None]], rows: Sequence[KeptRollout]
) -> None:
    """Log, at `step`, `rollouts/<why>` and `rollouts/<why>_picture` of new rows, and a table of all.

    new: rows with their GLB and picture, None for failures, which are in the table only. Does nothing if no
    wandb run is open, as after `WANDB_DISABLED`.
    """
    import wandb

    if wandb.run is None:
        return
    media: dict[str, Any] = {}
    for row, glb, picture in new:
        caption = f"step {row.step}, {row.why}: {row.mesh}, total {row.total}"
        if glb is not None:
            media[f"rollouts/{row.why}"] = wandb.Object3D(str(glb), caption=caption)
        if picture is not None:
            media[f"rollouts/{row.why}_picture"] = wandb.Image(str(picture), caption=caption)
    names = list(dict.fromkeys(name for row in rows for name in row.weights))
    cells = [
        [*(getattr(row, column) for column in _COLUMNS), *((row.rewards or {}).get(name) for name in names)]
        for row in rows
    ]
    media["rollouts/table"] = wandb.Table(columns=[*_COLUMNS, *names], data=cells)
    wandb.log({**media, "train/global_step": step})
