"""Inference copy of the skin VAE's decoder: merged and packed weights, in float32 or bfloat16."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from policy.skintokens.blocks import Attention, FeedForward, SelfBlock
from policy.skintokens.decoder import Decoder

# Rows (bones x tokens, or bones x points) of one pass. On a CPU the arrays of a pass should stay in the cache
# and be freed to the heap, not unmapped: each page of a fresh mapping costs a fault. On a GPU the largest
# array of the released size takes 1 GB in float32.
CPU_ROWS = 2048
# oneDNN compiles a kernel for each number of rows that it sees and keeps a thousand of them. Bones and
# vertices differ from rig to rig: the decoder grew by 260 MB in 140 steps. Rows are padded to a multiple.
ROW_STEP = 128
CUDA_ELEMENTS = 2**28


class FrozenDecoder:
    """The decoder with frozen weights: the numbers of `Decoder`, faster, and without gradients.

    It differs from `Decoder` in four ways. (1) Each layer norm's scale and shift are folded into the linear
    layer behind it. (2) The attention projections of a block are one product, its rows ordered so that heads
    are views of the result. (3) On a CPU, products run on weights that oneDNN has laid out in advance.
    (4) Bones and points are processed in passes of bounded size; they do not interact, so the size of a pass
    changes no result by more than rounding.

    Weights are copied: later changes of the decoder do not reach this object.

    Args:
        decoder: the decoder, with weights of any float dtype.
        post_quant: the projection of latents that precedes it.
        dtype: of blocks and attention, `torch.float32` or `torch.bfloat16`. The projections of latents and
            points, computed once per mesh and bone, and the last layer norm and projection are float32 in
            either case.
    """

    @torch.no_grad()
    def __init__(self, decoder: Decoder, post_quant: nn.Linear, dtype: torch.dtype) -> None:
        cross = decoder.cross
        attention = cross.attn2
        self.dtype = dtype
        self.width = decoder.proj_query.out_features
        self._heads = attention.heads
        self._latents = _Linear(*_parts(post_quant))
        self._points = _Linear(*_parts(decoder.proj_query))
        self._queries = _behind_norm(cross.norm2, attention.to_q.weight)
        self._blocks = [_SelfBlock(block, dtype) for block in decoder.self_blocks]
        merged = _merged(attention, (attention.to_k, attention.to_v))
        self._keys_values = _behind_norm(attention.norm_cross, merged, dtype=dtype)
        self._out = _Linear(*_parts(attention.to_out[0]), dtype)
        self._feed_forward = _FeedForward(cross.norm3, cross.ff, dtype)
        self._last = _behind_norm(decoder.norm_out, *_parts(decoder.proj_out))

    @torch.no_grad()
    def __call__(
        self, vectors: Tensor, condition: Tensor, features: Tensor, max_elements: int | None = None
    ) -> Tensor:
        """Skinning weights of bones of one mesh at its query points.

        Args:
            vectors: `(B, tokens, latent)` float32 code vectors, one bone per row.
            condition: `(1, C, latent)`, or `(B, C, latent)`, one per bone.
            features: `(Q, channels)` float32 features of the query points.
            max_elements: elements of a pass's largest array; chosen for the device by default.

        Returns:
            `(B, Q)` float32 in (0, 1), on the device of the weights.
        """
        rows = self._rows(features.device, max_elements)
        points = self._points(features.float())
        queries = self._queries(_normalise(points)).to(self.dtype)
        query = queries.view(1, len(points), self._heads, -1).transpose(1, 2)
        residual = points.to(self.dtype)
        tokens = self._latents(vectors.float()).to(self.dtype)
        context = self._latents(condition.float()).to(self.dtype)
        weights = torch.empty(len(tokens), len(points), dtype=torch.float32, device=points.device)
        length = tokens.shape[1] + context.shape[1]
        for bones in _chunks(len(tokens), rows // length):
            own = context if len(context) == len(tokens) > 1 else context.expand(len(tokens), -1, -1)
            key, value = self._states(torch.cat([tokens[bones], own[bones]], dim=1))
            for few in _chunks(len(key), rows // max(1, len(points))):
                for part in _chunks(len(points), rows):
                    weights[bones][few, part] = self._weights(
                        residual[part], query[:, :, part], key[few], value[few]
                    )
        return weights

    def _rows(self, device: torch.device, max_elements: int | None) -> int:
        if max_elements is None and device.type == "cpu":
            return CPU_ROWS
        return (max_elements or CUDA_ELEMENTS) // (4 * self.width)

    def _states(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, C) tokens of bones to keys and values (B, H, T, d) of the cross attention."""
        for block in self._blocks:
            hidden = block(hidden)
        key, value = _heads(self._keys_values(_normalise(hidden)), 2, self._heads)
        return key, value

    def _weights(self, residual: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, Q) weights from the points' residual (Q, C) and queries (1, H, Q, d), shared by all bones."""
        mixed = _attend(query.expand(len(key), -1, -1, -1), key, value)
        hidden = self._feed_forward(self._out(mixed).add_(residual))
        return self._last(_normalise(hidden.float())).squeeze(-1).sigmoid_()


