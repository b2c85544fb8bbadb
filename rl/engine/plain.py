"""The plain rollout engine: the model's own forward pass with a KV cache, the reference of the fast one."""

from __future__ import annotations

import torch
from torch import Tensor

from policy.tokenrig.log_probs import sample_tokens
from policy.tokenrig.modeling import TokenRigForCausalLM
from policy.tokens.grammar import Grammar, GrammarState
from rl.engine.finite_logits import LOOK_EVERY, check_log_probs
from rl.engine.sampler import SamplingRequest
from rl.prompts import sampling_prompts

# Finished rows leave the batch once they are this share of it.
_COMPACT_SHARE = 0.25


class PlainSampler:
    """`Sampler` that runs the model itself; it always has the current weights."""

    def __init__(self, model: TokenRigForCausalLM, grammar: Grammar) -> None:
        self.model, self.grammar = model, grammar

    @property
    def positions(self) -> int:
        """Positions of the model."""
        return self.model.config.max_position_embeddings

    def refresh(self) -> None:
        """Nothing to do."""

    @torch.no_grad()
    def sample(self, request: SamplingRequest) -> tuple[Tensor, Tensor]:
        """See `Sampler`; rows of one mesh and class share one prefix pass."""
        was_training = self.model.training
        self.model.eval()
        try:
            return _sample(self.model, self.grammar, request)
        finally:
            self.model.train(was_training)


def _sample(model: TokenRigForCausalLM, grammar: Grammar, request: SamplingRequest) -> tuple[Tensor, Tensor]:
    device = request.mesh_embeds.device
    vocabulary = grammar.vocabulary
    rows, limit = request.uniforms.shape
    uniforms = request.uniforms.to(device)
    # One prefix pass per distinct (mesh, class); the cache then expands it to the rows.
    pairs, pair_of_row = torch.unique(
        torch.stack([request.mesh_index, request.class_ids], dim=1), dim=0, return_inverse=True
    )
    pairs, pair_of_row = pairs.to(device), pair_of_row.to(device)
    given = [request.skeletons[mesh] for mesh in pairs[:, 0].tolist()]
    prompt, mask = sampling_prompts(pairs[:, 1], given, vocabulary)
    state = _select(grammar.after_prompt(prompt, mask), pair_of_row)
    output = model(
        input_ids=prompt, attention_mask=mask, mesh_embeds=request.mesh_embeds[pairs[:, 0]], use_cache=True
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
            logits,
            grammar.allowed(state),
            uniforms[alive, position],
            request.temperature,
            request.top_k,
            request.top_p,
        )
        tokens = drawn.tokens
        ids[alive, position] = tokens
        log_probs[alive, position] = drawn.log_probs
        state = grammar.step(state, tokens)
        if position + 1 == limit:
            break
        if (position + 1) % LOOK_EVERY == 0:
            check_log_probs(log_probs[:, : position + 1], request.mesh_index, request.names)
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
    check_log_probs(log_probs, request.mesh_index, request.names)
    return ids, log_probs


def _select(state: GrammarState, rows: Tensor) -> GrammarState:
    return GrammarState(state.state[rows], state.bones[rows], state.skin[rows])
