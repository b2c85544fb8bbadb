"""The mesh encoder: surface points to conditioning tokens of the language model (section 4)."""

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

    Attributes:
        token_num: conditioning tokens per mesh; of several values the largest is used at inference and a
            random one at training.
        use_full_input: tokens read all points, not only the drawn candidates.
        init_scale: standard deviation of initial weights times sqrt(width).
    """

    width: int = 512
    heads: int = 8
    num_encoder_layers: int = 8
    token_num: int | tuple[int, ...] = 512
    num_freqs: int = 8
    include_pi: bool = False
    point_feats: int = 3
    qkv_bias: bool = False
    use_ln_post: bool = True
    use_full_input: bool = True
    init_scale: float = 0.25

    def __post_init__(self) -> None:
        if isinstance(self.token_num, list):
            object.__setattr__(self, "token_num", tuple(self.token_num))
        if self.width % self.heads:
            raise ValueError(f"mesh encoder width {self.width} is no multiple of heads {self.heads}")
        if self.point_feats != 3:
            raise ValueError(f"point_feats must be 3 (the normal), got {self.point_feats}")

    @property
    def tokens(self) -> int:
        """Conditioning tokens per mesh at inference."""
        return self.token_num if isinstance(self.token_num, int) else max(self.token_num)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
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
    """Cut (B, L, parts C) head by head into `parts` tensors (B, H, L, d): interleaved, not [q | k | v]."""
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
    """The encoder proper under the released names."""

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
    """Surface points and normals to a sequence of tokens.

    The embedding is computed in fp32 whatever the type of the weights; distances of the query selection too.
    """

    def __init__(self, config: MeshEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _Perceiver(config)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Section 4's initialisation of a stand-alone encoder."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init_linear(module, self.initial_deviation(module))

    def initial_deviation(self, layer: nn.Linear, scale: float | None = None) -> float | None:
        """Standard deviation of a layer's initial weights; None is PyTorch's default.

        N(0, init_scale / sqrt(width)) except for `input_proj`; `scale` instead of the configured one counts
        for that layer as well (section 4, the model's own `init_scale`).
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
            seed: seed of the draw of query points (the released model always uses 0).
            rng: training: random draw and start of the query selection, from this generator.

        Returns:
            `(M, T, W)` in the dtype of the weights; token order is the order of the query selection.
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


def init_linear(layer: nn.Linear, deviation: float | None) -> None:
    """Draw N(0, deviation) weights and set biases to 0, or PyTorch's default for None."""
    if deviation is None:
        layer.reset_parameters()
        return
    nn.init.normal_(layer.weight, std=deviation)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
