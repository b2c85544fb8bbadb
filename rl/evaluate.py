"""Evaluate a policy on held-out meshes: rewards, validity and joints per rig, as JSON and a table."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from data.command_line import RunFailedError, run_command
from policy.bundle import RigPolicy
from rewards.poses import pose_seed
from rewards.service import RewardService
from rl.meshes import MeshBank
from rl.recipe import Recipe, load_recipe, total_reward
from rl.rollout import row_seeds
from rl.run_directory import make_directory
from rl.session import load_meshes, load_policy, prepare_meshes, reward_service, sample_for_meshes
from rl.trainer import read_rollout, submit_scores


@dataclass(frozen=True)
class Evaluation:
    """Means over the rollouts of each mesh, and over meshes.

    per_mesh: mesh name to {reward…, total, valid, joints}; joints is the mean over valid rigs (NaN-free:
    0 if none). mean and standard_error are over meshes.
    """

    policy: str
    samples: int
    seed: int
    per_mesh: dict[str, dict[str, float]]
    mean: dict[str, float]
    standard_error: dict[str, float]
    diagnostics: dict[str, float]


def evaluate(
    policy: RigPolicy,
    bank: MeshBank,
    meshes: Sequence[int],
    service: RewardService,
    recipe: Recipe,
    name: str,
) -> Evaluation:
    """Sample `eval.samples` rigs per mesh with seeds that depend on the recipe alone, and score them.

    Rollouts that could not be scored (no fault of the policy) are left out of the means, and so are meshes
    without any other. Raises RunFailedError if nothing could be scored.
    """
    settings = recipe.eval
    names = list(recipe.rewards.weights)
    columns = [*names, "total", "valid", "joints"]
    rows = [mesh for mesh in meshes for _ in range(settings.samples)]
    seeds = row_seeds(len(rows), settings.seed)
    rigs = []
    chunks = range(0, len(rows), settings.batch_size)
    for start in tqdm(chunks, desc=f"evaluate {name}", file=sys.stderr):
        part = slice(start, start + settings.batch_size)
        rollouts = sample_for_meshes(
            policy, bank, rows[part], recipe, seeds[part], settings.temperature, settings.batch_size
        )
        rigs += [read_rollout(ids, bank.class_id, bank.vocabulary) for ids in rollouts.rows()[0]]
    pending = submit_scores(
        service, rows, rigs, lambda mesh: pose_seed(settings.seed, bank.samples[mesh].name, 0)
    )
    per_mesh: dict[str, dict[str, float]] = {}
    diagnostics: dict[str, list[float]] = {}
    for mesh in meshes:
        values: dict[str, list[float]] = {column: [] for column in columns}
        for row, rig, score in zip(rows, rigs, pending, strict=True):
            result, rewards = score.score(), score.rewards(names)
            if row != mesh or rewards is None:
                continue
            for reward, value in rewards.items():
                values[reward].append(value)
            values["total"].append(total_reward(rewards, recipe.rewards))
            values["valid"].append(float(result.valid))
            if rig is not None and result.valid:
                values["joints"].append(float(len(rig.joints)))
                for key, number in result.diagnostics.items():
                    diagnostics.setdefault(key, []).append(number)
        if values["total"]:
            per_mesh[bank.samples[mesh].name] = {column: _mean(values[column]) for column in columns}
    if not per_mesh:
        reason = next(
            (group.failure for group in (row.group() for row in pending) if group.failure), "unknown"
        )
        raise RunFailedError(f"no rig could be scored for the evaluation ({reason}); look at the Ray logs")
    means = {column: _mean([row[column] for row in per_mesh.values()]) for column in columns}
    errors = {column: standard_error([row[column] for row in per_mesh.values()]) for column in columns}
    return Evaluation(
        policy=name,
        samples=settings.samples,
        seed=settings.seed,
        per_mesh=per_mesh,
        mean=means,
        standard_error=errors,
        diagnostics={key: _mean(value) for key, value in diagnostics.items()},
    )


def standard_error(values: Sequence[float]) -> float:
    """Standard deviation of the mean, n − 1 in the variance; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    mean = _mean(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def compare(before: Evaluation, after: Evaluation) -> dict[str, tuple[float, float]]:
    """Mean and standard error of the per-mesh difference after − before, for each column."""
    names = [name for name in before.per_mesh if name in after.per_mesh]
    result = {}
    for column in before.mean:
        differences = [after.per_mesh[name][column] - before.per_mesh[name][column] for name in names]
        result[column] = (_mean(differences), standard_error(differences))
    return result


def write_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Write JSON under a temporary name, then rename."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(evaluation), indent=2) + "\n")
    os.replace(partial, path)


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """One row per mesh and the mean."""
    table = Table(title=f"{evaluation.policy}: {evaluation.samples} rigs per mesh, seed {evaluation.seed}")
    table.add_column("mesh")
    for column in evaluation.mean:
        table.add_column(column, justify="right")
    for name, row in evaluation.per_mesh.items():
        table.add_row(name, *(_cell(column, row[column]) for column in evaluation.mean))
    table.add_section()
    table.add_row("mean", *(_cell(column, evaluation.mean[column]) for column in evaluation.mean))
    table.add_row("± s.e.", *(_cell(column, evaluation.standard_error[column]) for column in evaluation.mean))
    console.print(table)


def print_comparison(before: Evaluation, after: Evaluation, console: Console) -> None:
    """Before, after and the paired difference with its standard error over meshes."""
    meshes = len(before.per_mesh)
    table = Table(
        title=f"held-out meshes ({meshes}), {before.samples} rigs each, same seeds before and after"
    )
    for heading in ("", "before", "after", "difference", "± s.e.", "s.e.s"):
        table.add_column(heading, justify="left" if not heading else "right")
    for column, (difference, error) in compare(before, after).items():
        ratio = f"{difference / error:+.1f}" if error else "–"
        table.add_row(
            column,
            _cell(column, before.mean[column]),
            _cell(column, after.mean[column]),
            f"{difference:+.3f}",
            f"{error:.3f}",
            ratio,
        )
    console.print(table)


def _cell(column: str, value: float) -> str:
    return f"{value:.1%}" if column == "valid" else f"{value:.1f}" if column == "joints" else f"{value:.3f}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def run(recipe: Recipe) -> None:
    """Evaluate `policy.path` on the held-out meshes; write `<output_dir>/evaluation.json`."""
    output = make_directory(recipe)
    policy = load_policy(recipe)
    meshes = load_meshes(recipe)
    with reward_service(recipe, policy) as service:
        meshes = prepare_meshes(meshes, service, recipe)
        bank = MeshBank(meshes.samples, policy.vocabulary, recipe.data.class_name)
        evaluation = evaluate(policy, bank, meshes.held_out, service, recipe, recipe.policy.path)
    write_evaluation(evaluation, output / "evaluation.json")
    print_evaluation(evaluation, Console())


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: `python -m rl.evaluate RECIPE.yaml policy.path=…`."""
    return run_command(__doc__ or "", load_recipe, run, argv, "python -m rl.evaluate")


if __name__ == "__main__":
    sys.exit(main())
