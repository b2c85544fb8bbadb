"""Attention over packed rows that share prefixes, each key and value computed once.

A packed sequence holds P prefixes, then the rows behind them, without padding; rows of one prefix are
neighbours. A token of a row sees its whole prefix and the tokens of its row up to itself. That is computed in
two parts: every sequence's (prefix's or row's) own causal attention, and the rows' attention to their prefix,
without a mask and without copying its keys to each row. The parts are merged by their log-sum-exps. Backward,
each part's kernel gets the *merged* output O and log-sum-exp: its probabilities P = exp(S - lse) are then
those of the whole softmax, and dS = P * (dP - rowsum(dO * O)) is the exact gradient of its scores.

Kernels: PyTorch's flash attention. On CUDA (bfloat16 and float16) it takes sequences of all lengths in one
call a part; on a CPU, one call for each run of equal lengths. Both take fewer key heads than query heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Segments:
    """Sequences that follow each other in a packed tensor.

    lengths: tokens of each of the S sequences, on the host; bounds: (S + 1,) int32 on the device, where each
    begins, and the total.
    """

    lengths: tuple[int, ...]
    bounds: Tensor

    @staticmethod
    def of(lengths: Sequence[int], device: torch.device) -> Segments:
        """Segments of the given lengths, with their bounds on `device`."""
        bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(device, non_blocking=True)
        return Segments(tuple(lengths), bounds)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence, 0 if there is none."""
        return max(self.lengths, default=0)


@dataclass(frozen=True)
class PackedLayout:
    """Where prefixes and rows lie in a packed sequence of N tokens.

    prefixes: the P prefixes, the first `shared` tokens; sequences: the prefixes, then all rows; queries: the
    N - `shared` tokens behind the prefixes, by prefix: P sequences of all rows of a prefix, some maybe empty.
    """

    prefixes: Segments
    sequences: Segments
    queries: Segments

    @staticmethod
    def of(prefixes: Sequence[int], rows: Sequence[Sequence[int]], device: torch.device) -> PackedLayout:
        """Layout of prefixes and, for each, of its rows (in tokens); rows without tokens take no place."""
        own = [length for group in rows for length in group if length]
        return PackedLayout(
            Segments.of(prefixes, device),
            Segments.of([*prefixes, *own], device),
            Segments.of([sum(group) for group in rows], device),
        )

    @property
    def shared(self) -> int:
        """Tokens of all prefixes."""
        return sum(self.prefixes.lengths)


def packed_attention(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout) -> Tensor:
    """Causal attention of each prefix and of each row behind its prefix.

    query: (N, heads, D); key, value: (N, key heads, D), rotated, in one dtype; key heads divide heads. Scores
    are scaled by 1 / sqrt(D). Returns (N, heads, D). Differentiable once.
    """
    output: Tensor = _PackedAttention.apply(query, key, value, layout)
    return output


def unsupported(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why :func:`packed_attention` cannot run with these tensors; None if it can."""
    if device.type == "cpu":
        return None
    if device.type != "cuda":
        return f"its attention has no kernel for {device.type} devices"
    if dtype not in (torch.bfloat16, torch.float16):
        return "its attention needs bfloat16 or float16 on a GPU; set train.bf16=true"
    if head_dim % 8 or head_dim > 256:
        return f"its attention needs heads of a multiple of 8 channels up to 256 on a GPU, not {head_dim}"
    if not torch.backends.cuda.is_flash_attention_available() or (
        torch.cuda.get_device_capability(device) < (8, 0)
    ):
        return "its attention needs a GPU of compute capability 8.0 and a PyTorch built with flash attention"
    return None


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout) -> Tensor:
        shared = layout.shared
        output, lse = _attend(query, key, value, layout.sequences, layout.sequences, causal=True)
        if shared < len(query):
            other, other_lse = _attend(
                _behind(query, shared),
                key.narrow(0, 0, shared),
                value.narrow(0, 0, shared),
                layout.queries,
                layout.prefixes,
                causal=False,
            )
            _merge(_behind(output, shared), _behind(lse, shared), other, other_lse)
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.layout = layout
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        layout: PackedLayout = ctx.layout
        shared = layout.shared
        grad = grad.contiguous()
        grads = _gradients(
            grad, query, key, value, output, lse, layout.sequences, layout.sequences, causal=True
        )
        if shared < len(query):
            of_query, of_key, of_value = _gradients(
                _behind(grad, shared),
                _behind(query, shared),
                key.narrow(0, 0, shared),
                value.narrow(0, 0, shared),
                _behind(output, shared),
                _behind(lse, shared),
                layout.queries,
                layout.prefixes,
                causal=False,
            )
            _behind(grads[0], shared).add_(of_query)
            grads[1].narrow(0, 0, shared).add_(of_key)
            grads[2].narrow(0, 0, shared).add_(of_value)
        return *grads, None


def _behind(packed: Tensor, shared: int) -> Tensor:
    """The rows' part of packed (N, ...), behind the prefixes."""
    return packed.narrow(0, shared, len(packed) - shared)


def _merge(output: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> None:
    """Merge attention to other keys into output (n, heads, D) and lse (n, heads), in place."""
    total = torch.logaddexp(lse, other_lse)
    share = (other_lse - total).exp_().unsqueeze(-1)
    # output * (1 - share) + other * share
    output.copy_(torch.lerp(output.float(), other.float(), share))
    lse.copy_(total)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, queries: Segments, keys: Segments, *, causal: bool
) -> tuple[Tensor, Tensor]:
    """Attention within pairs of sequences: output (n, heads, D) and log-sum-exp (n, heads) float32."""
    if query.is_cuda:
        output, lse, *_ = torch.ops.aten._flash_attention_forward(
            query,
            key,
            value,
            queries.bounds,
            keys.bounds,
            queries.longest,
            keys.longest,
            0.0,
            causal,
            False,
        )
        return output, lse.T
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    lse = torch.empty(query.shape[:2], dtype=torch.float32, device=query.device)
    for queried, keyed in _runs(queries, keys):
        part, part_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            queried.of(query), keyed.of(key), keyed.of(value), 0.0, causal
        )
        queried.of(output).copy_(part)
        queried.of(lse).copy_(part_lse)
    return output, lse


