"""Rigs a mesh: samples rigs, keeps the best by total reward, writes the rigged GLB and its picture."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from data.atomic import write_atomic
from data.command_line import RunFailedError
from data.formats.load import load_asset
from data.formats.rigged_file import rigged_file
from data.gltf.influences import as_stored
from data.gltf.skinned import write_skinned_glb
from data.rig import Rig
from data.sets.dataset import MeshSample, make_sample
from data.typed_recipe import RecipeError
from policy.bundle import RigPolicy
from rewards.poses import pose_seed
from rewards.service import InlineRewardService
from rl.engine.choose import make_sampler
from rl.given_skeleton import GivenSkeleton, SkeletonRoom, chosen_skeleton
from rl.mesh_bank import MeshBank
from rl.mesh_tuning import MeshTuner, TuningGain
from rl.meshes import reward_meshes
from rl.phases import RIG, phase
from rl.pictures import draw_rig
from rl.policy_setup import load_policy
from rl.posed_sheet import posed_sheet, sheet_rotations
from rl.recipe import Recipe, RigRecipe, reward_settings, total_reward
from rl.render.panels import save_png
from rl.report.page import viewer_page
from rl.report.viewer_data import RigView, reward_poses
from rl.rollout import row_seeds, sample_for_meshes
from rl.scoring import SampledRollout, read_rollout, submit_scores

TUNING_BATCH = 64  # rigs sampled at once for the comparison, or more if a step of tuning samples more


@dataclass(frozen=True)
class RiggedMesh:
    """A mesh with the best rig sampled for it.

    total, rewards: the rig's total reward and its single rewards, with the decoder's weights. written_total,
    written_rewards: the same with the weights that the file stores, the four largest of each vertex,
    normalised. gain: what tuning to the mesh brought, None without.
    """

    sample: MeshSample
    rig: Rig
    total: float
    rewards: dict[str, float]
    written_total: float
    written_rewards: dict[str, float]
    gain: TuningGain | None = None


@phase(RIG)
def rig_mesh(
    policy: RigPolicy,
    sample: MeshSample,
    recipe: Recipe,
    candidates: int,
    temperature: float,
    seed: int,
    skeleton: GivenSkeleton | None = None,
    tune_steps: int = 0,
) -> RiggedMesh:
    """Sample `candidates` rigs and keep the one with the highest total reward.

    With `tune_steps`, a copy of the policy is tuned to the mesh from those rigs, which samples `candidates`
    more at each step; as many are sampled from the policy itself, and the best of all is kept.

    The rig's skinning weights are those that were scored, the same for all vertices at one position. They
    are not normalised; the GLB writer normalises them. With a given `skeleton` only its skin is sampled: the
    rig has exactly its joints, names and order.

    Raises:
        RunFailedError: no candidate is a complete rig, or the mesh cannot be scored.
    """
    bank = MeshBank([sample], policy.vocabulary, recipe.data.class_name)
    service = InlineRewardService(policy.skin_vae, reward_settings(recipe))
    reason = service.prepare_meshes(reward_meshes([sample]))[0]
    if reason is not None:
        raise RunFailedError(f"the mesh cannot be scored: {reason}")
    given = {} if skeleton is None else {0: skeleton}
    count = candidates * (tune_steps + 1)
    seeds = row_seeds(count, seed)
    rows, _ = sample_for_meshes(
        make_sampler(policy.model, recipe),
        policy.model,
        bank,
        [0] * count,
        recipe,
        seeds,
        temperature,
        max(candidates, TUNING_BATCH) if tune_steps else count,
        given,
    ).rows()
    rigs = [read_rollout(ids, bank.class_id, bank.vocabulary, skeleton) for ids in rows]
    poses = pose_seed(seed, sample.name, 0)
    scores = submit_scores(service, [0] * count, rigs, lambda _: poses)
    found = [
        SampledRollout(0, bank.class_id, ids, row_seed, poses, rig, score)
        for ids, row_seed, rig, score in zip(rows, seeds, rigs, scores, strict=True)
    ]
    gain = None
    if tune_steps:
        tuner = MeshTuner(policy, bank, service, recipe)
        tuned = tuner.tune(found[:candidates], tune_steps, temperature, candidates, (seed,), given)
        with_tuning, without = (
            max(one.score.rank(recipe.rewards) for one in part) for part in (tuned, found)
        )
        gain = TuningGain(count, with_tuning, without)
        found += tuned[candidates:]
    best = max(found, key=lambda one: one.score.rank(recipe.rewards))  # the first of ties
    chosen = best.rig
    if chosen is None or not best.score.score().valid:
        raise RunFailedError(
            f"none of the {len(found)} rigs sampled for {sample.name} was complete; raise rig.candidates or "
            "train.max_completion_length"
        )
    group, weights = service.score(0, [chosen], poses)
    rewards, scored = group.scores[0].rewards, weights[0]
    assert rewards is not None  # they were scored above
    assert scored is not None
    on_vertices = service.vertex_weights(0, chosen, scored)
    joint_names = () if skeleton is None else skeleton.names
    rig = Rig(chosen.joints, chosen.parents, on_vertices, joint_names)
    stored = service.score_weights(0, chosen, as_stored(scored), poses).rewards
    assert stored is not None  # the same joints were scored above
    names = list(recipe.rewards.weights)
    return RiggedMesh(
        sample,
        rig,
        total_reward(rewards, recipe.rewards),
        {name: rewards[name] for name in names},
        total_reward(stored, recipe.rewards),
        {name: stored[name] for name in names},
        gain,
    )


def write_rigged(rigged: RiggedMesh, glb: Path, settings: RigRecipe | None = None) -> list[str]:
    """Write the GLB, and the picture next to it as .png; return what the user should know, a line each.

    settings: `mesh` is the mesh's file, which is given back whole with the rig added (see `rigged_file` for
    the others); None for a mesh without a file.

    Raises:
        MeshError: `settings.mesh` is not the file of the mesh.
        OSError: a file cannot be written.
    """
    mesh, rig = rigged.sample.mesh, rigged.rig
    glb.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    if settings is None or settings.mesh is None:
        write_skinned_glb(glb, mesh, rig)
    else:
        own = settings.skeleton == "own"
        written = rigged_file(settings.mesh, mesh, rig, settings.keep_skin, own, settings.up)
        write_atomic(glb, written.glb)
        lines = [
            f"four influences per vertex: {written.dropped.mean():.2%} of the weight was dropped, at most "
            f"{written.dropped.max():.1%} at a vertex",
            *written.notes,
        ]
        if written.replaced is not None:
            lines.insert(0, f"replaced {written.replaced}; set rig.keep_skin=true to keep the old one")
    draw_rig(mesh, rig, glb.with_suffix(".png"))
    return lines


def write_views(rigged: RiggedMesh, glb: Path, recipe: Recipe) -> list[str]:
    """With `rig.sheet`, draw the posed sheet, and with `rig.viewer`, write the 3D viewer, next to the GLB.

    Poses are those of the smoothness reward. Returns a line per file.
    """
    mesh, rig, settings = rigged.sample.mesh, rigged.rig, reward_settings(recipe)
    seed = pose_seed(recipe.rig.seed, rigged.sample.name, 0)
    lines = []
    if recipe.rig.sheet:
        sheet = glb.with_name(f"{glb.stem}_sheet.png")
        rotations = sheet_rotations(settings, rig, seed)
        save_png(posed_sheet(mesh, rig, rotations, f"total reward {rigged.total:.3f}"), sheet)
        lines.append(f"posed sheet: {sheet}")
    if recipe.rig.viewer:
        numbers = {"total": rigged.total, **rigged.rewards}
        poses = reward_poses(settings, rig, seed)
        view = RigView(None, "rigged", rigged.sample.name, mesh, rig, poses, numbers)
        page = glb.with_suffix(".html")
        write_atomic(page, viewer_page(rigged.sample.name, view).encode())
        lines.append(f"3D viewer: {page}")
    return lines


def rig_file(recipe: Recipe, policy: RigPolicy | None = None) -> RiggedMesh:
    """Rig the mesh file `rig.mesh` as the recipe says; nothing is written.

    Notes on the file go to standard error. `policy`: that of the recipe, if it is loaded already.

    Raises:
        RecipeError, MeshError: `rig.mesh` is missing, or it or `rig.skeleton` cannot be used.
        RunFailedError: see `rig_mesh`.
    """
    settings = recipe.rig
    max_bytes = recipe.data.max_megabytes * 2**20
    asset = load_asset(_mesh_of(settings), recipe.data.max_faces, max_bytes, rigged=False, up=settings.up)
    if asset.notes:
        print(f"note: {asset.note}", file=sys.stderr)
    sample = make_sample(asset.mesh, None, recipe.data.points, recipe.data.seed)
    policy = load_policy(recipe) if policy is None else policy
    skeleton = chosen_skeleton(recipe, asset.mesh, SkeletonRoom.of(policy, recipe))
    if skeleton is not None and skeleton.outside:
        print(
            f"note: {skeleton.outside} of the {len(skeleton.joints)} given joints lie outside the mesh's "
            "box; the policy reads them at its faces, the file keeps them where they are",
            file=sys.stderr,
        )
    return rig_mesh(
        policy,
        sample,
        recipe,
        settings.candidates,
        settings.temperature,
        settings.seed,
        skeleton,
        settings.tune_steps,
    )


def run(recipe: Recipe) -> None:
    """Rig the recipe's `rig.mesh`, write the GLB and its picture, and print joints and rewards.

    Raises what `rig_file` does, and RecipeError if `rig.out` is no GLB or cannot be written.
    """
    settings = recipe.rig
    source = Path(_mesh_of(settings))
    output = Path(settings.out) if settings.out else source.with_name(f"{source.stem}_rigged.glb")
    if output.suffix != ".glb":
        raise RecipeError(f"'rig.out' {output} must end in .glb; the picture is written next to it as .png")
    rigged = rig_file(recipe)
    try:
        lines = write_rigged(rigged, output, settings)
        lines += write_views(rigged, output, recipe)
    except OSError as error:
        raise RecipeError(f"'rig.out' {output} cannot be written ({error}); choose another path") from error
    joints = len(rigged.rig.joints)
    print(f"{output}: {joints} joints, total reward {_shown(rigged.total, rigged.rewards)}")
    if rigged.gain is not None:
        print(rigged.gain)
    print(f"as written: total reward {_shown(rigged.written_total, rigged.written_rewards)}")
    for line in lines:
        print(line)


def _mesh_of(settings: RigRecipe) -> str:
    if settings.mesh is None:
        raise RecipeError("no mesh to rig; set rig.mesh=FILE")
    return settings.mesh


def _shown(total: float, rewards: dict[str, float]) -> str:
    return f"{total:.3f} ({', '.join(f'{name} {value:.3f}' for name, value in rewards.items())})"
