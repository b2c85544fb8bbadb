"""A decoder layer on stacked weights, and the pass over each mesh's prefix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from policy.tokenrig.layer_math import norm_rotate, rms_norm, swiglu
from policy.tokens.vocabulary import Vocabulary
from rl.engine.weights import SamplingWeights, add_linear, linear
from rl.prompts import SkeletonTokens, training_rows


def before_attention(
    x: Tensor,
    norm: Tensor,
    query_key_value: Tensor,
    query_key_norm: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """First half of a layer: rotated queries (n, H, d) and keys (n, KV, d), and values (n, KV, d).

    x: (n, hidden); cos, sin: (n, d / 2) at each row's position; other weights as in `LayerWeights`.
    """
    both, size = query_key_norm.shape
    projected = linear(rms_norm(x, norm, eps), query_key_value).view(len(x), -1, size)
    turned = norm_rotate(projected[:, :both], query_key_norm, eps, cos, sin)
    return turned[:, :heads], turned[:, heads:], projected[:, both:]


def after_attention(
    x: Tensor, mixed: Tensor, output: Tensor, norm: Tensor, gate_up: Tensor, down: Tensor, eps: float
) -> Tensor:
    """Second half of a layer: output projection and MLP. x, result: (n, hidden); mixed: (n, H d)."""
    x = add_linear(x, mixed, output)
    gate, up = linear(rms_norm(x, norm, eps), gate_up).chunk(2, dim=1)
    return add_linear(x, swiglu(gate, up), down)


@dataclass(frozen=True, eq=False)
class Prefixes:
    """M distinct prefixes `[conditioning, bos, class, given skeleton]`, padded on the right to P positions.

    keys, values: (M, KV, P, d) of each layer. lengths: (M,) int64, valid positions. hidden: (M, hidden), the
    final hidden state at the last valid position, which predicts the first token.
    """

    keys: list[Tensor]
    values: list[Tensor]
    lengths: Tensor
    hidden: Tensor


def run_prefixes(
    weights: SamplingWeights,
    mesh_embeds: Tensor,
    class_ids: Tensor,
    skeletons: Sequence[SkeletonTokens],
    vocabulary: Vocabulary,
) -> Prefixes:
    """Run M prefixes once: mesh_embeds (M, T, hidden), class_ids (M,) int64, M skeletons, empty if not given.

    Causal attention hides the padding behind a prefix from the prefix itself.
    """
    device, meshes = weights.device, len(mesh_embeds)
    nothing = torch.empty(meshes, 0, dtype=torch.int64, device=device)
    ids, begins = training_rows(class_ids.to(device), skeletons, nothing, vocabulary)
    x = torch.cat([mesh_embeds.to(device, weights.dtype), F.embedding(ids, weights.embedding)], dim=1)
    size = x.shape[1]
    lengths = torch.full((meshes,), size, device=device)
    if begins is not None:
        lengths = begins + mesh_embeds.shape[1]
    cos, sin = (table[:size].repeat(meshes, 1) for table in (weights.cos, weights.sin))
    x = x.flatten(0, 1)
    keys, values = [], []
    for own in weights.layers:
        parts = before_attention(
            x, own.input_norm, own.query_key_value, own.query_key_norm, cos, sin, weights.heads, weights.eps
        )
        query, key, value = (part.unflatten(0, (meshes, size)).transpose(1, 2) for part in parts)
        keys.append(key.contiguous())
        values.append(value.contiguous())
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        mixed = mixed.transpose(1, 2).reshape(len(x), -1)
        x = after_attention(x, mixed, own.output, own.mlp_norm, own.gate_up, own.down, weights.eps)
    last = torch.arange(meshes, device=device) * size + lengths - 1
    return Prefixes(keys, values, lengths, rms_norm(x[last], weights.norm, weights.eps))
