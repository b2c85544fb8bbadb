"""Estimates the memory a training process needs, part by part, from the sizes of policy and batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from policy.skintokens.frozen_decoder import CUDA_ELEMENTS
from policy.tokenrig.log_probs import CHUNK_ELEMENTS, KEPT_ELEMENTS
from rl.engine.memory import CacheShape, stage_of
from rl.preflight.launch import Launch, StepBatch
from rl.preflight.model_size import ModelSize
from rl.recipe import Recipe

# A completion's usual length, and how far a batch's longest usually reaches: 28 joints take about 210 tokens,
# 55 bones 400 to 500.
TYPICAL_TOKENS = 300
TYPICAL_LONGEST = 512

# Bytes of optimiser state per trained weight, by TRL's `optim`; AdamW's two float32 moments otherwise.
_STATES = {
    "adafactor": 0.1,
    "sgd": 4,
    "adamw_8bit": 2,
    "adamw_bnb_8bit": 2,
    "paged_adamw_8bit": 2,
    "lion_8bit": 1,
    "lion_32bit": 4,
}
_ADAMW_STATES = 8

# A process's CUDA context with the kernels of torch, bytes.
CUDA_CONTEXT = 600 << 20
# Resident memory of a process after its imports, and of Ray's own processes together, bytes: measured with
# torch 2.13 (CPU) and Ray 2.60.
TRAINER_BASE = 1000 << 20
ACTOR_BASE = 330 << 20
RAY_BASE = 450 << 20


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes by part. `fixed`: what exists through the whole run; `peak`: what comes with a step's batch."""

    fixed: Mapping[str, int]
    peak: Mapping[str, int]

    @property
    def total(self) -> int:
        """Bytes of all parts, as if they were at their largest at the same time."""
        return sum(self.fixed.values()) + sum(self.peak.values())


def state_bytes(train: Mapping[str, Any]) -> float:
    """Bytes of optimiser state per trained weight."""
    return _STATES.get(str(train.get("optim") or "adamw"), _ADAMW_STATES)


def activation_bytes(size: ModelSize, itemsize: int, checkpointing: bool) -> int:
    """Bytes that the packed pass keeps for the backward pass per packed token.

    Per layer: the residual stream before both norms and the normed inputs of both blocks; queries before and
    after rotation, and attention's output; keys likewise, and values; gate, up and their product. With
    checkpointing one layer's, and each layer's input.
    """
    own = size.head_dim * (3 * size.heads + 3 * size.kv_heads)
    layer = itemsize * (4 * size.hidden + own + 3 * size.inner)
    return layer + itemsize * size.layers * size.hidden if checkpointing else layer * size.layers


def training_memory(
    recipe: Recipe, size: ModelSize, batch: StepBatch, launch: Launch, cuda: bool
) -> MemoryNeed:
    """Memory of one training process; with its share of the skin decoder if that runs on the same GPU."""
    train = recipe.train
    half = bool(train.get("bf16") or train.get("fp16"))
    shards = launch.processes
    weights, trained = 4 * size.model, 4 * size.trained
    fixed = {
        "weights": weights // (shards if launch.sharding in ("zero3", "fsdp") else 1),
        # DDP reduces gradients in buckets of their own.
        "gradients": trained // shards
        if launch.sharding in ("zero2", "zero3", "fsdp")
        else trained * (2 if launch.processes > 1 else 1),
        "optimiser": int(state_bytes(train) * size.trained) // (1 if launch.sharding == "none" else shards),
    }
    if train["beta"] and recipe.policy.lora is None:
        fixed["reference policy"] = 4 * size.model // (shards if launch.sharding in ("zero3", "fsdp") else 1)
    if recipe.rollout.engine != "plain":
        sampling = recipe.rollout.dtype
        sampling_bytes = 2 if sampling == "bfloat16" or (sampling == "auto" and train.get("bf16")) else 4
        # Embedding and head are two copies there.
        fixed["sampling copy"] = sampling_bytes * (size.language + size.vocabulary * size.hidden)
    else:
        sampling_bytes = 2 if half else 4
    limit = train["max_completion_length"]
    rows = min(recipe.rollout.batch_size or batch.rows, batch.rows)
    shape = CacheShape(size.layers, size.kv_heads, size.head_dim, sampling_bytes)
    meshes = -(-rows // batch.group)
    longest = min(TYPICAL_LONGEST, limit)
    itemsize = 2 if half else 4
    tokens = batch.micro_batch * min(TYPICAL_TOKENS, limit)
    packed = recipe.log_probs.engine != "plain"
    prefixes = -(-batch.micro_batch // batch.group) if packed else batch.micro_batch
    per_token = activation_bytes(size, itemsize, bool(train.get("gradient_checkpointing")))
    skin = tokens * size.tokens_per_skin // (3 + size.tokens_per_skin)
    peak = {
        "keys and values": shape.own(rows, stage_of(longest, max(1, limit)))
        + shape.prefixes(meshes, size.prefix),
        "activations": per_token * (tokens + prefixes * size.prefix),
        "head": 4 * (min(skin * size.codebook, KEPT_ELEMENTS) + 2 * CHUNK_ELEMENTS)
        + 2 * 4 * size.vocabulary * size.hidden,
    }
    if half:
        peak["half-precision weights"] = 2 * size.language
    if cuda:
        fixed["CUDA context"] = CUDA_CONTEXT
        if recipe.workers.decoder_device.startswith("cuda"):
            fixed["skin decoder"] = decoder_memory(recipe, size)
    return MemoryNeed(fixed, peak)


def decoder_memory(recipe: Recipe, size: ModelSize) -> int:
    """Bytes of the skin decoder on a GPU: its process, the VAE with its frozen copy, and one pass."""
    itemsize = 2 if recipe.workers.decoder_dtype == "bfloat16" else 4
    context = 0 if recipe.workers.backend == "inline" else CUDA_CONTEXT
    return context + 8 * size.vae + 2 * itemsize * CUDA_ELEMENTS


def host_memory(recipe: Recipe, size: ModelSize, need: MemoryNeed, launch: Launch, cuda: bool) -> int:
    """Resident bytes of all processes of this machine: trainers and, with a local Ray, its actors."""
    trainer = TRAINER_BASE + (4 * (size.model + size.vae) if cuda else need.total)
    total = launch.local_processes * trainer
    if recipe.workers.backend == "ray" and recipe.ray.address is None:
        actors = recipe.workers.count + 2  # the decoder and the registry of meshes
        total += RAY_BASE + actors * ACTOR_BASE + 8 * size.vae
    return total
