"""Samples rollouts: grammar-constrained rig tokens by a rollout engine, with one seed per row."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from policy.tokenrig.log_probs import row_uniforms
from policy.tokenrig.modeling import TokenRigForCausalLM
from rl.engine.finite_logits import check_embeddings
from rl.engine.sampler import Sampler, SamplingRequest
from rl.given_skeleton import GivenSkeletons, tokens_of
from rl.mesh_bank import MeshBank
from rl.prompts import SkeletonTokens, longest_completion
from rl.recipe import Recipe


@dataclass(frozen=True, eq=False)
class Rollouts:
    """Completions after the prompt `[mesh, bos, class]` and any given skeleton, with log-probabilities.

    completion_ids: (B, L) int64, padded with `pad` after <eos>. log_probs: (B, L) float32 under the sampling
    distribution, 0 on padding. lengths: (B,) int64, tokens up to and including <eos>. complete: (B,) bool,
    False for rows cut off by the token limit.
    """

    completion_ids: Tensor
    log_probs: Tensor
    lengths: Tensor
    complete: Tensor

    def rows(self) -> tuple[list[list[int]], list[list[float]]]:
        """Token ids and log-probabilities as lists without padding, the form TRL expects."""
        ids, log_probs = self.completion_ids.tolist(), self.log_probs.tolist()
        lengths = self.lengths.tolist()
        return (
            [row[:n] for row, n in zip(ids, lengths, strict=True)],
            [row[:n] for row, n in zip(log_probs, lengths, strict=True)],
        )


def row_seeds(count: int, *key: int) -> list[int]:
    """One 63-bit seed per row from a key such as (run seed, step, rank): equal keys give equal rollouts."""
    texts = ["/".join(map(str, (*key, row))) for row in range(count)]
    digests = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts]
    return [int.from_bytes(digest, "little") >> 1 for digest in digests]


@torch.no_grad()
def sample_rigs(
    sampler: Sampler,
    mesh_embeds: Tensor,
    mesh_index: Tensor,
    class_ids: Tensor,
    *,
    max_new_tokens: int,
    seeds: Sequence[int],
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    batch_size: int | None = None,
    skeletons: Sequence[SkeletonTokens] | None = None,
    names: Sequence[str] = (),
) -> Rollouts:
    """Sample one completion per row.

    A row's tokens depend on its seed and mesh, not on the chunk it is sampled in.

    Args:
        sampler: the rollout engine.
        mesh_embeds: (M, T, hidden) conditioning embeddings.
        mesh_index: (B,) int64, the mesh of each row.
        class_ids: (B,) int64, the class token of each row.
        max_new_tokens: limit of the completion, <eos> included.
        seeds: B seeds.
        temperature: 0 is greedy.
        top_k, top_p: for inference only; training needs the whole distribution.
        batch_size: rows sampled at once, None for all.
        skeletons: the given skeleton of each of the M meshes, empty where the policy writes it. It is part of
            the prompt: the completion holds SkinTokens only.
        names: of the M meshes, for error messages.

    Raises:
        ValueError: mesh_index, class_ids and seeds differ in length or are empty, or `max_new_tokens` or a
            given skeleton exceeds the model's positions.
        RunFailedError: embeddings or logits are not finite.
    """
    rows = len(seeds)
    if mesh_index.shape != (rows,) or class_ids.shape != (rows,) or rows == 0:
        raise ValueError(
            f"{rows} seeds, but mesh_index has shape {tuple(mesh_index.shape)} and class_ids "
            f"{tuple(class_ids.shape)}; pass one of each per row"
        )
    check_embeddings(mesh_embeds, names)
    skeletons = [()] * len(mesh_embeds) if skeletons is None else skeletons
    vocabulary = sampler.grammar.vocabulary
    room = sampler.positions - mesh_embeds.shape[1]
    max_new_tokens = longest_completion(skeletons, max_new_tokens, room, vocabulary)
    mesh_index, class_ids = mesh_index.cpu(), class_ids.cpu()
    chunks = [
        sampler.sample(
            SamplingRequest(
                mesh_embeds,
                mesh_index[chunk],
                class_ids[chunk],
                skeletons,
                row_uniforms([seeds[i] for i in chunk.tolist()], max_new_tokens),
                temperature,
                top_k,
                top_p,
                names,
            )
        )
        for chunk in torch.arange(rows).split(batch_size or rows)
    ]
    width = max(ids.shape[1] for ids, _ in chunks)
    ids = torch.cat([functional.pad(i, (0, width - i.shape[1]), value=vocabulary.pad) for i, _ in chunks])
    log_probs = torch.cat([functional.pad(p, (0, width - p.shape[1])) for _, p in chunks])
    is_end = ids == vocabulary.eos
    ended = is_end.any(dim=1)
    lengths = torch.where(ended, is_end.int().argmax(dim=1) + 1, width)
    return Rollouts(ids, log_probs, lengths, ended)


def sample_for_meshes(
    sampler: Sampler,
    model: TokenRigForCausalLM,
    bank: MeshBank,
    meshes: Sequence[int],
    recipe: Recipe,
    seeds: Sequence[int],
    temperature: float,
    batch_size: int,
    given: GivenSkeletons | None = None,
) -> Rollouts:
    """Sample one rollout per entry of `meshes` (bank indices) with the recipe's token limit.

    `model` encodes the meshes. `given`: skeletons by bank index; only SkinTokens are sampled for the meshes
    that have one.
    """
    used, mesh_index = torch.unique(torch.tensor(list(meshes)), return_inverse=True)
    return sample_rigs(
        sampler,
        bank.embeds(used, model),
        mesh_index,
        torch.full((len(seeds),), bank.class_id),
        max_new_tokens=recipe.train["max_completion_length"],
        seeds=seeds,
        temperature=temperature,
        batch_size=batch_size,
        skeletons=tokens_of(given, used.tolist()),
        names=bank.names(used.tolist()),
    )
