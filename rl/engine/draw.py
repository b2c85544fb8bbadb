"""Draws the next token of each row: head, grammar and sampling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from policy.tokenrig.log_probs import SampledTokens, sample_tokens
from policy.tokens.grammar import SKELETON, SKIN, Grammar, GrammarState
from rl.engine.weights import HeadWeights, linear


@dataclass(frozen=True)
class DrawSettings:
    """Temperature (0: greedy), top-k (0: all) and top-p of `sample_tokens`."""

    temperature: float
    top_k: int
    top_p: float


def draw_tokens(
    hidden: Tensor,
    head: HeadWeights,
    grammar: Grammar,
    state: GrammarState,
    uniforms: Tensor,
    settings: DrawSettings,
) -> SampledTokens:
    """Draw one legal token per row; log-probabilities are float32, as in `sample_tokens`.

    hidden: (R, hidden) final hidden states; state: the grammar's, (R,); uniforms: (R,) float64.

    With the whole head (CUDA), nothing is copied to the host. Its slices would save little: SkinTokens are 99
    % of the released vocabulary, and rows of both phases are mixed. With the head in slices (CPU), rows are
    split by phase on the host, and forced tokens need no head.
    """
    if head.full is not None:
        logits = _logits(hidden, head.full)
        return _sample(logits, grammar.allowed(state), uniforms, settings)
    assert head.skeleton is not None
    assert head.skin is not None
    legal_row = grammar.legal_row(state)
    phase = grammar.phases(legal_row)
    table = grammar.legal_table()
    slices = grammar.phase_slices
    hidden = hidden.float()
    parts = []
    for which, weight, columns in (
        (SKELETON, head.skeleton, slices.skeleton),
        (SKIN, head.skin, slices.skin),
    ):
        rows = (phase == which).nonzero()[:, 0]
        if len(rows) == 0:
            continue
        everyone = len(rows) == len(phase)
        logits = linear(hidden if everyone else hidden[rows], weight)
        allowed = table[legal_row[rows], columns] if which == SKELETON else None
        drawn = _sample(logits, allowed, uniforms[rows], settings)
        drawn = SampledTokens(drawn.tokens + columns.start, drawn.log_probs)
        if everyone:
            return drawn
        parts.append((rows, drawn))
    # The others are forced: their one legal token is certain.
    tokens = grammar.first_legal(legal_row)
    log_probs = torch.zeros(len(hidden))
    for rows, drawn in parts:
        tokens.index_copy_(0, rows, drawn.tokens)
        log_probs.index_copy_(0, rows, drawn.log_probs)
    return SampledTokens(tokens, log_probs)


def _sample(
    logits: Tensor, allowed: Tensor | None, uniforms: Tensor, settings: DrawSettings
) -> SampledTokens:
    return sample_tokens(logits, allowed, uniforms, settings.temperature, settings.top_k, settings.top_p)


def _logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """Logits (R, V) with float32 results, whatever the dtype of the operands."""
    if hidden.dtype == torch.float32:
        return hidden @ weight.T
    return torch.mm(hidden, weight.T, out_dtype=torch.float32)
