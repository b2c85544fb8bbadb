"""What training, evaluation and rigging share: policy, meshes, reward service, sampling for meshes."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
from accelerate import PartialState
from safetensors import SafetensorError

from data.command_line import RunFailedError
from data.formats.load import Refusal, unique_names
from data.mesh import MeshError
from data.sets.dataset import (
    EVAL_FIRST_SEED,
    TRAIN_FIRST_SEED,
    MeshSample,
    creature_samples,
    file_samples,
    prepared_samples,
    split,
)
from data.sets.prepared import is_prepared
from data.typed_recipe import RecipeError
from policy.bundle import PolicyError, RigPolicy, find_skin_vae
from policy.tokens.grammar import Grammar
from rewards.service import InlineRewardService, RewardService
from rewards.worker import RewardMesh
from rl.meshes import MeshBank
from rl.recipe import Recipe, reward_settings
from rl.rollout import PROMPT_LENGTH, Rollouts, sample_rigs

# Creature seeds of one `data.seed` from the next.
_SEED_STRIDE = 100_000


@dataclass(frozen=True)
class RunMeshes:
    """The meshes of a run: `samples`, and which of them (indices) train the policy and which are held out."""

    samples: list[MeshSample]
    train: list[int]
    held_out: list[int]


def load_policy(recipe: Recipe, key: str = "policy.path") -> RigPolicy:
    """The recipe's policy, its language model on this process's device; it fits the rest of the recipe.

    `key` is the recipe's key that names it, for messages.

    Raises RecipeError: the files cannot be loaded, `train.max_completion_length` is more than the model's
    positions hold, or `data.class_name` is no class of its vocabulary.
    """
    source = recipe.policy.path
    try:
        policy = RigPolicy.load(source, skin_vae=recipe.policy.skin_vae)
    except PolicyError as error:
        raise RecipeError(f"'{key}': {error}") from error
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RecipeError(f"'{key}': {source} cannot be loaded ({reason}); restore its files") from error
    config = policy.model.config
    room = config.max_position_embeddings - config.get_mesh_encoder().tokens - PROMPT_LENGTH
    if not 0 < recipe.train["max_completion_length"] <= room:
        raise RecipeError(
            f"'train.max_completion_length' {recipe.train['max_completion_length']} must be in 1..{room}: "
            f"{source} has {config.max_position_embeddings} positions for mesh, prompt and rig"
        )
    name, known = recipe.data.class_name, policy.vocabulary.classes
    if name is not None and name not in known:
        raise RecipeError(f"'data.class_name' must be null or one of {', '.join(known)}, not '{name}'")
    policy.model.to(PartialState().device)
    return policy


def load_meshes(recipe: Recipe, training: bool = True) -> RunMeshes:
    """The recipe's meshes, sampled; refused files are named on standard error and left out.

    Without `training` those for training are left out, and not read unless the split needs them.
    Raises MeshError if none is left.
    """
    data = recipe.data
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


def _listed(names: str | list[str]) -> list[str]:
    return [names] if isinstance(names, str) else names


def _creatures(count: int, first_seed: int, recipe: Recipe) -> list[MeshSample]:
    data = recipe.data
    seed, turn = first_seed + data.seed * _SEED_STRIDE, math.radians(data.max_turn_deg)
    return creature_samples(count, seed, data.points, data.kinds, turn)


def _named_samples(
    names: Sequence[str], part: Literal["train", "eval"], recipe: Recipe, most: int | None = None
) -> list[MeshSample]:
    """Of prepared folders the rigs of a split, `most` of each; of other names every mesh. Unique names."""
    data = recipe.data
    samples: list[MeshSample] = []
    refusals: list[Refusal] = []
    files = [name for name in names if not is_prepared(name)]
    if files:
        max_bytes = data.max_megabytes * 2**20
        samples, refusals = file_samples(files, data.points, data.seed, data.max_faces, max_bytes)
    for folder in dict.fromkeys(name for name in names if is_prepared(name)):
        more, refused = prepared_samples(folder, part, data.points, data.seed, data.max_faces, most)
        samples, refusals = [*samples, *more], [*refusals, *refused]
    _name_skipped(refusals)
    unique = unique_names([sample.name for sample in samples])
    return [replace(sample, name=name) for sample, name in zip(samples, unique, strict=True)]


def _joined(train: list[MeshSample], held_out: list[MeshSample]) -> RunMeshes:
    count = len(train)
    return RunMeshes([*train, *held_out], list(range(count)), list(range(count, count + len(held_out))))


def _name_skipped(refusals: Sequence[object]) -> None:
    if PartialState().is_main_process:
        for refusal in refusals:
            print(f"skipped: {refusal}", file=sys.stderr)


def without_refused(meshes: RunMeshes, reasons: Sequence[str | None]) -> RunMeshes:
    """Leave out meshes the reward workers could not prepare; names them on standard error.

    Raises MeshError if no training mesh or no held-out mesh is left.
    """
    _name_skipped([reason for reason in reasons if reason is not None])
    train = [k for k in meshes.train if reasons[k] is None]
    held_out = [k for k in meshes.held_out if reasons[k] is None]
    if not held_out or (meshes.train and not train):
        keys = "'data.eval_meshes' or 'data.meshes'" if train or not meshes.train else "'data.meshes'"
        raise MeshError(f"no mesh is left that can be scored; give other meshes with {keys}")
    return RunMeshes(meshes.samples, train, held_out)


def prepare_meshes(meshes: RunMeshes, service: RewardService, recipe: Recipe) -> RunMeshes:
    """Hand the meshes to the reward service; those it refuses are left out.

    Every process of a job has to call this: with Ray the main process has them prepared and the others find
    them there. Raises MeshError if no training or no held-out mesh is left.
    """
    shared = PartialState().main_process_first() if recipe.workers.backend == "ray" else nullcontext()
    with shared:
        reasons = service.prepare_meshes(reward_meshes(meshes.samples))
    return without_refused(meshes, reasons)


def reward_meshes(samples: Sequence[MeshSample]) -> list[RewardMesh]:
    """The samples as the reward service takes them."""
    return [
        RewardMesh(item.name, item.mesh.vertices, item.mesh.faces, item.points, item.normals)
        for item in samples
    ]


@contextmanager
def reward_service(recipe: Recipe, policy: RigPolicy) -> Iterator[RewardService]:
    """The recipe's reward service, closed on the way out. Raises RunFailedError if Ray cannot be had."""
    settings = reward_settings(recipe)
    workers = recipe.workers
    _check_device(recipe)
    service: RewardService
    if workers.backend == "inline":
        service = InlineRewardService(policy.skin_vae, settings, workers.decoder_device)
    else:
        from rewards.ray_service import RayRewardService, RayUnavailableError

        try:
            service = RayRewardService(
                find_skin_vae(recipe.policy.path, recipe.policy.skin_vae),
                settings,
                workers=workers.count,
                timeout_s=workers.timeout_s,
                retries=workers.retries,
                device=workers.decoder_device,
                address=recipe.ray.address,
                namespace=recipe.ray.namespace,
            )
        except RayUnavailableError as error:
            raise RunFailedError(str(error)) from error
    try:
        yield service
    finally:
        service.close()


