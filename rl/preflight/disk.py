"""Checks free disk space against what the run will write: checkpoints, the policy, metrics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data.disk_space import mount_point
from rl.preflight.finding import Finding, counted, in_bytes, ok, problem, warning
from rl.preflight.memory_need import state_bytes
from rl.preflight.model_size import ModelSize
from rl.recipe import Recipe
from rl.run_files import BEST_FOLDER, POLICY_FOLDER, ROLLOUTS_FOLDER

# A line of metrics.jsonl, and a checkpoint's files besides weights and optimiser: tokenizer, states, history.
_LINE = 3 << 10
_SMALL_FILES = 1 << 20


@dataclass(frozen=True)
class DiskNeed:
    """Bytes of one checkpoint, their largest number, of policies, of kept rollouts, and of other files."""

    checkpoint: int
    checkpoints: int
    policy: int
    rollouts: int
    other: int

    @property
    def total(self) -> int:
        """Bytes of everything, when all of it exists."""
        return self.checkpoint * self.checkpoints + self.policy + self.rollouts + self.other


def disk_need(recipe: Recipe, size: ModelSize) -> DiskNeed:
    """What the run writes to `output_dir`: float32 weights, and the optimiser's states of what is trained.

    While a checkpoint is saved there is one more than `train.save_total_limit`; with `eval.every` there are
    the refined policy, the best one, and the one that is about to replace it.
    """
    train = recipe.train
    weights = 4 * (size.trained if size.adapters else size.model)
    states = int(state_bytes(train) * size.trained)
    checkpoint = weights + _SMALL_FILES + states
    interval = train["save_steps"]
    every = int(interval if interval >= 1 else max(1, interval * train["max_steps"]))
    saves = train["max_steps"] // every + 1
    if train.get("save_strategy") == "no":
        saves = 0
    limit = train["save_total_limit"]
    kept = saves if limit is None else min(saves, max(1, limit) + 1)
    policy = 4 * (size.model - size.adapters + size.vae) + _SMALL_FILES
    return DiskNeed(
        checkpoint,
        kept,
        policy * (3 if recipe.eval.every else 1),
        recipe.report.max_megabytes << 20 if recipe.report.every else 0,
        _LINE * train["max_steps"] + _SMALL_FILES,
    )


def already_written(output: Path) -> int:
    """Bytes of checkpoints, policies and rollouts that an earlier run left and this one replaces."""
    folders = [output / name for name in ("checkpoints", POLICY_FOLDER, BEST_FOLDER, ROLLOUTS_FOLDER)]
    return sum(f.stat().st_size for folder in folders for f in folder.rglob("*") if f.is_file())


def existing_parent(path: Path) -> Path:
    """The path itself or its nearest ancestor that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def disk_finding(need: DiskNeed, written: int, free: int, output: Path) -> Finding:
    """The space that is still needed against the space that is free."""
    missing = max(0, need.total - written)
    parts = f"{counted(need.checkpoints, 'checkpoint')} of {in_bytes(need.checkpoint)}"
    parts += f", policy {in_bytes(need.policy)}"
    keys = "train.save_total_limit"
    if need.rollouts:
        parts += f", kept rollouts {in_bytes(need.rollouts)}"
        keys += " or report.max_megabytes"
    text = (
        f"{in_bytes(need.total)} needed in {output} ({parts}), {in_bytes(free)} free on the disk at "
        f"{mount_point(output)}"
    )
    if missing > free:
        return problem(
            "disk",
            f"{text}: {in_bytes(missing - free)} too little; free space, set output_dir to another disk, or "
            f"lower {keys}",
        )
    if missing > 0.8 * free:
        return warning("disk", f"{text}: it will be nearly full; free space")
    return ok("disk", text)
