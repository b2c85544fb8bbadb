"""Samples rollouts: batched, grammar-constrained rig tokens with a KV cache and one seed per row."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from policy.bundle import RigPolicy
from policy.tokenrig.log_probs import row_uniforms, sample_tokens
from policy.tokenrig.modeling import TokenRigForCausalLM
from policy.tokens.grammar import Grammar, GrammarState
from rl.given_skeleton import GivenSkeletons, tokens_of
from rl.mesh_bank import MeshBank
from rl.prompts import SkeletonTokens, longest_completion, sampling_prompts
from rl.recipe import Recipe

# Finished rows leave the batch once they are this share of it. It is checked only every so many tokens
# because each check costs a device-to-host copy.
_COMPACT_SHARE = 0.25
_COMPACT_EVERY = 16


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
    model: TokenRigForCausalLM,
    mesh_embeds: Tensor,
    mesh_index: Tensor,
    class_ids: Tensor,
    grammar: Grammar,
    *,
    max_new_tokens: int,
    seeds: Sequence[int],
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    batch_size: int | None = None,
    skeletons: Sequence[SkeletonTokens] | None = None,
) -> Rollouts:
    """Sample one completion per row.

    A row's tokens depend on its seed and mesh, not on the chunk it is sampled in. Rows of one mesh and class
    in a chunk share one prefix pass.

    Args:
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

    Raises:
        ValueError: mesh_index, class_ids and seeds differ in length or are empty, or `max_new_tokens` or a
            given skeleton exceeds the model's positions.
    """
    rows = len(seeds)
    if mesh_index.shape != (rows,) or class_ids.shape != (rows,) or rows == 0:
        raise ValueError(
            f"{rows} seeds, but mesh_index has shape {tuple(mesh_index.shape)} and class_ids "
            f"{tuple(class_ids.shape)}; pass one of each per row"
        )
    skeletons = [()] * len(mesh_embeds) if skeletons is None else skeletons
    positions = model.config.max_position_embeddings - mesh_embeds.shape[1]
    max_new_tokens = longest_completion(skeletons, max_new_tokens, positions, grammar.vocabulary)
    was_training = model.training
    model.eval()
    try:
        chunks = [
            _sample_chunk(
                model,
                mesh_embeds,
                mesh_index[chunk],
                class_ids[chunk],
                skeletons,
                grammar,
                row_uniforms([seeds[i] for i in chunk.tolist()], max_new_tokens),
                temperature,
                top_k,
                top_p,
            )
            for chunk in torch.arange(rows).split(batch_size or rows)
        ]
    finally:
        model.train(was_training)
    width = max(ids.shape[1] for ids, _ in chunks)
    pad = grammar.vocabulary.pad
    ids = torch.cat([torch.nn.functional.pad(i, (0, width - i.shape[1]), value=pad) for i, _ in chunks])
    log_probs = torch.cat([torch.nn.functional.pad(p, (0, width - p.shape[1])) for _, p in chunks])
    ended = (ids == grammar.vocabulary.eos).any(dim=1)
    lengths = torch.where(ended, (ids == grammar.vocabulary.eos).int().argmax(dim=1) + 1, width)
    return Rollouts(ids, log_probs, lengths, ended)


def sample_for_meshes(
    policy: RigPolicy,
    bank: MeshBank,
    meshes: Sequence[int],
    recipe: Recipe,
    seeds: Sequence[int],
    temperature: float,
    batch_size: int,
    given: GivenSkeletons | None = None,
) -> Rollouts:
    """Sample one rollout per entry of `meshes` (bank indices) with the recipe's grammar and token limit.

    `given`: skeletons by bank index; only SkinTokens are sampled for the meshes that have one.
    """
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
        skeletons=tokens_of(given, used.tolist()),
    )


def _sample_chunk(
    model: TokenRigForCausalLM,
    mesh_embeds: Tensor,
    mesh_index: Tensor,
    class_ids: Tensor,
    skeletons: Sequence[SkeletonTokens],
    grammar: Grammar,
    uniforms: Tensor,
    temperature: float,
    top_k: int,
    top_p: float,
) -> tuple[Tensor, Tensor]:
    """Tokens and log-probabilities (B, L') of one chunk, L' being the longest completion."""
    device = mesh_embeds.device
    vocabulary = grammar.vocabulary
    rows, limit = uniforms.shape
    uniforms = uniforms.to(device)
    # One prefix pass per distinct (mesh, class); the cache then expands it to the rows.
    pairs, pair_of_row = torch.unique(
        torch.stack([mesh_index, class_ids.to(mesh_index.device)], dim=1), dim=0, return_inverse=True
    )
    pairs, pair_of_row = pairs.to(device), pair_of_row.to(device)
    given = [skeletons[mesh] for mesh in pairs[:, 0].tolist()]
    prompt, mask = sampling_prompts(pairs[:, 1], given, vocabulary)
    state = _select(grammar.after_prompt(prompt, mask), pair_of_row)
    output = model(
        input_ids=prompt, attention_mask=mask, mesh_embeds=mesh_embeds[pairs[:, 0]], use_cache=True
    )
    mask = None if mask is None else mask[pair_of_row]
    cache = output.past_key_values
    cache.reorder_cache(pair_of_row)
    logits = output.logits[:, -1][pair_of_row]

    ids = torch.full((rows, limit), vocabulary.pad, device=device)
    log_probs = torch.zeros((rows, limit), device=device)
    alive = torch.arange(rows, device=device)  # rows still in the batch, as indices into the chunk
    for position in range(limit):
        drawn = sample_tokens(
            logits, grammar.allowed(state), uniforms[alive, position], temperature, top_k, top_p
        )
        tokens = drawn.tokens
        ids[alive, position] = tokens
        log_probs[alive, position] = drawn.log_probs
        state = grammar.step(state, tokens)
        if position + 1 == limit:
            break
        if (position + 1) % _COMPACT_EVERY == 0:
            running = ~grammar.finished(state)
            count = int(running.sum())
            if count == 0:
                ids, log_probs = ids[:, : position + 1], log_probs[:, : position + 1]
                break
            if count <= (1 - _COMPACT_SHARE) * len(alive):
                keep = running.nonzero(as_tuple=True)[0]
                alive, tokens, state = alive[keep], tokens[keep], _select(state, keep)
                mask = None if mask is None else mask[keep]
                cache.reorder_cache(keep)
        mask = None if mask is None else torch.nn.functional.pad(mask, (0, 1), value=1)
        output = model(input_ids=tokens[:, None], attention_mask=mask, past_key_values=cache, use_cache=True)
        logits = output.logits[:, -1]
    return ids, log_probs


def _select(state: GrammarState, rows: Tensor) -> GrammarState:
    return GrammarState(state.state[rows], state.bones[rows], state.skin[rows])