def _check_device(recipe: Recipe) -> None:
    """Refuse a decoder device that is none, or that this machine lacks where the decoder will be on it."""
    name = recipe.workers.decoder_device
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RecipeError(
            f"'workers.decoder_device' '{name}' is no device; give cpu, cuda or cuda:N"
        ) from error
    here = recipe.workers.backend == "inline" or recipe.ray.address is None
    if here and device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RecipeError(
            f"'workers.decoder_device' is '{name}' but this machine has {torch.cuda.device_count()} CUDA "
            "devices; set it to cpu"
        )


def sample_for_meshes(
    policy: RigPolicy,
    bank: MeshBank,
    meshes: Sequence[int],
    recipe: Recipe,
    seeds: Sequence[int],
    temperature: float,
    batch_size: int,
) -> Rollouts:
    """One rollout per entry of `meshes` (bank indices) and seed, under the recipe's grammar and limit."""
    used, mesh_index = torch.unique(torch.tensor(list(meshes)), return_inverse=True)
    return sample_rigs(
        policy.model,
        bank.embeds(used, policy.model),
        mesh_index,
        torch.full((len(seeds),), bank.class_id),
        Grammar(bank.vocabulary, recipe.policy.grammar),
        max_new_tokens=recipe.train["max_completion_length"],
        seeds=seeds,
        temperature=temperature,
        batch_size=batch_size,
    )
