"""Log-probabilities of rig tokens under the grammar, and sampling of the next token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from policy.tokens.grammar import SKELETON, SKIN, Grammar, GrammarState

# In place of log 0: finite, so that ratios and KL terms of an illegal token stay finite (its exp is 0).
ILLEGAL_LOG_PROB = -1.0e4

# Elements of a chunk of logits: 64 MiB of float32, of which two exist at a time.
CHUNK_ELEMENTS = 1 << 24

# Log-probabilities kept for the backward pass: 1 GiB of float32 a phase, 8,192 tokens of 32,768 codes.
# Those of more tokens are computed again, a third more work in the head.
KEPT_ELEMENTS = 1 << 28

_BLOCK = 256  # tokens summed at once when sampling

_MASKED_LOGIT = -1.0e30  # finite: 0 times it is 0, so the entropy needs no special case


@dataclass(frozen=True)
class CompletionLogProbs:
    """Log-probabilities of a completion's tokens and entropies at their positions, in nats.

    log_probs: (B, L) float32; entropies: (B, L) float32, None if not requested. Both are of the distribution
    masked by the grammar, renormalised and scaled by the temperature; both are zero at padding and where the
    grammar leaves a single token.
    """

    log_probs: Tensor
    entropies: Tensor | None


@dataclass(frozen=True)
class SampledTokens:
    """tokens: (B,) int64; log_probs: (B,) float32, nats, as in :class:`CompletionLogProbs`."""

    tokens: Tensor
    log_probs: Tensor


def completion_log_probs(
    hidden: Tensor,
    head_weight: Tensor,
    completion_ids: Tensor,
    grammar: Grammar,
    temperature: float = 1.0,
    entropy: bool = True,
    mask: Tensor | None = None,
    start: GrammarState | None = None,
    hidden_at: Tensor | None = None,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> CompletionLogProbs:
    """Log-probabilities and entropies of completions under the grammar's distribution.

    hidden: (B, L, H), hidden[:, t] predicts completion_ids[:, t] (last hidden states shifted by one: the
    first is at the prompt's last token); head_weight: (V, H); completion_ids: (B, L) int; mask: (B, L), zero
    at padding; start: grammar state before position 0, by default after ``[bos, class]``. Packed hidden
    states are (N, H), with hidden_at: (B, L) int64, the one that predicts each id (any at padding).

    The head is sliced by phase: skeleton positions use only the few hundred skeleton rows, skin positions
    only the SkinTokens' rows, forced positions none. Products and sums are float32 whatever the input. A
    chunk has at most ``chunk_elements`` logits; the backward pass recomputes those of a phase with more than
    ``KEPT_ELEMENTS``. Both results are
    differentiable with respect to ``hidden`` and ``head_weight``; the gradient of the entropies costs nothing
    unless it is used.

    A token that is illegal at its position has ``ILLEGAL_LOG_PROB`` and no gradient (raising would cost a
    device-to-host copy; :meth:`Grammar.validity` finds such rows). An illegal *pad* is treated as padding of
    a truncated row and gets log-probability 0; under the released grammar, where pads are legal SkinTokens,
    truncated rows need ``mask``. Raises ValueError for shapes that do not fit and for a temperature that is
    not positive.
    """
    _check(hidden, head_weight, completion_ids, grammar, temperature, hidden_at)
    batch, length = completion_ids.shape
    scan = grammar.scan(completion_ids, mask, start)
    phase, row = scan.phase.flatten(), scan.row.flatten()
    ids, flat_hidden = completion_ids.flatten(), hidden.flatten(0, -2)
    table = grammar.legal_table(hidden.device)
    log_probs = torch.zeros(batch * length, dtype=torch.float32, device=hidden.device)
    entropies = torch.zeros_like(log_probs)
    slices = grammar.phase_slices
    for which, columns in ((SKELETON, slices.skeleton), (SKIN, slices.skin)):
        positions = (phase == which).nonzero().squeeze(1)
        width = columns.stop - columns.start
        part: tuple[Tensor, Tensor] = _SlicedHead.apply(
            flat_hidden.index_select(0, positions if hidden_at is None else hidden_at.flatten()[positions]),
            head_weight[columns],
            (ids[positions] - columns.start).clamp(0, width - 1),
            table[:, columns] if which == SKELETON else None,
            row[positions],
            1.0 / temperature,
            entropy,
            max(1, chunk_elements // width),
        )
        log_probs = log_probs.index_copy(0, positions, part[0])
        entropies = entropies.index_copy(0, positions, part[1])
    padding = (completion_ids == grammar.vocabulary.pad) & ~scan.legal
    illegal = torch.where(padding, 0.0, ILLEGAL_LOG_PROB)
    return CompletionLogProbs(
        log_probs=torch.where(scan.legal, log_probs.view(batch, length), illegal),
        entropies=entropies.view(batch, length).masked_fill(padding, 0.0) if entropy else None,
    )


def head_logits(hidden: Tensor, head_weight: Tensor) -> Tensor:
    """Logits (..., V) of hidden states (..., H) in any dtype, computed in float32 as in training."""
    with torch.autocast(hidden.device.type, enabled=False):
        return hidden.float() @ head_weight.float().T


def sample_tokens(
    logits: Tensor,
    allowed: Tensor | None,
    uniforms: Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> SampledTokens:
    """Sample one token per row by inverse transform sampling, so that no row depends on another.

    logits: (B, V) float; allowed: (B, V) bool, at least one per row, None for all; uniforms: (B,) in
    [0, 1), see :func:`row_uniforms`. Temperature 0 takes the most likely token. top_k (0: all), then top_p
    restrict the candidates, for inference. The returned log-probabilities are of the unrestricted
    distribution (at temperature 1 for temperature 0), the one of :func:`completion_log_probs` for logits from
    :func:`head_logits`; a head in bfloat16 rounds them first. A legal logit that is NaN or +inf, or a row
    without a legal one above -inf, gives that row some token with a log-probability that is not finite, and
    no error: a look would cost a copy to the host. Raises ValueError for settings out of range.
    """
    if not temperature >= 0 or top_k < 0 or not 0 < top_p <= 1:
        raise ValueError(
            f"temperature {temperature}, top_k {top_k} or top_p {top_p} is out of range; use temperature >= "
            "0, top_k >= 0 and 0 < top_p <= 1"
        )
    scaled = logits.float() if allowed is None else logits.float().masked_fill(~allowed, -torch.inf)
    logp = (scaled / temperature if temperature > 0 else scaled).log_softmax(dim=1)
    if temperature == 0:
        tokens = logp.argmax(dim=1)
    else:
        weights = logp.exp()
        if 0 < top_k < weights.shape[1]:
            weights = weights.masked_fill(logp < logp.topk(top_k, dim=1).values[:, -1:], 0.0)
        if top_p < 1:
            descending, order = weights.sort(dim=1, descending=True, stable=True)
            mass_before = descending.cumsum(dim=1) - descending
            kept = descending.masked_fill(mass_before >= top_p * descending.sum(dim=1, keepdim=True), 0.0)
            weights = torch.zeros_like(weights).scatter(1, order, kept)
        tokens = _inverse_transform(weights, uniforms).clamp_max(weights.shape[1] - 1)
    return SampledTokens(tokens, logp.gather(1, tokens[:, None])[:, 0])


def _inverse_transform(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Token (B,) at which the cumulative weights (B, V) pass the fraction `uniforms` (B,) of their sum.

    The sums are float64, of blocks first and then within the chosen block: a running sum over a large
    vocabulary is slow on CPUs.
    """
    weights = F.pad(weights, (0, -weights.shape[1] % _BLOCK)).unflatten(1, (-1, _BLOCK))
    ends = weights.sum(dim=2, dtype=torch.float64).cumsum(dim=1)
    target = uniforms.to(ends)[:, None] * ends[:, -1:]
    block = _first_past(ends, target)
    before = F.pad(ends, (1, 0)).gather(1, block)
    inside = weights.gather(1, block[..., None].expand(-1, -1, _BLOCK))[:, 0]
    place = _first_past(inside.double().cumsum(dim=1) + before, target)
    return (block * _BLOCK + place)[:, 0]


def _first_past(cumulative: Tensor, target: Tensor) -> Tensor:
    """First place (B, 1) past the target, or the last of positive weight if rounding reaches the total.

    Some place in range if the sums are NaN.
    """
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous()).clamp_max(cumulative.shape[1] - 1)
    return torch.minimum(torch.searchsorted(cumulative, target, right=True), last)


