"""Runs made by hand for the tests of the page: an output directory with what a run leaves there."""

import json
from pathlib import Path
from typing import Any

from data import make_creature
from data.rig import Rig
from data.typed_recipe import write_recipe
from rewards.settings import RewardSettings
from rl.evaluation_results import Evaluation, summarise, write_evaluation
from rl.recipe import Recipe
from rl.report.viewer_data import AFTER, BEFORE, TRUTH, RigView, reward_poses
from tests.rl import tiny

REWARDS = ("coverage", "containment", "sparsity", "smoothness")
MESHES = ("fox", "<b>&cat", "owl")


def evaluation(shift: float) -> Evaluation:
    """Three meshes of two rigs; every reward of mesh k, rig r is 0.1 k + 0.05 r + shift."""
    per_rig: dict[str, list[dict[str, float]]] = {}
    for place, name in enumerate(MESHES):
        per_rig[name] = [rig_row(0.1 * place + 0.05 * rig + shift) for rig in range(2)]
    columns = [*REWARDS, "total", "valid", "joints"]
    per_mesh = {
        name: {column: sum(row[column] for row in rows) / len(rows) for column in columns}
        for name, rows in per_rig.items()
    }
    mean, error = summarise(per_mesh, columns)
    return Evaluation("p", 2, 7, per_mesh, mean, error, {}, per_rig=per_rig)


def rig_row(value: float) -> dict[str, float]:
    return {
        **dict.fromkeys(REWARDS, value),
        "total": 8 * value,
        "valid": 1.0,
        "joints": 20.0 + 10 * value,
        "duplicate_joints": 0.0,
        "mean_bone_length": 0.2,
        "unused_bones": value / 2,
        "root_only_vertices": 0.0,
        "worst_stretch": 3 - value,
    }


def metrics_line(step: int, reward: float) -> dict[str, Any]:
    return {
        "step": step,
        "loss": 0.1,
        "reward": reward,
        "reward_std": 0.5,
        "rewards/coverage/mean": reward / 8,
        "rewards/coverage/std": 0.1,
        "kl": 0.01 * step,
        "rig/valid": 0.75,
        "rig/unscored": 1.0,
        "completions/mean_length": 100.0,
        "completions/min_length": 80.0,
        "completions/max_length": 130.0,
        "seconds/rollout": 2.0,
    }


def write_run(
    folder: Path,
    changes: dict[str, Any] | None = None,
    steps: int = 4,
    before: bool = True,
    after: bool = True,
) -> Recipe:
    """A run of `steps` of 4 steps, with the evaluations that are wanted; finished if evaluated after."""
    folder.mkdir(parents=True)
    recipe = tiny.make_recipe(folder / "gone", folder, {"train.max_steps": 4, **(changes or {})})
    write_recipe(recipe, folder / "recipe.yaml")
    lines = [json.dumps(metrics_line(step, float(step))) for step in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    if before:
        write_evaluation(evaluation(0.0), folder / "before.json")
    if after:
        write_evaluation(evaluation(0.25), folder / "after.json")
        (folder / "policy").mkdir()
    return recipe


def views(run: int = 0, kinds: tuple[int, ...] = (0, 1)) -> list[RigView]:
    """Before, after and ground truth of creatures; after has one joint fewer."""
    settings = RewardSettings(poses=2, wide_poses=1)
    found = []
    for seed in kinds:
        creature = make_creature(seed, kind="quadruped" if seed else "biped")
        rig = creature.rig
        fewer = Rig(rig.joints[:-1], rig.parents[:-1], rig.weights[:, :-1])
        for stage, own in ((BEFORE, rig), (AFTER, fewer), (TRUTH, rig)):
            poses = reward_poses(settings, own, 5)
            numbers = {} if stage == TRUTH else {"total": 4.5, "coverage": 0.5}
            owner = None if stage == TRUTH else run
            found.append(RigView(owner, stage, f"mesh {seed}", creature.mesh, own, poses, numbers))
    return found
