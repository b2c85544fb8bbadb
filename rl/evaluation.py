"""Evaluates policies on held-out meshes: rewards, and metrics against ground-truth rigs where known."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from data.command_line import RunFailedError
from data.run_lock import run_lock
from data.typed_recipe import RecipeError
from policy.bundle import RigPolicy
from policy.skintokens.skin_vae import SkinVAE
from rewards.poses import pose_seed
from rewards.service import RewardService
from rewards.worker import RolloutRig
from rl.engine.sampler import Sampler
from rl.evaluation_results import VALID_ONLY, Evaluation, mean_of, summarise, write_csv, write_evaluation
from rl.evaluation_rollouts import decode_rows, rigs_per_mesh
from rl.evaluation_tables import make_console, print_means, print_meshes
from rl.given_skeleton import GivenSkeletons, SkeletonRoom, true_skeletons
from rl.ground_truth import METRICS, GroundTruthMetrics
from rl.mesh_bank import MeshBank
from rl.mesh_tuning import MeshTuner
from rl.meshes import RunMeshes, load_meshes, prepare_meshes, with_given_skeletons
from rl.phases import EVALUATION, phase
from rl.policy_setup import load_policy
from rl.posed_sheet import SHEETS_FOLDER, write_sheets
from rl.recipe import Recipe, total_reward
from rl.reward_service import reward_service
from rl.rollout import row_seeds
from rl.run_directory import make_directory
from rl.scoring import PendingScore, SampledRollout, read_rollout, submit_scores

EVALUATION_LOCK = "evaluation.lock"


@dataclass(frozen=True)
class _Pick:
    """The best of some rollouts: its rewards and total, and its rig, None if that is invalid.

    gain: with `eval.tune_steps`, its total less that of the best of as many rollouts without tuning.
    """

    rewards: dict[str, float]
    total: float
    diagnostics: dict[str, float]
    rig: RolloutRig | None
    gain: float | None = None


@phase(EVALUATION)
def evaluate(
    policy: RigPolicy,
    bank: MeshBank,
    meshes: Sequence[int],
    service: RewardService,
    recipe: Recipe,
    name: str,
    sampler: Sampler | None = None,
) -> Evaluation:
    """Decode rigs as `recipe.eval` specifies, score them, and measure them against ground truth.

    Seeds depend only on the recipe, so every policy gets the same ones. Of each `best_of` consecutive
    rollouts the one with the highest total reward counts. Rollouts that could not be scored (not the
    policy's fault) are excluded from the means, and so are meshes without a scored rollout. `name` labels
    the results. With `eval.skeleton: given`, all meshes need a rig, and rigs differ from it in skin only.
    With `eval.tune_steps`, each rig that counts is the best of tuning to its mesh, of as many rollouts as the
    same evaluation with that many `best_of` samples: it is also done, for the column `tuning_gain`.
    `sampler`: an engine that has the policy's weights; without one, it is made.

    Raises:
        RunFailedError: no rollout could be scored.
        ValueError: a mesh has no skeleton to give.
    """
    settings = recipe.eval
    names = list(recipe.rewards.weights)
    tries = settings.best_of * (settings.tune_steps + 1)
    rows = [mesh for mesh in meshes for _ in range(rigs_per_mesh(recipe) * tries)]
    given: GivenSkeletons = {}
    if settings.skeleton == "given":
        given = true_skeletons(bank.samples, meshes, bank.vocabulary)
    seeds = row_seeds(len(rows), settings.seed)
    tokens = decode_rows(policy, bank, rows, seeds, recipe, name, given, sampler)
    rigs = [
        read_rollout(ids, bank.class_id, bank.vocabulary, given.get(mesh))
        for mesh, ids in zip(rows, tokens, strict=True)
    ]
    poses = {mesh: pose_seed(settings.seed, bank.samples[mesh].name, 0) for mesh in meshes}
    pending = submit_scores(service, rows, rigs, poses.__getitem__)
    tuner = MeshTuner(policy, bank, service, recipe) if settings.tune_steps else None
    truth = (
        GroundTruthMetrics(bank.samples, meshes, policy.skin_vae, recipe, bool(given))
        if settings.metrics
        else None
    )
    per_mesh: dict[str, dict[str, float]] = {}
    per_rig: dict[str, list[dict[str, float]]] = {}
    diagnostics: dict[str, list[float]] = {}
    for mesh in tqdm(meshes, desc=f"evaluate {name}: score", file=sys.stderr, unit="mesh"):
        places = [place for place, row in enumerate(rows) if row == mesh]
        picks = []
        for start in range(0, len(places), tries):
            part = places[start : start + tries]
            pick = _best([(rigs[place], pending[place]) for place in part], names, recipe)
            if tuner is not None:
                first = [
                    SampledRollout(mesh, bank.class_id, tokens[k], seeds[k], poses[mesh], rigs[k], pending[k])
                    for k in part[: settings.best_of]
                ]
                tuned = tuner.tune(
                    first,
                    settings.tune_steps,
                    settings.temperature,
                    settings.batch_size,
                    (settings.seed, part[0]),
                    given,
                )
                pick = _gained(pick, _best([(one.rig, one.score) for one in tuned], names, recipe))
            picks += [] if pick is None else [pick]
        if not picks:
            continue
        per_mesh[bank.samples[mesh].name] = _mesh_row(mesh, picks, truth)
        per_rig[bank.samples[mesh].name] = [_rig_row(pick) for pick in picks]
        for pick in picks:
            for key, number in pick.diagnostics.items():
                diagnostics.setdefault(key, []).append(number)
    if not per_mesh:
        reason = next(
            (group.failure for group in (row.group() for row in pending) if group.failure), "unknown"
        )
        raise RunFailedError(f"no rig could be scored for the evaluation ({reason}); check the Ray logs")
    measured = [*names, "total", "tuning_gain", "valid", "joints", "true_joints", *METRICS]
    mean, error = summarise(
        per_mesh, [*measured, *(f"{column}{VALID_ONLY}" for column in (*names, "total", *METRICS))]
    )
    return Evaluation(
        policy=name,
        samples=rigs_per_mesh(recipe),
        seed=settings.seed,
        per_mesh=per_mesh,
        mean=mean,
        standard_error=error,
        diagnostics={key: mean_of(value) for key, value in diagnostics.items()},
        decoding=settings.decoding,
        best_of=settings.best_of,
        tune_steps=settings.tune_steps,
        skeleton=settings.skeleton,
        skin_convention=settings.skin_convention,
        metric_vertices=settings.metric_vertices,
        per_rig=per_rig,
    )


def _best(
    tries: Sequence[tuple[RolloutRig | None, PendingScore]], names: Sequence[str], recipe: Recipe
) -> _Pick | None:
    """The highest total reward, valid before invalid, the first of ties; None if none has a score."""
    best: _Pick | None = None
    for rig, row in tries:
        score, rewards = row.score(), row.rewards(names)
        if rewards is None:
            continue
        own = rig if score.valid else None
        pick = _Pick(rewards, total_reward(rewards, recipe.rewards), score.diagnostics, own)
        if best is None or (pick.rig is not None, pick.total) > (best.rig is not None, best.total):
            best = pick
    return best


def _gained(untuned: _Pick | None, tuned: _Pick | None) -> _Pick | None:
    """The tuned pick with its gain; None if either has no score, so that both are over the same rigs."""
    if untuned is None or tuned is None:
        return None
    return replace(tuned, gain=tuned.total - untuned.total)


def _rig_row(pick: _Pick) -> dict[str, float]:
    """The row of one rig; see `Evaluation`."""
    valid = pick.rig is not None
    return {**pick.rewards, "total": pick.total, "valid": float(valid), **(pick.diagnostics if valid else {})}


def _mesh_row(mesh: int, picks: Sequence[_Pick], truth: GroundTruthMetrics | None) -> dict[str, float]:
    """The columns of one mesh; see `Evaluation`."""
    valid = [pick.rig for pick in picks if pick.rig is not None]
    row = {name: mean_of([pick.rewards[name] for pick in picks]) for name in picks[0].rewards}
    row["total"] = mean_of([pick.total for pick in picks])
    gains = [pick.gain for pick in picks if pick.gain is not None]
    if gains:
        row["tuning_gain"] = mean_of(gains)
    row["valid"] = mean_of([float(pick.rig is not None) for pick in picks])
    row["joints"] = mean_of([float(len(rig.joints)) for rig in valid])
    if valid:
        for name in picks[0].rewards:
            row[f"{name}{VALID_ONLY}"] = mean_of([p.rewards[name] for p in picks if p.rig is not None])
        row[f"total{VALID_ONLY}"] = mean_of([pick.total for pick in picks if pick.rig is not None])
    true_joints = truth.joints(mesh) if truth is not None else None
    if truth is None or true_joints is None:
        return row
    row["true_joints"] = float(true_joints)
    measured = truth.measure(mesh, valid)
    for name, worst in truth.failed(mesh).items():
        values = [values[name] for values in measured if name in values]
        row[name] = mean_of([*values, *[worst] * (len(picks) - len(values))])
        if values:
            row[f"{name}{VALID_ONLY}"] = mean_of(values)
    return row


def evaluate_policies(recipe: Recipe) -> list[Evaluation]:
    """Evaluate `policy.path`, then each of `eval.compare`, on the same meshes with the same seeds.

    Meshes are prepared for scoring once for consecutive policies that share a skin VAE. With `eval.sheets`,
    pictures of some rigs go to `output_dir/sheets/`.

    Raises:
        RecipeError: a policy is listed twice or cannot be loaded; raised before anything is evaluated.
    """
    paths = [recipe.policy.path, *recipe.eval.compare]
    for path in paths:
        if paths.count(path) > 1:
            raise RecipeError(f"{path} appears twice in 'policy.path' and 'eval.compare'; remove one")
    recipes = [replace(recipe, policy=replace(recipe.policy, path=path)) for path in paths]
    rooms = [SkeletonRoom.of(load_policy(own, "eval.compare"), own) for own in recipes[1:]]
    first = load_policy(recipe)
    rooms.append(SkeletonRoom.of(first, recipe))
    meshes = with_given_skeletons(load_meshes(recipe, training=False), recipe, rooms)
    evaluations: list[Evaluation] = []
    with ExitStack() as services:
        service, skin_vae, prepared = None, None, meshes
        for own in recipes:
            policy = first if own is recipes[0] else load_policy(own)
            if service is None or skin_vae is None or not same_weights(skin_vae, policy.skin_vae):
                services.close()
                service = services.enter_context(reward_service(own, policy))
                skin_vae = policy.skin_vae
                prepared = prepare_meshes(meshes, service, own)
            evaluations.append(_evaluate_one(policy, prepared, service, own))
            if own.eval.sheets:
                samples = [prepared.samples[mesh] for mesh in prepared.held_out]
                folder = Path(own.output_dir) / SHEETS_FOLDER
                write_sheets(policy, samples, own, folder, policy_label(len(evaluations) - 1))
    return evaluations


def policy_label(place: int) -> str:
    """A, B, C, … of the policies that are compared."""
    return chr(ord("A") + place) if place < 26 else str(place + 1)


def _evaluate_one(policy: RigPolicy, meshes: RunMeshes, service: RewardService, recipe: Recipe) -> Evaluation:
    bank = MeshBank(meshes.samples, policy.vocabulary, recipe.data.class_name)
    return evaluate(policy, bank, meshes.held_out, service, recipe, recipe.policy.path)


def same_weights(first: SkinVAE, second: SkinVAE) -> bool:
    """Whether two skin VAEs have the same configuration and bitwise equal weights."""
    mine, other = first.state_dict(), second.state_dict()

    def equal(a: Tensor, b: Tensor) -> bool:
        return a.dtype == b.dtype and torch.equal(a.cpu(), b.cpu())

    return (
        first.config == second.config
        and mine.keys() == other.keys()
        and all(equal(mine[key], other[key]) for key in mine)
    )


def run(recipe: Recipe) -> None:
    """Evaluate; write `evaluation.json` and `evaluation.csv` to `output_dir`, print the tables."""
    output = make_directory(recipe)
    with run_lock(output, name=EVALUATION_LOCK):  # its own: a run in training may be evaluated there
        _evaluate_and_write(recipe, output)


def _evaluate_and_write(recipe: Recipe, output: Path) -> None:
    evaluations = evaluate_policies(recipe)
    write_evaluation(evaluations[0], output / "evaluation.json", evaluations[1:])
    write_csv(evaluations, output / "evaluation.csv")
    console = make_console()
    labels = [policy_label(place) for place in range(len(evaluations))]
    print_meshes(evaluations, labels, console)
    print_means(evaluations, labels, console)
    if recipe.eval.sheets:
        console.print(f"posed rigs: {output / SHEETS_FOLDER}", soft_wrap=True, highlight=False, markup=False)
    for label, evaluation in zip(labels, evaluations, strict=True):
        name = label if len(evaluations) > 1 else "policy"
        console.print(f"{name}: {evaluation.policy}", soft_wrap=True, highlight=False, markup=False)