def row_uniforms(seeds: Sequence[int], length: int, device: torch.device | str = "cpu") -> Tensor:
    """(B, length) float64 in [0, 1); row i depends on seeds[i] alone, and a shorter length is a prefix."""
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        rows.append(torch.rand(length, dtype=torch.float64, generator=generator))
    return (
        torch.stack(rows).to(device) if rows else torch.zeros(0, length, dtype=torch.float64, device=device)
    )


def _check(
    hidden: Tensor,
    head_weight: Tensor,
    completion_ids: Tensor,
    grammar: Grammar,
    temperature: float,
    hidden_at: Tensor | None,
) -> None:
    if hidden_at is not None:
        if hidden.ndim != 2 or hidden_at.shape != completion_ids.shape:
            raise ValueError(
                f"hidden states have shape {tuple(hidden.shape)}, their places {tuple(hidden_at.shape)} and "
                f"ids {tuple(completion_ids.shape)}; pass (N, H), (B, L) and (B, L)"
            )
    elif hidden.ndim != 3 or hidden.shape[:2] != completion_ids.shape:
        raise ValueError(
            f"hidden states have shape {tuple(hidden.shape)} and ids {tuple(completion_ids.shape)}; "
            "pass (B, L, H) and (B, L)"
        )
    if head_weight.shape != (grammar.vocabulary.size, hidden.shape[-1]):
        raise ValueError(
            f"the head has shape {tuple(head_weight.shape)}; this vocabulary and these hidden states need "
            f"{(grammar.vocabulary.size, hidden.shape[-1])}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")


