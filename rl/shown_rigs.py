"""Rigs of held-out meshes to look at: those that an evaluation scores, with weights at every vertex."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from data.rig import Rig
from data.sets.dataset import MeshSample
from policy.bundle import RigPolicy
from rewards.poses import pose_seed
from rewards.service import InlineRewardService
from rl.evaluation_rollouts import decode_rows, rigs_per_mesh
from rl.given_skeleton import GivenSkeletons, true_skeletons
from rl.mesh_bank import MeshBank
from rl.meshes import reward_meshes
from rl.recipe import Recipe, reward_settings, total_reward
from rl.rollout import row_seeds
from rl.scoring import read_rollout


@dataclass(frozen=True, eq=False)
class ShownRig:
    """A rig of a mesh with its scores.

    rig: with raw weights (V, J) at the mesh's vertices. rewards, total, diagnostics: of the rollout.
    """

    rig: Rig
    rewards: dict[str, float]
    total: float
    diagnostics: dict[str, float]


def shown_rigs(
    policy: RigPolicy, samples: Sequence[MeshSample], places: Sequence[int], recipe: Recipe, name: str
) -> list[ShownRig | str]:
    """The first rig that `rl.evaluation.evaluate` counts of each mesh: same seeds, same tokens, same scores.

    Rolls it out again, because an evaluation keeps no weights. With `eval.best_of` it is the best of as many.

    Args:
        policy: the policy to show.
        samples: the chosen meshes.
        places: their places among the meshes that are evaluated, which decide the seeds.
        recipe: of the evaluation.
        name: of the policy, for the progress bar.

    Returns:
        For each mesh its rig, or why there is none.
    """
    bank = MeshBank(samples, policy.vocabulary, recipe.data.class_name)
    tries, every = recipe.eval.best_of, rigs_per_mesh(recipe) * recipe.eval.best_of
    rows = [mesh for mesh in range(len(samples)) for _ in range(tries)]
    all_seeds = row_seeds((max(places) + 1) * every, recipe.eval.seed)
    seeds = [all_seeds[place * every + attempt] for place in places for attempt in range(tries)]
    given: GivenSkeletons = {}
    if recipe.eval.skeleton == "given":
        given = true_skeletons(bank.samples, range(len(samples)), bank.vocabulary)
    completions = decode_rows(policy, bank, rows, seeds, recipe, name, given)
    service = InlineRewardService(policy.skin_vae, reward_settings(recipe))
    refused = service.prepare_meshes(reward_meshes(samples))
    shown: list[ShownRig | str] = []
    for mesh, sample in enumerate(samples):
        reason = refused[mesh]
        if reason is not None:
            shown.append(f"the mesh cannot be scored: {reason}")
            continue
        rigs = [
            read_rollout(ids, bank.class_id, bank.vocabulary, given.get(mesh))
            for ids in completions[mesh * tries : (mesh + 1) * tries]
        ]
        group, weights = service.score(mesh, rigs, pose_seed(recipe.eval.seed, sample.name, 0))
        found: ShownRig | None = None
        for rig, score, scored in zip(rigs, group.scores, weights, strict=True):
            if rig is None or scored is None or not score.valid or score.rewards is None:
                continue
            total = total_reward(score.rewards, recipe.rewards)
            if found is None or total > found.total:
                names = given[mesh].names if mesh in given else ()
                on_vertices = service.vertex_weights(mesh, rig, scored)
                rewards = {key: score.rewards[key] for key in recipe.rewards.weights}
                found = ShownRig(
                    Rig(rig.joints, rig.parents, on_vertices, names), rewards, total, score.diagnostics
                )
        shown.append(found or "the rollout is no complete rig")
    return shown
