"""Before/after rigs of a run on a few held-out meshes: stored ones, or rolled out with the run's recipe."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace

from accelerate import PartialState

from data.mesh import MeshError
from data.sets.dataset import MeshSample
from data.typed_recipe import RecipeError
from policy.bundle import RigPolicy, load_model
from rewards.poses import pose_seed
from rl.checkpoints import CHECKPOINTS_FOLDER, last_whole_checkpoint
from rl.first_evaluation import fingerprint
from rl.given_skeleton import SkeletonRoom
from rl.meshes import load_meshes, spread, with_given_skeletons
from rl.policy_setup import load_policy
from rl.recipe import Recipe, reward_settings
from rl.report.read_run import RunFiles
from rl.report.stored_rigs import STORE_FOLDER, StoredMesh, StoredRigs, read_rigs, write_rigs
from rl.report.viewer_data import AFTER, BEFORE, TRUTH, RigView, reward_poses
from rl.run_files import POLICY_FOLDER
from rl.shown_rigs import shown_rigs


def run_views(run: RunFiles, place: int) -> list[RigView]:
    """What the viewer shows of a run: before, after and ground truth of `report.meshes` held-out meshes.

    Rigs that an earlier page stored in `output_dir/report/` are used while policy, meshes and settings are
    the same, or cannot be read any more. `place`: of the run on the page. Adds to the run's notes what is not
    shown.
    """
    recipe = run.recipe
    if recipe is None or not recipe.report.meshes:
        return []
    views: dict[tuple[str, str], RigView] = {}
    settings = reward_settings(recipe)
    for stage in (BEFORE, AFTER):
        rigs = _rigs(run, recipe, stage)
        for item in rigs.meshes if rigs is not None else ():
            if item.truth is not None:
                poses = reward_poses(settings, item.truth, item.pose_seed)
                views[item.name, TRUTH] = RigView(None, TRUTH, item.name, item.mesh, item.truth, poses)
            if isinstance(item.shown, str):
                views[item.name, stage] = RigView(
                    place, stage, item.name, item.mesh, None, None, note=item.shown
                )
                continue
            poses = reward_poses(settings, item.shown.rig, item.pose_seed)
            numbers = {"total": item.shown.total, **item.shown.rewards}
            views[item.name, stage] = RigView(
                place, stage, item.name, item.mesh, item.shown.rig, poses, numbers, rigs.label if rigs else ""
            )
    return list(views.values())


def _rigs(run: RunFiles, recipe: Recipe, stage: str) -> StoredRigs | None:
    """The rigs of one stage; None, with a note, if there are none."""
    path = run.folder / STORE_FOLDER / f"{stage}.npz"
    stored = None
    try:
        stored = read_rigs(path)
    except ValueError as error:
        run.notes.append(f"Stored rigs are not used: {error}.")
    try:
        found = _policy(run, recipe, stage)
        if found is None:
            run.notes.append("It has saved no policy yet, so no rigs after training are shown.")
            return None
        policy, own, label = found
        samples, places = _chosen_meshes(run, own, policy)
    except (RecipeError, MeshError) as error:
        if stored is not None:
            run.notes.append(f"Rigs {stage} training are those of an earlier page ({error}).")
            return stored
        run.notes.append(f"No rigs {stage} training are shown: {error}.")
        return None
    key = _key(own, samples, places, label)
    if stored is not None and stored.key == key:
        return stored
    shown = shown_rigs(policy, samples, places, own, f"{run.name} {stage}")
    rigs = StoredRigs(
        key,
        label,
        [
            StoredMesh(sample.name, sample.mesh, sample.rig, rig, pose_seed(own.eval.seed, sample.name, 0))
            for sample, rig in zip(samples, shown, strict=True)
        ],
    )
    if os.access(run.folder, os.W_OK):
        write_rigs(path, rigs)
    else:
        print(f"note: {run.folder} cannot be written, so its rigs are not stored there", file=sys.stderr)
    return rigs


def _policy(run: RunFiles, recipe: Recipe, stage: str) -> tuple[RigPolicy, Recipe, str] | None:
    """The policy of a stage, the recipe that names its files, and which one it is; None if not yet saved."""
    if stage == BEFORE:
        return load_policy(recipe), recipe, ""
    refined = run.folder / POLICY_FOLDER
    if refined.is_dir():
        own = replace(recipe, policy=replace(recipe.policy, path=str(refined), skin_vae=None))
        return load_policy(own), own, ""
    checkpoint, problems = last_whole_checkpoint(run.folder / CHECKPOINTS_FOLDER)
    run.notes.extend(f"A checkpoint is damaged ({problem})." for problem in problems)
    if checkpoint is None:
        return None
    skin_vae = load_policy(recipe).skin_vae
    model = load_model(checkpoint, device=PartialState().device)
    own = replace(recipe, policy=replace(recipe.policy, path=str(checkpoint)))
    step = checkpoint.name.rpartition("-")[2]
    run.notes.append(f"The rigs after training are those of the checkpoint of step {step}.")
    return RigPolicy(model.eval(), skin_vae), own, f"checkpoint of step {step}"


def _chosen_meshes(run: RunFiles, recipe: Recipe, policy: RigPolicy) -> tuple[list[MeshSample], list[int]]:
    """`report.meshes` of the held-out meshes, and their places among those that were evaluated."""
    room = SkeletonRoom.of(policy, recipe)
    meshes = with_given_skeletons(load_meshes(recipe, training=False), recipe, [room])
    held_out = [meshes.samples[mesh] for mesh in meshes.held_out]
    evaluation = run.before or run.after
    if evaluation is not None:  # without those that the reward service refused
        held_out = [sample for sample in held_out if sample.name in evaluation.per_mesh] or held_out
    places = spread(len(held_out), recipe.report.meshes)
    return [held_out[place] for place in places], places


def _key(recipe: Recipe, samples: Sequence[MeshSample], places: Sequence[int], label: str) -> str:
    digest = hashlib.sha256(fingerprint(recipe, samples).encode())
    digest.update(json.dumps([list(places), label]).encode())
    return digest.hexdigest()
