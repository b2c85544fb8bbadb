"""Transformer blocks of the skin VAE: self and cross attention, feed-forward, perceiver."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from policy.layers.attention import attend
from policy.skintokens.configuration import PERCEIVER_HEADS


class _GeluProjection(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x))


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them, 4 C hidden channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(_GeluProjection(width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Attention(nn.Module):
    """Multi-head attention with interleaved heads.

    The concatenated projections [q|k|v] (cross attention: [k|v]) are split by head first, then into q, k
    and v. Source: specification, section 7.2.
    """

    def __init__(self, width: int, heads: int, cross: bool) -> None:
        super().__init__()
        self.heads = heads
        if cross:
            self.norm_cross = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def _split(self, fused: Tensor, parts: int) -> tuple[Tensor, ...]:
        batch, length, _ = fused.shape
        return fused.view(batch, length, self.heads, -1).transpose(1, 2).chunk(parts, dim=-1)

    def queries(self, x: Tensor) -> Tensor:
        """Queries of cross attention: (B, Q, C) to (B, H, Q, d)."""
        return self._split(self.to_q(x), 1)[0]

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of cross attention: (B, T, C) to (B, H, T, d) each."""
        context = self.norm_cross(context)
        key, value = self._split(torch.cat([self.to_k(context), self.to_v(context)], dim=-1), 2)
        return key, value

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of (B, H, Q, d) queries to (B, H, T, d) keys and values, projected to (B, Q, C)."""
        mixed = attend(query, key, value)
        return self.to_out[0](mixed.transpose(1, 2).flatten(-2))

    def attend_self(self, x: Tensor) -> Tensor:
        """Self attention: (B, T, C) to (B, T, C)."""
        fused = torch.cat([self.to_q(x), self.to_k(x), self.to_v(x)], dim=-1)
        query, key, value = self._split(fused, 3)
        return self.attend(query, key, value)


class SelfBlock(nn.Module):
    """Pre-norm self attention and feed-forward, (B, T, C) to (B, T, C)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, heads, cross=False)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn1.attend_self(self.norm1(x))
        return x + self.ff(self.norm3(x))


class CrossBlock(nn.Module):
    """Pre-norm cross attention and feed-forward, (B, Q, C) and context (B, T, C) to (B, Q, C)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, heads, cross=True)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def queries(self, x: Tensor) -> Tensor:
        """Queries (B, H, Q, d) of `x`, for `finish`."""
        return self.attn2.queries(self.norm2(x))

    def finish(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The block from its projections on; `x` may have a first axis of 1, shared by the batch."""
        batch = max(len(query), len(key))
        x = x + self.attn2.attend(
            query.expand(batch, -1, -1, -1), key.expand(batch, -1, -1, -1), value.expand(batch, -1, -1, -1)
        )
        return x + self.ff(self.norm3(x))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.finish(x, self.queries(x), *self.attn2.keys_values(context))


class Perceiver(nn.Module):
    """Resample a sequence of latents to `tokens` latents by attention from learned queries.

    Source: specification, section 7.5.
    """

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.q_vec = nn.Parameter(torch.empty(tokens // PERCEIVER_HEADS, PERCEIVER_HEADS, width))
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, C) to (B, tokens, C)."""
        batch, length, width = x.shape
        heads = (PERCEIVER_HEADS, width // PERCEIVER_HEADS)
        query = self.q_vec.reshape(1, -1, *heads).expand(batch, -1, -1, -1).transpose(1, 2)
        key = self.k_proj(x).view(batch, length, *heads).transpose(1, 2)
        value = self.v_proj(x).view(batch, length, *heads).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(query.to(key.dtype), key, value)
        return self.out_proj(mixed.transpose(1, 2).flatten(-2))
