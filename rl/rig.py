"""Rigs a mesh file: writes the rigged GLB and a picture of the rig."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data.command_line import RunFailedError, run_command
from data.formats.load import load_asset
from data.gltf.skinned import write_skinned_glb
from data.rig import Rig
from data.sampling import vertex_normals
from data.sets.dataset import MeshSample, make_sample
from data.typed_recipe import RecipeError
from policy.bundle import RigPolicy
from rewards.poses import pose_seed
from rewards.service import InlineRewardService
from rl.given_skeleton import GivenSkeleton, SkeletonRoom, chosen_skeleton
from rl.mesh_bank import MeshBank
from rl.meshes import reward_meshes
from rl.pictures import draw_rig
from rl.policy_setup import load_policy
from rl.recipe import Recipe, load_recipe, reward_settings, total_reward
from rl.rollout import row_seeds, sample_for_meshes
from rl.scoring import read_rollout, submit_scores


@dataclass(frozen=True)
class RiggedMesh:
    """A mesh with the best rig sampled for it, the rig's total reward and its single rewards."""

    sample: MeshSample
    rig: Rig
    total: float
    rewards: dict[str, float]


def rig_mesh(
    policy: RigPolicy,
    sample: MeshSample,
    recipe: Recipe,
    candidates: int,
    temperature: float,
    seed: int,
    skeleton: GivenSkeleton | None = None,
) -> RiggedMesh:
    """Sample `candidates` rigs and keep the one with the highest total reward.

    With a given `skeleton` only its skin is sampled: the rig has exactly its joints, names and order.
    Skinning weights are decoded at the mesh's vertices and not normalised; the GLB writer normalises them.

    Raises:
        RunFailedError: no candidate is a complete rig, or the mesh cannot be scored.
    """
    bank = MeshBank([sample], policy.vocabulary, recipe.data.class_name)
    service = InlineRewardService(policy.skin_vae, reward_settings(recipe))
    reason = service.prepare_meshes(reward_meshes([sample]))[0]
    if reason is not None:
        raise RunFailedError(f"the mesh cannot be scored: {reason}")
    given = {} if skeleton is None else {0: skeleton}
    rollouts = sample_for_meshes(
        policy, bank, [0] * candidates, recipe, row_seeds(candidates, seed), temperature, candidates, given
    )
    rigs = [read_rollout(ids, bank.class_id, bank.vocabulary, skeleton) for ids in rollouts.rows()[0]]
    scores = submit_scores(service, [0] * candidates, rigs, lambda _: pose_seed(seed, sample.name, 0))
    rewards = [score.rewards(list(recipe.rewards.weights)) for score in scores]
    totals = [
        -np.inf if rig is None or row is None else total_reward(row, recipe.rewards)
        for rig, row in zip(rigs, rewards, strict=True)
    ]
    best = int(np.argmax(totals))
    chosen, best_rewards = rigs[best], rewards[best]
    if chosen is None or best_rewards is None:
        raise RunFailedError(
            f"none of the {candidates} rigs sampled for {sample.name} was complete; raise rig.candidates or "
            "train.max_completion_length"
        )
    normals = vertex_normals(sample.mesh.vertices, sample.mesh.faces)
    with torch.no_grad():
        condition = policy.skin_vae.encode_condition(
            torch.from_numpy(sample.points)[None], torch.from_numpy(sample.normals)[None]
        )
        skin = policy.skin_vae.decode(
            torch.from_numpy(chosen.codes),
            condition,
            torch.from_numpy(sample.mesh.vertices),
            torch.from_numpy(normals),
        )
    rig = Rig(chosen.joints, chosen.parents, skin.T.contiguous().numpy())
    if skeleton is not None:
        rig = skeleton.rig(rig.weights)
    return RiggedMesh(sample, rig, float(totals[best]), best_rewards)


def write_rigged(rigged: RiggedMesh, glb: Path) -> None:
    """Write the GLB, and the picture next to it as .png."""
    glb.parent.mkdir(parents=True, exist_ok=True)
    write_skinned_glb(glb, rigged.sample.mesh, rigged.rig)
    draw_rig(rigged.sample.mesh, rigged.rig, glb.with_suffix(".png"))


def run(recipe: Recipe) -> None:
    """Rig the recipe's `rig.mesh`, write the GLB and its picture, and print joints and rewards.

    Raises:
        RecipeError, MeshError: `rig.mesh` is missing, or it or `rig.skeleton` cannot be used.
        RunFailedError: see `rig_mesh`.
    """
    settings = recipe.rig
    if settings.mesh is None:
        raise RecipeError("no mesh to rig; set rig.mesh=FILE")
    source = Path(settings.mesh)
    output = Path(settings.out) if settings.out else source.with_name(f"{source.stem}_rigged.glb")
    if output.suffix != ".glb":
        raise RecipeError(f"'rig.out' {output} must end in .glb; the picture is written next to it as .png")
    max_bytes = recipe.data.max_megabytes * 2**20
    asset = load_asset(settings.mesh, recipe.data.max_faces, max_bytes, rigged=False, up=settings.up)
    if asset.notes:
        print(f"note: {asset.note}", file=sys.stderr)
    sample = make_sample(asset.mesh, None, recipe.data.points, recipe.data.seed)
    policy = load_policy(recipe)
    skeleton = chosen_skeleton(recipe, asset.mesh, SkeletonRoom.of(policy, recipe))
    if skeleton is not None and skeleton.outside:
        print(
            f"note: {skeleton.outside} of the {len(skeleton.joints)} given joints lie outside the mesh's "
            "box; the policy reads them at its faces, the file keeps them where they are",
            file=sys.stderr,
        )
    rigged = rig_mesh(
        policy, sample, recipe, settings.candidates, settings.temperature, settings.seed, skeleton
    )
    try:
        write_rigged(rigged, output)
    except OSError as error:
        raise RecipeError(f"'rig.out' {output} cannot be written ({error}); choose another path") from error
    shown = ", ".join(f"{name} {value:.3f}" for name, value in rigged.rewards.items())
    print(f"{output}: {len(rigged.rig.joints)} joints, total reward {rigged.total:.3f} ({shown})")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: `python -m rl.rig RECIPE.yaml rig.mesh=MESH rig.out=RIGGED.glb`."""
    return run_command(__doc__ or "", load_recipe, run, argv, "python -m rl.rig")


if __name__ == "__main__":
    sys.exit(main())