def _gradients(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
    queries: Segments,
    keys: Segments,
    *,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value through this part's scores, given the merged output and lse."""
    if query.is_cuda:
        # The last two: the state of the dropout, which is off, and a tensor that no kernel reads.
        grads: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
            grad,
            query,
            key,
            value,
            output,
            torch.clone(lse.T, memory_format=torch.contiguous_format),
            queries.bounds,
            keys.bounds,
            queries.longest,
            keys.longest,
            0.0,
            causal,
            torch.zeros(2, dtype=torch.uint64, device=query.device),
            torch.empty(0, device=query.device),
        )
        return grads
    results = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
    for queried, keyed in _runs(queries, keys):
        parts = _gradients_by_products(
            queried.of(grad),
            queried.of(query),
            keyed.of(key),
            keyed.of(value),
            queried.of(output),
            queried.of(lse),
            causal,
        )
        for whole, part, place in zip(results, parts, (queried, keyed, keyed), strict=True):
            place.of(whole).copy_(part)
    return results


def _gradients_by_products(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of (count, heads, n, D) queries and (count, key heads, m, D) keys and values, on a CPU.

    With whole matrices of probabilities, which fit into the cache at the lengths of rigs: matrix products are
    many times faster there than PyTorch's flash kernel, whose backward pass works on 32 keys at a time. The
    query heads of a key head are further rows of one product.
    """
    count, key_heads, keys, width = key.shape
    queries = query.shape[2]

    def rows(tensor: Tensor) -> Tensor:
        return tensor.reshape(count * key_heads, -1, tensor.shape[-1])

    of_query, of_grad = rows(query), rows(grad)
    keyed, valued = rows(key), rows(value)
    scale = width**-0.5
    shape = (count * key_heads, -1, queries, keys)
    scores = torch.bmm(of_query, keyed.mT).float().view(shape).mul_(scale)
    log_sum_exp = lse.reshape(count * key_heads, -1, queries, 1)
    probabilities = scores.sub_(log_sum_exp).exp_()
    if causal:
        probabilities.tril_()
    delta = (grad.float() * output.float()).sum(-1).view(count * key_heads, -1, queries, 1)
    of_scores = torch.bmm(of_grad, valued.mT).float().view(shape).sub_(delta).mul_(probabilities).mul_(scale)
    of_scores = of_scores.view(count * key_heads, -1, keys).to(query.dtype)
    chances = probabilities.view(count * key_heads, -1, keys).to(query.dtype)
    return (
        torch.bmm(of_scores, keyed).view(query.shape),
        torch.bmm(of_scores.mT, of_query).view(key.shape),
        torch.bmm(chances.mT, of_grad).view(value.shape),
    )


@dataclass(frozen=True)
class _Run:
    """Neighbouring sequences of equal lengths: `count` of `length` tokens from `start`."""

    start: int
    count: int
    length: int

    def of(self, packed: Tensor) -> Tensor:
        """View (count, heads, length, ...) of packed (n, heads, ...)."""
        part = packed[self.start : self.start + self.count * self.length]
        return part.view(self.count, self.length, *part.shape[1:]).transpose(1, 2)


def _runs(queries: Segments, keys: Segments) -> list[tuple[_Run, _Run]]:
    """Runs of pairs of sequences with equal lengths; pairs without queries are skipped."""
    runs, query_start, key_start = [], 0, 0
    for (queried, keyed), pairs in groupby(zip(queries.lengths, keys.lengths, strict=True)):
        count = len(list(pairs))
        if queried:
            runs.append((_Run(query_start, count, queried), _Run(key_start, count, keyed)))
        query_start += count * queried
        key_start += count * keyed
    return runs
