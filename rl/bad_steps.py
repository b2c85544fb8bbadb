"""Writes the rows of a step with non-finite numbers to `output_dir/bad_steps/`, as strict JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from data.atomic import write_atomic

BAD_STEPS_FOLDER = "bad_steps"

# Files of one process that are kept; the oldest go first.
FILES_KEPT = 20


@dataclass(frozen=True)
class BadStep:
    """What one process knows about a step that was skipped.

    step: as in metrics.jsonl. sampled_at_step: steps that were done when its rollouts were sampled. causes:
    what was not finite on any process; causes_here: on this one. grad_norm: before clipping, None if unknown.
    losses: one per micro-batch. rows: see `describe_rows`.
    """

    step: int
    rank: int
    sampled_at_step: int
    causes: Sequence[str]
    causes_here: Sequence[str]
    grad_norm: float | None
    losses: Sequence[float]
    rows: Sequence[Mapping[str, Any]]


def describe_rows(
    batch: Mapping[str, Any], meshes: Sequence[str], reward_names: Sequence[str]
) -> list[dict[str, Any]]:
    """One dictionary per row of a micro-batch: mesh, seed, tokens, rewards and advantage.

    batch: with `completion_ids`, `completion_mask` and `advantages` of TRL, (B,) or with phase credit (B, T),
    the columns of `RewardRecord`, and `row_seed` (B,) int64. A reward that the row did not receive is None.
    With its seed, the weights that sampled the row give its tokens again.
    """
    lengths = batch["completion_mask"].sum(dim=1).tolist()
    columns: list[list[Any]] = [
        batch[key].tolist() for key in ("row_seed", "completion_ids", "rewards", "has_reward", "advantages")
    ]
    rows = []
    for mesh, length, seed, tokens, rewards, received, advantage in zip(
        meshes, lengths, *columns, strict=True
    ):
        values = [value if there else None for value, there in zip(rewards, received, strict=True)]
        rows.append(
            {
                "mesh": mesh,
                "seed": seed,
                "tokens": tokens[: int(length)],
                "rewards": dict(zip(reward_names, values, strict=True)),
                # with phase credit, one for each token
                "advantage": advantage[: int(length)] if isinstance(advantage, list) else advantage,
            }
        )
    return rows


def write_bad_step(folder: Path, bad: BadStep, processes: int) -> Path:
    """Write `step-N.json`, or `step-N-rank-R.json` with several processes, and delete this process's oldest.

    Numbers that JSON does not have are the strings "NaN", "Infinity" and "-Infinity".
    """
    folder.mkdir(parents=True, exist_ok=True)
    suffix = f"-rank-{bad.rank}" if processes > 1 else ""
    path = folder / f"step-{bad.step}{suffix}.json"
    text = json.dumps(strict(vars(bad)), allow_nan=False, indent=1)
    write_atomic(path, (text + "\n").encode())
    own = [other for other in folder.glob(f"step-*{suffix}.json") if _step(other, suffix) is not None]
    for old in sorted(own, key=lambda other: _step(other, suffix) or 0)[:-FILES_KEPT]:
        old.unlink(missing_ok=True)
    return path


def strict(value: Any) -> Any:
    """A value with every non-finite number as text and every tensor as a list."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: strict(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [strict(entry) for entry in value]
    return value


def _step(path: Path, suffix: str) -> int | None:
    number = path.name.removeprefix("step-").removesuffix(f"{suffix}.json")
    return int(number) if number.isdigit() else None
