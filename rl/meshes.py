"""Loads a run's training and held-out meshes and has the reward service prepare them."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from accelerate import PartialState

from data.formats.load import GLTF_SUFFIXES, Refusal, find_meshes, meshes_passed_over, unique_names
from data.formats.rig_npz import read_rig_npz
from data.mesh import MeshError
from data.sets.dataset import (
    EVAL_FIRST_SEED,
    TRAIN_FIRST_SEED,
    MeshSample,
    creature_samples,
    file_samples,
    make_sample,
    prepared_samples,
    split,
)
from data.sets.prepared import is_prepared
from rewards.service import RewardService
from rewards.worker import RewardMesh
from rl.given_skeleton import SkeletonRoom, true_skeleton
from rl.recipe import Recipe

# Distance between the creature seeds of consecutive values of `data.seed`.
_SEED_STRIDE = 100_000


@dataclass(frozen=True)
class RunMeshes:
    """The meshes of a run; `train` and `held_out` are indices into `samples`."""

    samples: list[MeshSample]
    train: list[int]
    held_out: list[int]


def load_meshes(recipe: Recipe, training: bool = True) -> RunMeshes:
    """Load and sample the recipe's meshes; unusable files are reported on standard error and skipped.

    So are the files that folders hold besides meshes, and notes on how files were read (`data.load_asset`).
    Without `training`, training meshes are dropped, and read only if the split needs them.
    Raises MeshError if no mesh remains, or if `data.up` applies to none of the files.
    """
    data = recipe.data
    _check_up(recipe)
    if data.eval_meshes is not None:
        held_out = _named_samples(_listed(data.eval_meshes), "eval", recipe)
    elif data.meshes is None:
        held_out = _creatures(data.eval_count, EVAL_FIRST_SEED, recipe)
    elif prepared := [name for name in _listed(data.meshes) if is_prepared(name)]:
        held_out = _named_samples(prepared, "eval", recipe, data.eval_count)
    else:
        samples = _named_samples(_listed(data.meshes), "train", recipe)
        if len(samples) == 1:
            return RunMeshes(samples, [0] if training else [], [0])
        train, held_out = split(samples, min(data.eval_count, len(samples) // 2), data.seed)
        return _joined(train if training else [], held_out)
    if not training:
        return _joined([], held_out)
    if data.meshes is None:
        return _joined(_creatures(data.train_count, TRAIN_FIRST_SEED, recipe), held_out)
    return _joined(_named_samples(_listed(data.meshes), "train", recipe), held_out)


def _check_up(recipe: Recipe) -> None:
    """Raise MeshError if `data.up` is z but would turn no mesh."""
    if recipe.data.up != "z":
        return
    named = [name for names in (recipe.data.meshes, recipe.data.eval_meshes) for name in _listed(names or [])]
    unprepared = [name for name in named if not is_prepared(name)]
    files = find_meshes(unprepared)
    # Names that match no file are reported when they are read.
    if bool(files) == bool(unprepared) and all(file.suffix.lower() in GLTF_SUFFIXES for file in files):
        raise MeshError(
            f"{', '.join(named)}: 'data.up' is z but there is no OBJ, PLY, STL or OFF file, and glTF files "
            "and prepared rigs are y-up; omit data.up"
        )


def load_one(file: str, recipe: Recipe) -> MeshSample:
    """The sample of one mesh file or prepared rig (NPZ) that a recipe names; raises MeshError."""
    data = recipe.data
    if Path(file).suffix == ".npz":
        rigged = read_rig_npz(file)
        return replace(make_sample(rigged.mesh, rigged.rig, data.points, data.seed), file=file)
    max_bytes = data.max_megabytes * 2**20
    return file_samples([file], data.points, data.seed, data.max_faces, max_bytes, up=data.up)[0][0]


def _listed(names: str | list[str]) -> list[str]:
    return [names] if isinstance(names, str) else names


def _creatures(count: int, first_seed: int, recipe: Recipe) -> list[MeshSample]:
    data = recipe.data
    seed, turn = first_seed + data.seed * _SEED_STRIDE, math.radians(data.max_turn_deg)
    return creature_samples(count, seed, data.points, data.kinds, turn)


def _named_samples(
    names: Sequence[str], part: Literal["train", "eval"], recipe: Recipe, most: int | None = None
) -> list[MeshSample]:
    """Samples with unique names: up to `most` rigs of a split of each prepared folder, every other mesh."""
    data = recipe.data
    samples: list[MeshSample] = []
    refusals: list[Refusal] = []
    files = [name for name in names if not is_prepared(name)]
    if files:
        max_bytes = data.max_megabytes * 2**20
        samples, refusals = file_samples(files, data.points, data.seed, data.max_faces, max_bytes, up=data.up)
        _report("note", meshes_passed_over(files))
    for folder in dict.fromkeys(name for name in names if is_prepared(name)):
        more, refused = prepared_samples(folder, part, data.points, data.seed, data.max_faces, most)
        samples, refusals = [*samples, *more], [*refusals, *refused]
    _report_skipped(refusals)
    _report("note", [sample.note for sample in samples if sample.note])
    unique = unique_names([sample.name for sample in samples])
    return [replace(sample, name=name) for sample, name in zip(samples, unique, strict=True)]


def _joined(train: list[MeshSample], held_out: list[MeshSample]) -> RunMeshes:
    count = len(train)
    return RunMeshes([*train, *held_out], list(range(count)), list(range(count, count + len(held_out))))


def _report_skipped(refusals: Sequence[object]) -> None:
    _report("skipped", refusals)


def _report(kind: str, lines: Sequence[object]) -> None:
    if PartialState().is_main_process:
        for line in lines:
            print(f"{kind}: {line}", file=sys.stderr)


def without_refused(meshes: RunMeshes, reasons: Sequence[str | None]) -> RunMeshes:
    """Skip meshes that the reward service refused, and report them on standard error.

    Raises MeshError if no training mesh or no held-out mesh remains.
    """
    _report_skipped([reason for reason in reasons if reason is not None])
    train = [k for k in meshes.train if reasons[k] is None]
    held_out = [k for k in meshes.held_out if reasons[k] is None]
    if meshes.train and not train:
        raise MeshError("no training mesh can be scored; choose other meshes with 'data.meshes'")
    if not held_out:
        raise MeshError(
            "no held-out mesh can be scored; choose other meshes with 'data.eval_meshes' or 'data.meshes'"
        )
    return RunMeshes(meshes.samples, train, held_out)


def with_given_skeletons(meshes: RunMeshes, recipe: Recipe, rooms: Sequence[SkeletonRoom]) -> RunMeshes:
    """Skip meshes whose skeleton is to be given but cannot be; report each with its reason, and their number.

    Training meshes need a ground-truth rig with `data.skeleton: given`, held-out ones with `eval.skeleton:
    given`, and its tokens must fit into each of `rooms`, one per policy. Raises MeshError if no training mesh
    or no held-out mesh remains.
    """
    train, held_out = meshes.train, meshes.held_out
    if recipe.data.skeleton == "given":
        train = _with_skeleton(meshes, train, "training", "data.skeleton", rooms)
    if recipe.eval.skeleton == "given":
        held_out = _with_skeleton(meshes, held_out, "held-out", "eval.skeleton", rooms)
    return RunMeshes(meshes.samples, train, held_out)


def _with_skeleton(
    meshes: RunMeshes, chosen: Sequence[int], kind: str, key: str, rooms: Sequence[SkeletonRoom]
) -> list[int]:
    reasons = {mesh: _no_skeleton(meshes.samples[mesh], rooms) for mesh in chosen}
    kept = [mesh for mesh, reason in reasons.items() if reason is None]
    skipped = [f"{meshes.samples[mesh].name}: {reason}" for mesh, reason in reasons.items() if reason]
    if chosen and not kept:
        raise MeshError(
            f"'{key}' is given, but none of the {len(chosen)} {kind} meshes has a usable skeleton "
            f"({skipped[0]}); use rigged meshes or set {key} to null"
        )
    if skipped:
        count = f"{len(skipped)} of {len(chosen)} {kind} meshes, which have no usable skeleton ({key}=given)"
        _report_skipped([*skipped, count])
    return kept


def _no_skeleton(sample: MeshSample, rooms: Sequence[SkeletonRoom]) -> str | None:
    """Why the mesh's skeleton cannot be given to policies with these rooms, None if it can."""
    for room in rooms:
        skeleton = true_skeleton(sample, room.vocabulary)
        reason = "it has no rig" if skeleton is None else room.refusal(skeleton)
        if reason is not None:
            return reason
    return None


def prepare_meshes(meshes: RunMeshes, service: RewardService, recipe: Recipe) -> RunMeshes:
    """Have the reward service prepare the meshes; skip those it refuses.

    Every process of a job must call this: with Ray the main process prepares the meshes once and the other
    processes find them in the service. Raises MeshError if no training mesh or no held-out mesh remains.
    """
    shared = PartialState().main_process_first() if recipe.workers.backend == "ray" else nullcontext()
    with shared:
        reasons = service.prepare_meshes(reward_meshes(meshes.samples))
    return without_refused(meshes, reasons)


def spread(count: int, most: int | None) -> list[int]:
    """Up to `most` of the places 0 to count - 1, spread evenly; all for None."""
    kept = count if most is None else min(count, most)
    return [place * count // kept for place in range(kept)]


def reward_meshes(samples: Sequence[MeshSample]) -> list[RewardMesh]:
    """The samples in the form the reward service takes."""
    return [
        RewardMesh(item.name, item.mesh.vertices, item.mesh.faces, item.points, item.normals, item.file)
        for item in samples
    ]