class _SlicedHead(torch.autograd.Function):
    """Log-probabilities and entropies of N targets among K classes, in chunks.

    With p the softmax of the scaled logits s, log p = s - lse and the entropy E = -sum p log p:
    d log p_target / d s_k = [k = target] - p_k and dE / d s_k = -p_k (log p_k + E).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        table: Tensor | None,
        rows: Tensor,
        scale: float,
        entropy: bool,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        """hidden (N, H), weight (K, H), targets (N,), legal classes table[rows] (N, K) or all, scale 1/T."""
        normalisers = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        log_probs, entropies = torch.empty_like(normalisers), torch.zeros_like(normalisers)
        keep = any(ctx.needs_input_grad[:2]) and len(hidden) * len(weight) <= KEPT_ELEMENTS
        kept = []
        with torch.autocast(hidden.device.type, enabled=False):
            transposed = weight.float().T
            for start in range(0, len(hidden), chunk):
                part = slice(start, start + chunk)
                logits = _masked_logits(hidden[part], transposed, scale, table, rows[part])
                largest = logits.amax(dim=1, keepdim=True)
                logits -= largest
                target_logits = logits.gather(1, targets[part, None])[:, 0]
                masses = logits.exp()
                total = masses.sum(dim=1)
                log_probs[part] = target_logits - total.log()
                normalisers[part] = largest[:, 0] + total.log()
                if entropy:
                    mean = torch.bmm(masses[:, None], logits[:, :, None]).flatten() / total
                    entropies[part] = (total.log() - mean).clamp_min(0.0)
                if keep:
                    kept.append(logits.sub_(total.log()[:, None]))
        ctx.save_for_backward(hidden, weight, targets, table, rows, normalisers, entropies, *kept)
        ctx.scale, ctx.chunk, ctx.entropy = scale, chunk, entropy
        ctx.set_materialize_grads(False)
        return log_probs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_log_probs: Tensor | None, grad_entropies: Tensor | None) -> tuple[Any, ...]:
        hidden, weight, targets, table, rows, normalisers, entropies, *kept = ctx.saved_tensors
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        if not ctx.entropy:
            grad_entropies = None
        grad_hidden = torch.zeros_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        if grad_log_probs is None:
            grad_log_probs = torch.zeros_like(normalisers)
        with torch.autocast(hidden.device.type, enabled=False):
            full = weight.float()
            for start in range(0, len(hidden), ctx.chunk):
                part = slice(start, start + ctx.chunk)
                if kept:
                    logp = kept[start // ctx.chunk]
                else:
                    logp = _masked_logits(hidden[part], full.T, ctx.scale, table, rows[part])
                    logp -= normalisers[part, None]
                p = logp.exp()
                outer = grad_log_probs[part, None]
                if grad_entropies is None:
                    grad = p.mul_(-outer)
                else:
                    outer_entropy = grad_entropies[part, None]
                    shift = outer + outer_entropy * entropies[part, None]
                    grad = (logp * -outer_entropy).sub_(shift).mul_(p)
                grad.scatter_add_(1, targets[part, None], outer)
                if grad_hidden is not None:
                    grad_hidden[part] = (grad @ full).mul_(ctx.scale).to(hidden.dtype)
                if grad_weight is not None:
                    grad_weight.addmm_(grad.T, hidden[part].float(), alpha=ctx.scale)
        typed = None if grad_weight is None else grad_weight.to(weight.dtype)
        return grad_hidden, typed, None, None, None, None, None, None


def _masked_logits(
    hidden: Tensor, transposed: Tensor, scale: float, table: Tensor | None, rows: Tensor
) -> Tensor:
    """Scaled logits (n, K) float32, with illegal classes masked if there is a table."""
    logits = (hidden.float() * scale) @ transposed
    return logits if table is None else logits.masked_fill_(~table[rows], _MASKED_LOGIT)
