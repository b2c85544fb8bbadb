"""Beam search over rig tokens under the grammar, with a KV cache reordered along the beams."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from policy.tokenrig.modeling import TokenRigForCausalLM
from policy.tokens.grammar import Grammar, GrammarState
from rl.engine.finite_logits import check_embeddings, check_log_probs
from rl.prompts import SkeletonTokens, longest_completion, sampling_prompts
from rl.rollout import Rollouts


@torch.no_grad()
def beam_search(
    model: TokenRigForCausalLM,
    mesh_embeds: Tensor,
    class_ids: Tensor,
    grammar: Grammar,
    *,
    max_new_tokens: int,
    beams: int,
    length_penalty: float = 1.0,
    skeletons: Sequence[SkeletonTokens] | None = None,
    names: Sequence[str] = (),
) -> Rollouts:
    """The best completion of each mesh found by a beam of `beams` hypotheses.

    The score of a hypothesis is the sum of its tokens' log-probabilities, under the grammar and at
    temperature 1, divided by its length to the power of `length_penalty`: 0 prefers the most likely rig (and
    so few joints), 1 the highest mean log-probability per token. Each step extends every hypothesis by every
    legal token and keeps the `beams` best. Finished hypotheses compete for the beam, and the best one found
    is remembered even if it drops out. The search ends when all hypotheses are finished. A beam of 1 is
    greedy decoding; a beam wide enough for every prefix finds the global optimum.

    Args:
        mesh_embeds: (M, T, hidden) conditioning embeddings.
        class_ids: (M,) int64, class token of each mesh.
        max_new_tokens: limit of the completion, <eos> included.
        beams: K >= 1.
        length_penalty: >= 0.
        skeletons: the given skeleton of each mesh, empty where the policy writes it; see `sample_rigs`.
        names: of the meshes, for error messages.

    Returns:
        M completions; `log_probs` are at temperature 1. If no hypothesis of a mesh finished within the
        limit, its row is the best unfinished one.

    Raises:
        ValueError: beams, length_penalty or max_new_tokens out of range, a given skeleton that exceeds the
            model's positions, or not one class per mesh.
        RunFailedError: embeddings or logits are not finite.
    """
    meshes = len(mesh_embeds)
    if class_ids.shape != (meshes,) or meshes == 0:
        raise ValueError(
            f"class_ids have shape {tuple(class_ids.shape)} for {meshes} meshes; pass one class per mesh"
        )
    skeletons = [()] * meshes if skeletons is None else skeletons
    positions = model.config.max_position_embeddings - mesh_embeds.shape[1]
    limit = longest_completion(skeletons, max_new_tokens, positions, grammar.vocabulary)
    if beams < 1 or not length_penalty >= 0:
        raise ValueError(f"beams {beams} must be at least 1 and length_penalty {length_penalty} at least 0")
    check_embeddings(mesh_embeds, names)
    was_training = model.training
    model.eval()
    try:
        found = _search(
            model, mesh_embeds, class_ids, skeletons, grammar, limit, beams, length_penalty, names
        )
    finally:
        model.train(was_training)
    return found


def _search(
    model: TokenRigForCausalLM,
    mesh_embeds: Tensor,
    class_ids: Tensor,
    skeletons: Sequence[SkeletonTokens],
    grammar: Grammar,
    limit: int,
    beams: int,
    length_penalty: float,
    names: Sequence[str],
) -> Rollouts:
    device, vocabulary, meshes = mesh_embeds.device, grammar.vocabulary, len(mesh_embeds)
    prompt, mask = sampling_prompts(class_ids.to(device), skeletons, vocabulary)
    output = model(input_ids=prompt, attention_mask=mask, mesh_embeds=mesh_embeds, use_cache=True)
    cache = output.past_key_values
    first_row = torch.arange(meshes, device=device)[:, None] * beams  # (M, 1): a mesh's first row
    row_of_mesh = torch.arange(meshes, device=device).repeat_interleave(beams)
    cache.reorder_cache(row_of_mesh)
    logits = output.logits[:, -1][row_of_mesh]
    start = grammar.after_prompt(prompt, mask)
    state = GrammarState(start.state[row_of_mesh], start.bones[row_of_mesh], start.skin[row_of_mesh])
    mask = None if mask is None else mask[row_of_mesh]

    ids = torch.full((meshes, beams, limit), vocabulary.pad, device=device)
    log_probs = torch.zeros(meshes, beams, limit, dtype=torch.float64, device=device)
    lengths = torch.zeros(meshes, beams, dtype=torch.int64, device=device)
    # All hypotheses of a mesh start identical, so only one of them counts.
    totals = torch.full((meshes, beams), -torch.inf, dtype=torch.float64, device=device)
    totals[:, 0] = 0
    best = _Best(meshes, limit, vocabulary.pad, device)
    for position in range(limit):
        masked = logits.float().masked_fill(~grammar.allowed(state), -torch.inf)
        # Sum in float64, so that rounding does not decide the ranking of long hypotheses.
        each = masked.log_softmax(dim=1).double()
        each, choices = each.topk(
            min(beams, each.shape[1]), dim=1
        )  # a beam never takes more than this from one hypothesis
        each, choices = each.view(meshes, beams, -1), choices.view(meshes, beams, -1)
        running = ~grammar.finished(state).view(meshes, beams)
        grown = (totals[..., None] + each).flatten(1)
        final = (lengths + running)[..., None].expand_as(each).flatten(1)
        ranked = grown / final.double() ** length_penalty
        # Unused hypotheses, and the padding if there are fewer choices than beams, rank last.
        chosen = ranked.topk(min(beams, ranked.shape[1]), dim=1).indices
        chosen = torch.nn.functional.pad(chosen, (0, beams - chosen.shape[1]))
        parent = chosen // each.shape[2]
        totals, lengths = grown.gather(1, chosen), final.gather(1, chosen)
        totals[:, ranked.shape[1] :] = -torch.inf
        tokens = choices.flatten(1).gather(1, chosen)
        rows = (first_row + parent).flatten()
        ids = ids.flatten(0, 1)[rows].view_as(ids)
        log_probs = log_probs.flatten(0, 1)[rows].view_as(log_probs)
        ids[..., position] = tokens
        log_probs[..., position] = each.flatten(1).gather(1, chosen)
        state = grammar.step(
            GrammarState(state.state[rows], state.bones[rows], state.skin[rows]), tokens.flatten()
        )
        ended = grammar.finished(state).view(meshes, beams)
        # A NaN ranks highest, so every hypothesis that meets one keeps it.
        check_log_probs(totals.nan_to_num(nan=torch.nan, neginf=0.0), torch.arange(meshes), names)
        scores = totals / lengths.double() ** length_penalty
        best.update(ids, log_probs, lengths, scores.masked_fill(~ended, -torch.inf))
        if position + 1 == limit or bool((ended | (totals == -torch.inf)).all()):
            break
        if not torch.equal(rows, torch.arange(len(rows), device=device)):
            cache.reorder_cache(rows)
        # A row's hypotheses stay among the rows of its mesh, which share one prompt and so one mask.
        mask = None if mask is None else torch.nn.functional.pad(mask, (0, 1), value=1)
        output = model(
            input_ids=tokens.view(-1, 1), attention_mask=mask, past_key_values=cache, use_cache=True
        )
        logits = output.logits[:, -1]
    complete = best.scores > -torch.inf
    best.update(ids, log_probs, lengths, scores.masked_fill(complete[:, None], -torch.inf))
    return Rollouts(best.ids, best.log_probs.float(), best.lengths, complete)


class _Best:
    """The best hypothesis of each mesh so far: ids and log_probs (M, L), lengths and scores (M,)."""

    def __init__(self, meshes: int, limit: int, pad: int, device: torch.device) -> None:
        self.ids = torch.full((meshes, limit), pad, device=device)
        self.log_probs = torch.zeros(meshes, limit, dtype=torch.float64, device=device)
        self.lengths = torch.zeros(meshes, dtype=torch.int64, device=device)
        self.scores = torch.full((meshes,), -torch.inf, dtype=torch.float64, device=device)

    def update(self, ids: Tensor, log_probs: Tensor, lengths: Tensor, scores: Tensor) -> None:
        """Keep the better ones; ids, log_probs (M, K, L), lengths, scores (M, K), -inf for unfinished."""
        top, place = scores.max(dim=1)
        better = top > self.scores
        mesh = torch.arange(len(place), device=place.device)
        self.ids = torch.where(better[:, None], ids[mesh, place], self.ids)
        self.log_probs = torch.where(better[:, None], log_probs[mesh, place], self.log_probs)
        self.lengths = torch.where(better, lengths[mesh, place], self.lengths)
        self.scores = torch.where(better, top, self.scores)