class _Linear:
    """A linear layer with frozen weights; on a CPU in the layout that oneDNN multiplies fastest."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype = torch.float32) -> None:
        self.bias = bias.to(dtype, copy=True)
        self.weight: Tensor | None = None
        self._packed: Any = None
        if len(weight) > 1 and _packs(weight.device, dtype):
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype), CPU_ROWS)
        else:
            self.weight = weight.to(dtype, copy=True)

    def __call__(self, x: Tensor) -> Tensor:
        if self.weight is not None:
            return F.linear(x, self.weight, self.bias)
        return self._product(x, "none", "")

    def gelu(self, x: Tensor) -> Tensor:
        """The layer with a GELU behind it, without a second array."""
        if self.weight is not None:
            return torch.ops.aten.gelu_(F.linear(x, self.weight, self.bias))
        return self._product(x, "gelu", "none")

    def _product(self, x: Tensor, behind: str, algorithm: str) -> Tensor:
        """oneDNN's product with `behind` behind it, on a number of rows that it has seen before."""
        rows = x.reshape(-1, x.shape[-1])
        count = len(rows)
        if missing := -count % ROW_STEP:
            rows = F.pad(rows, (0, 0, 0, missing))
        product = torch.ops.mkldnn._linear_pointwise(rows, self._packed, self.bias, behind, [], algorithm)
        return product[:count].view(*x.shape[:-1], product.shape[-1])


class _FeedForward:
    """A pre-norm feed-forward layer with its residual connection, (..., C) to (..., C)."""

    def __init__(self, norm: nn.LayerNorm, layer: FeedForward, dtype: torch.dtype) -> None:
        self._up = _behind_norm(norm, *_parts(layer.net[0].proj), dtype)
        self._down = _Linear(*_parts(layer.net[2]), dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return self._down(self._up.gelu(_normalise(x))).add_(x)


class _SelfBlock:
    """`SelfBlock` on frozen weights, (B, T, C) to (B, T, C)."""

    def __init__(self, block: SelfBlock, dtype: torch.dtype) -> None:
        attention = block.attn1
        self._heads = attention.heads
        merged = _merged(attention, (attention.to_q, attention.to_k, attention.to_v))
        self._projections = _behind_norm(block.norm1, merged, dtype=dtype)
        self._out = _Linear(*_parts(attention.to_out[0]), dtype)
        self._feed_forward = _FeedForward(block.norm3, block.ff, dtype)

    def __call__(self, x: Tensor) -> Tensor:
        query, key, value = _heads(self._projections(_normalise(x)), 3, self._heads)
        return self._feed_forward(self._out(_attend(query, key, value)).add_(x))


def _packs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN's packed product exists here for this device and dtype."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _parts(layer: object) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear layer, which containers return as a bare module."""
    assert isinstance(layer, nn.Linear)
    return layer.weight, layer.bias


def _normalise(x: Tensor) -> Tensor:
    """Layer norm without scale and shift."""
    return F.layer_norm(x, x.shape[-1:])


def _behind_norm(
    norm: nn.LayerNorm, weight: Tensor, bias: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> _Linear:
    """The linear layer that takes what `_normalise` returns: W (s n + t) + b = (W s) n + (W t + b)."""
    shift = F.linear(norm.bias.float(), weight.float(), None if bias is None else bias.float())
    return _Linear(weight.float() * norm.weight.float(), shift, dtype)


def _merged(attention: Attention, layers: Sequence[nn.Linear]) -> Tensor:
    """Weights of several projections as one (parts C, C); its rows are [part, head, d].

    The module splits the concatenated rows by head first (`Attention._split`).
    """
    weight = torch.cat([layer.weight for layer in layers])
    split = weight.view(attention.heads, len(layers), -1, weight.shape[1])
    return split.transpose(0, 1).reshape(weight.shape)


def _heads(projected: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """(B, T, parts C) to `parts` views (B, H, T, d)."""
    batch, length, _ = projected.shape
    return projected.view(batch, length, parts, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """(B, H, Q, d), (B, H, T, d), (B, H, T, d) to (B, Q, C)."""
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(-2)


def _chunks(total: int, size: int) -> Iterator[slice]:
    size = max(1, size)
    for start in range(0, total, size):
        yield slice(start, min(total, start + size))
