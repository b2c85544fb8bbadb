"""Mesh encoder: surface points and normals to the conditioning embeddings of the language model."""

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from policy.layers.attention import attend
from policy.layers.embedding import embed_points, embedded_size
from policy.layers.queries import candidates_and_queries, gather_points


@dataclass(frozen=True)
class MeshEncoderConfig:
    """Sizes and switches of the mesh encoder; the defaults are the released model's.

    Also the `mesh_encoder` section of stage-2 recipes. Raises ValueError for sizes that do not fit each
    other. Source: specification, section 4.
    """

    width: int = 512
    """Channels of the encoder's layers; a multiple of `heads`. Source: specification, section 4."""

    heads: int = 8
    """Heads of every attention layer; a divisor of `width`. Source: specification, section 4."""

    num_encoder_layers: int = 8
    """Self-attention layers after the cross-attention layer; at least 0. Source: specification, section 4."""

    token_num: int | tuple[int, ...] = 512
    """Conditioning tokens per mesh, at least 1; given several values, inference uses the largest and training
    draws one per batch. Source: specification, section 4."""

    num_freqs: int = 8
    """Frequencies per axis of the positional embedding; at least 1. Source: specification, section 4."""

    include_pi: bool = False
    """Whether the embedding uses frequencies pi 2^i instead of 2^i. Source: specification, section 4."""

    point_feats: int = 3
    """Channels per point besides its position: the normal; always 3. Source: specification, section 4."""

    qkv_bias: bool = False
    """Whether query, key and value projections have a bias. Source: specification, section 4."""

    use_ln_post: bool = True
    """Whether a layer norm follows the last layer. Source: specification, section 4."""

    use_full_input: bool = True
    """Whether tokens attend to all points instead of only the drawn candidates. Source: specification,
    section 4."""

    init_scale: float = 0.25
    """Standard deviation of initial weights times sqrt(`width`), the input projection excepted; above 0.
    Source: specification, section 4."""

    def __post_init__(self) -> None:
        if isinstance(self.token_num, list):
            object.__setattr__(self, "token_num", tuple(self.token_num))
        if self.width % self.heads:
            raise ValueError(f"mesh encoder width {self.width} is not a multiple of heads {self.heads}")
        if self.point_feats != 3:
            raise ValueError(f"point_feats must be 3 (the normal), got {self.point_feats}")

    @property
    def tokens(self) -> int:
        """Conditioning tokens per mesh at inference."""
        return self.token_num if isinstance(self.token_num, int) else max(self.token_num)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        values = asdict(self)
        if isinstance(self.token_num, tuple):
            values["token_num"] = list(self.token_num)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "MeshEncoderConfig":
        """Inverse of `to_dict`; raises ValueError naming unknown keys."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"unknown mesh encoder setting {', '.join(unknown)}")
        return cls(**values)


def _heads(fused: Tensor, heads: int, parts: int) -> tuple[Tensor, ...]:
    """Split (B, L, parts C) by head first, then into `parts` tensors (B, H, L, d): not [q | k | v]."""
    batch, length, _ = fused.shape
    return fused.view(batch, length, heads, -1).transpose(1, 2).chunk(parts, dim=-1)


class _SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.c_qkv = nn.Linear(width, 3 * width, bias=bias)
        self.c_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = _heads(self.c_qkv(x), self.heads, 3)
        mixed = attend(query, key, value)
        return self.c_proj(mixed.transpose(1, 2).flatten(-2))


class _CrossAttention(nn.Module):
    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.c_q = nn.Linear(width, width, bias=bias)
        self.c_kv = nn.Linear(width, 2 * width, bias=bias)
        self.c_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        query = _heads(self.c_q(x), self.heads, 1)[0]
        key, value = _heads(self.c_kv(context), self.heads, 2)
        mixed = attend(query, key, value)
        return self.c_proj(mixed.transpose(1, 2).flatten(-2))


class _MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x)))


class _CrossBlock(nn.Module):
    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.attn = _CrossAttention(width, heads, bias)
        self.ln_1 = nn.LayerNorm(width)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = _MLP(width)
        self.ln_3 = nn.LayerNorm(width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x), self.ln_2(context))
        return x + self.mlp(self.ln_3(x))


class _SelfBlock(nn.Module):
    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.attn = _SelfAttention(width, heads, bias)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = _MLP(width)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class _SelfStack(nn.Module):
    def __init__(self, width: int, heads: int, bias: bool, layers: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(_SelfBlock(width, heads, bias) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.resblocks:
            x = block(x)
        return x


class _Perceiver(nn.Module):
    """Cross attention from queries to points, then self-attention; parameters have the released names."""

    def __init__(self, config: MeshEncoderConfig) -> None:
        super().__init__()
        width, heads, bias = config.width, config.heads, config.qkv_bias
        self.input_proj = nn.Linear(embedded_size(config.num_freqs) + config.point_feats, width)
        self.cross_attn = _CrossBlock(width, heads, bias)
        self.self_attn = _SelfStack(width, heads, bias, config.num_encoder_layers)
        self.ln_post = nn.LayerNorm(width) if config.use_ln_post else None

    def forward(self, context: Tensor, queries: Tensor) -> Tensor:
        """Features (B, N, 54) and (B, T, 54) to (B, T, W)."""
        dtype = self.input_proj.weight.dtype
        hidden = self.cross_attn(self.input_proj(queries.to(dtype)), self.input_proj(context.to(dtype)))
        hidden = self.self_attn(hidden)
        return hidden if self.ln_post is None else self.ln_post(hidden)


class MeshEncoder(nn.Module):
    """Encode surface points and normals as a sequence of conditioning tokens.

    Positional embedding and query selection are computed in float32, whatever the dtype of the weights.
    Source: specification, section 4.
    """

    def __init__(self, config: MeshEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _Perceiver(config)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initialise a stand-alone encoder as in the specification, section 4."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init_linear(module, self.initial_std(module))

    def initial_std(self, layer: nn.Linear, scale: float | None = None) -> float | None:
        """Standard deviation of a layer's initial weights; None for PyTorch's default.

        `init_scale / sqrt(width)`, with PyTorch's default for `input_proj`. A given `scale` (TokenRigConfig's
        `init_scale`) replaces the configured one and applies to `input_proj` too. Source: specification,
        section 4.
        """
        if layer is self.encoder.input_proj and scale is None:
            return None
        return (self.config.init_scale if scale is None else scale) / self.config.width**0.5

    def forward(
        self,
        points: Tensor,
        normals: Tensor,
        seed: int | None = 0,
        rng: np.random.Generator | None = None,
    ) -> Tensor:
        """Encode meshes.

        Args:
            points, normals: `(M, N, 3)`, mesh frame, unit normals.
            seed: seed of the query point draw; the released model always uses 0.
            rng: generator of the training draw and of the number of tokens, instead of `seed`.

        Returns:
            `(M, T, W)` in the dtype of the weights; tokens are in the order of query selection.

        Raises:
            ValueError: points and normals have the wrong shapes.
        """
        if points.ndim != 3 or points.shape[-1] != 3 or points.shape != normals.shape:
            raise ValueError(
                f"points and normals must be (M, N, 3), got {tuple(points.shape)}, {tuple(normals.shape)}"
            )
        config = self.config
        tokens = config.tokens
        if rng is not None and isinstance(config.token_num, tuple):
            tokens = int(rng.choice(config.token_num))
        candidates, queries = candidates_and_queries(points, tokens, seed, rng)
        embedded = embed_points(points, config.num_freqs, config.include_pi)
        features = torch.cat([embedded, normals.float()], dim=-1)
        context = features if config.use_full_input else features[:, candidates]
        return self.encoder(context, gather_points(features, queries))


def init_linear(layer: nn.Linear, std: float | None) -> None:
    """Draw weights from N(0, std²) and zero the bias; PyTorch's default initialisation for None."""
    if std is None:
        layer.reset_parameters()
        return
    nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
