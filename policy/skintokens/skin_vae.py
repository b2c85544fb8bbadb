"""The SkinTokens VAE: skin weights of one bone <-> a few FSQ codes, conditioned on the mesh (section 7).

Modules carry the released parameter names: the state dict of `SkinVAE` is that of a released VAE checkpoint
(`model.encoder...`), and that of a released TokenRig checkpoint behind the prefix `vae.`.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from policy.layers.attention import attend
from policy.layers.embedding import embed_points, embedded_size
from policy.layers.queries import gather_points, select_queries
from policy.skintokens.fsq import FSQ

PERCEIVER_HEADS = 8


@dataclass(frozen=True)
class SkinVAEConfig:
    """Every size and switch of the VAE; the defaults are the released model's.

    Attributes:
        tokens_per_skin: codes per bone that `encode_skin` returns unless told otherwise.
        cond_tokens: number of condition latents of a mesh.
        compress_tokens, sample_tokens: codes per bone and learned queries; perceivers if they differ.
        in_channels, cond_channels: raw channels beyond the embedded position: normal + weight, and normal.
            `in_channels` counts both (4), `cond_channels` only the normal (3).
        latent_channels: size of code vectors and condition latents.
        rounded_constants: use the embedding's constants rounded to bf16, as the released weights were run
            (section 14).
    """

    tokens_per_skin: int = 4
    cond_tokens: int = 384
    compress_tokens: int = 32
    sample_tokens: int = 32
    in_channels: int = 4
    cond_channels: int = 3
    latent_channels: int = 512
    num_attention_heads: int = 12
    width_encoder: int = 768
    width_decoder: int = 768
    num_layers_encoder: int = 2
    num_layers_decoder: int = 10
    embed_frequency: int = 8
    embed_include_pi: bool = True
    use_pmpe: bool = True
    is_learned_queries: bool = True
    fsq_levels: tuple[int, ...] = (8, 8, 8, 8, 8)
    fsq_dim: int = 512
    rounded_constants: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "fsq_levels", tuple(self.fsq_levels))
        for width in (self.width_encoder, self.width_decoder):
            if width % self.num_attention_heads:
                raise ValueError(
                    f"width {width} is no multiple of num_attention_heads {self.num_attention_heads}"
                )
        if self.fsq_dim != self.latent_channels:
            raise ValueError(f"fsq_dim {self.fsq_dim} must equal latent_channels {self.latent_channels}")
        if (self.in_channels, self.cond_channels) != (4, 3):
            raise ValueError("in_channels must be 4 (normal, weight) and cond_channels 3 (normal)")
        if self.has_perceivers:
            for name in ("compress_tokens", "sample_tokens"):
                if getattr(self, name) % PERCEIVER_HEADS:
                    raise ValueError(f"{name} must be a multiple of {PERCEIVER_HEADS} for the perceivers")
            if self.tokens_per_skin != self.compress_tokens:
                raise ValueError("with perceivers tokens_per_skin must equal compress_tokens")
        elif self.is_learned_queries and self.tokens_per_skin > self.sample_tokens:
            raise ValueError(
                f"tokens_per_skin {self.tokens_per_skin} exceeds the {self.sample_tokens} learned queries"
            )

    @property
    def has_perceivers(self) -> bool:
        """Whether codes and sampled latents differ in number."""
        return self.compress_tokens != self.sample_tokens

    @property
    def codebook_size(self) -> int:
        """Number of different SkinTokens."""
        return int(np.prod(self.fsq_levels))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "fsq_levels": list(self.fsq_levels)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "SkinVAEConfig":
        """Inverse of `to_dict`; raises ValueError naming unknown keys."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"unknown skin VAE setting {', '.join(unknown)}")
        return cls(**values)


class _GeluProjection(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x))


class _FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(_GeluProjection(width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class _Attention(nn.Module):
    """Attention whose heads interleave: a fused [q|k|v] (or [k|v]) vector is cut head by head (7.2)."""

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
        """(B, Q, C) -> (B, H, Q, d) of cross attention."""
        return self._split(self.to_q(x), 1)[0]

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, C) -> keys and values, (B, H, T, d) each, of cross attention."""
        context = self.norm_cross(context)
        key, value = self._split(torch.cat([self.to_k(context), self.to_v(context)], dim=-1), 2)
        return key, value

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Heads to (B, Q, C)."""
        mixed = attend(query, key, value)
        return self.to_out[0](mixed.transpose(1, 2).flatten(-2))

    def attend_self(self, x: Tensor) -> Tensor:
        """Self attention of (B, T, C)."""
        fused = torch.cat([self.to_q(x), self.to_k(x), self.to_v(x)], dim=-1)
        query, key, value = self._split(fused, 3)
        return self.attend(query, key, value)


class _SelfBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = _Attention(width, heads, cross=False)
        self.norm3 = nn.LayerNorm(width)
        self.ff = _FeedForward(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn1.attend_self(self.norm1(x))
        return x + self.ff(self.norm3(x))


class _CrossBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = _Attention(width, heads, cross=True)
        self.norm3 = nn.LayerNorm(width)
        self.ff = _FeedForward(width)

    def queries(self, x: Tensor) -> Tensor:
        return self.attn2.queries(self.norm2(x))

    def finish(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The block after its projections: x may be shared by the batch (first axis 1)."""
        batch = max(len(query), len(key))
        x = x + self.attn2.attend(
            query.expand(batch, -1, -1, -1), key.expand(batch, -1, -1, -1), value.expand(batch, -1, -1, -1)
        )
        return x + self.ff(self.norm3(x))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.finish(x, self.queries(x), *self.attn2.keys_values(context))


class _Encoder(nn.Module):
    """Query tokens read all points, then talk to each other (section 7.3)."""

    def __init__(self, channels: int, width: int, heads: int, layers: int, learned_queries: int) -> None:
        super().__init__()
        self.learned_queries = nn.Parameter(torch.empty(learned_queries, width)) if learned_queries else None
        self.proj_in = nn.Linear(channels, width)
        self.blocks = nn.ModuleList(
            [_CrossBlock(width, heads), *(_SelfBlock(width, heads) for _ in range(layers))]
        )
        self.norm_out = nn.LayerNorm(width)

    def forward(self, features: Tensor, query_index: Tensor | None, tokens: int) -> Tensor:
        context = self.proj_in(features.to(self.proj_in.weight.dtype))
        if query_index is not None:
            hidden = gather_points(context, query_index)
        else:
            assert self.learned_queries is not None
            hidden = self.learned_queries[:tokens].to(context.dtype).expand(len(features), -1, -1)
        hidden = self.blocks[0](hidden, context)
        for block in self.blocks[1:]:
            hidden = block(hidden)
        return self.norm_out(hidden)


class _Decoder(nn.Module):
    def __init__(self, channels: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [*(_SelfBlock(width, heads) for _ in range(layers)), _CrossBlock(width, heads)]
        )
        self.proj_query = nn.Linear(channels, width)
        self.norm_out = nn.LayerNorm(width)
        self.proj_out = nn.Linear(width, 1)

    def states(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, C) tokens of bones -> keys and values of the cross block, the bone's share of the work."""
        for block in self.blocks[:-1]:
            hidden = block(hidden)
        return self._cross.attn2.keys_values(hidden)

    def query_states(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, Q, channels) query features -> residual (B, Q, C) and heads (B, H, Q, d), the points' share."""
        residual = self.proj_query(features.to(self.proj_query.weight.dtype))
        return residual, self._cross.queries(residual)

    def logits(self, residual: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, Q) float32 before the sigmoid; the query's first axis may be 1, shared by the bones."""
        hidden = self._cross.finish(residual, query, key, value)
        return self.proj_out(self.norm_out(hidden)).squeeze(-1).float()

    @property
    def _cross(self) -> _CrossBlock:
        block = self.blocks[-1]
        assert isinstance(block, _CrossBlock)
        return block


class _Perceiver(nn.Module):
    """Resample a sequence of latents to a fixed number by learned queries (section 7.5)."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.q_vec = nn.Parameter(torch.empty(tokens // PERCEIVER_HEADS, PERCEIVER_HEADS, width))
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        heads = (PERCEIVER_HEADS, width // PERCEIVER_HEADS)
        query = self.q_vec.reshape(1, -1, *heads).expand(batch, -1, -1, -1).transpose(1, 2)
        key = self.k_proj(x).view(batch, length, *heads).transpose(1, 2)
        value = self.v_proj(x).view(batch, length, *heads).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(query.to(key.dtype), key, value)
        return self.out_proj(mixed.transpose(1, 2).flatten(-2))


class _Transformer(nn.Module):
    """The modules of the VAE under the released names."""

    def __init__(self, config: SkinVAEConfig) -> None:
        super().__init__()
        position = embedded_size(config.embed_frequency)
        heads, latent = config.num_attention_heads, config.latent_channels
        encoder = (config.width_encoder, heads, config.num_layers_encoder)
        learned = config.sample_tokens if config.is_learned_queries else 0
        self.encoder = _Encoder(position + config.in_channels, *encoder, learned)
        self.cond_encoder = _Encoder(position + config.cond_channels, *encoder, 0)
        self.decoder = _Decoder(
            position + config.cond_channels, config.width_decoder, heads, config.num_layers_decoder
        )
        self.cond_quant = nn.Linear(config.width_encoder, latent)
        self.quant = nn.Linear(config.width_encoder, latent)
        self.post_quant = nn.Linear(latent, config.width_decoder)
        self.FSQ = FSQ(config.fsq_levels, config.fsq_dim)


class SkinVAE(nn.Module):
    """Encode and decode per-bone skin weights; see `SkinVAEConfig` for the sizes.

    All points are in the mesh frame, float32; normals have unit length (zero for degenerate faces).
    """

    def __init__(self, config: SkinVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.model = _Transformer(config)
        if config.has_perceivers:
            self.down_perceiver = _Perceiver(config.compress_tokens, config.latent_channels)
            self.up_perceiver = _Perceiver(config.sample_tokens, config.latent_channels)
        self._init_weights()

    @torch.no_grad()
    def _init_weights(self) -> None:
        """Section 7.5's initialisation; what it does not name keeps PyTorch's default."""
        net, config = self.model, self.config
        deviations = [
            (net.encoder.proj_in, config.width_encoder),
            (net.cond_encoder.proj_in, config.width_encoder),
            (net.decoder.proj_query, config.width_decoder),
            (net.decoder.proj_out, config.width_decoder),
            (net.quant, config.width_encoder),
            (net.cond_quant, config.width_encoder),
            (net.post_quant, config.latent_channels),
        ]
        for layer, width in deviations:
            nn.init.normal_(layer.weight, std=0.25 / width**0.5)
            nn.init.zeros_(layer.bias)
        if net.encoder.learned_queries is not None:
            nn.init.normal_(net.encoder.learned_queries, std=0.02)
        for module in self.modules():
            if isinstance(module, _Perceiver):
                nn.init.normal_(module.q_vec, std=0.02)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.post_quant.weight.device

    def _features(self, points: Tensor, normals: Tensor) -> Tensor:
        """(B, N, 3) points and normals to (B, N, 51 + 3) float32."""
        if points.ndim != 3 or points.shape[-1] != 3 or points.shape != normals.shape:
            raise ValueError(
                f"points and normals must be (B, N, 3), got {tuple(points.shape)}, {tuple(normals.shape)}"
            )
        config = self.config
        embedded = embed_points(
            points, config.embed_frequency, config.embed_include_pi, config.use_pmpe, config.rounded_constants
        )
        return torch.cat([embedded, normals.float()], dim=-1)

    # ---------------------------------------------------------------- encoding

    def encode_condition(
        self, points: Tensor, normals: Tensor, seed: int | None = 0, rng: np.random.Generator | None = None
    ) -> Tensor:
        """Condition latents of meshes: `(M, C, latent)` from points and normals `(M, N, 3)` (or `(N, 3)`).

        The released code leaves the draw of the query points unseeded; here the same `seed` gives the same
        latents. `rng` switches to the training draw (see `select_queries`). Differentiable.
        """
        if points.ndim == 2:
            points, normals = points[None], normals[None]
        index = select_queries(points, self.config.cond_tokens, seed, rng)
        hidden = self.model.cond_encoder(self._features(points, normals), index, self.config.cond_tokens)
        return self.model.cond_quant(hidden)

    def encode_latents(
        self,
        points: Tensor,
        normals: Tensor,
        weights: Tensor,
        tokens: int | None = None,
        seed: int | None = 0,
        rng: np.random.Generator | None = None,
    ) -> Tensor:
        """Latents before quantisation: `(B, tokens, latent)`, differentiable; see `encode_skin`."""
        config = self.config
        if points.ndim == 2:
            points, normals = points[None], normals[None]
        if weights.ndim != 2 or points.shape[1] != weights.shape[1] or len(points) not in (1, len(weights)):
            raise ValueError(
                f"weights must be (B, N) with points (B, N, 3) or (N, 3), got {tuple(weights.shape)} and "
                f"{tuple(points.shape)}"
            )
        count = config.tokens_per_skin if tokens is None else tokens
        if config.has_perceivers:
            if count != config.compress_tokens:
                raise ValueError(
                    f"this VAE always makes {config.compress_tokens} tokens per bone, not {count}"
                )
            count = config.sample_tokens
        elif config.is_learned_queries and not 1 <= count <= config.sample_tokens:
            raise ValueError(f"tokens must be 1 to {config.sample_tokens}, got {count}")
        batch = len(weights)
        features = self._features(points, normals).expand(batch, -1, -1)
        features = torch.cat([features, weights.float()[..., None]], dim=-1)
        index = None
        if not config.is_learned_queries:
            index = select_queries(points, count, seed, rng).expand(batch, -1)
        latents = self.model.quant(self.model.encoder(features, index, count))
        return self.down_perceiver(latents) if config.has_perceivers else latents

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """`(..., latent)` to straight-through vectors `(..., latent)` float32 and codes `(...)` int64."""
        return self.model.FSQ(latents)

    @torch.no_grad()
    def encode_skin(
        self,
        points: Tensor,
        normals: Tensor,
        weights: Tensor,
        tokens: int | None = None,
        seed: int | None = 0,
        rng: np.random.Generator | None = None,
    ) -> Tensor:
        """Codes of bones.

        Args:
            points, normals: `(B, N, 3)`, or `(N, 3)` / `(1, N, 3)` if all bones belong to one mesh.
            weights: `(B, N)` skin weights in [0, 1] of one bone per row, at these points.
            tokens: codes per bone; `config.tokens_per_skin` if not given.
            seed, rng: draw of the query points, used only by a VAE without learned queries.

        Returns:
            `(B, tokens)` int64 in [0, codebook size).
        """
        return self.quantize(self.encode_latents(points, normals, weights, tokens, seed, rng))[1]

    # ---------------------------------------------------------------- decoding

    def codes_to_latents(self, codes: Tensor) -> Tensor:
        """`(..., tokens)` integer codes to `(..., tokens, latent)` float32 code vectors."""
        return self.model.FSQ.indices_to_codes(codes)

    def _states(self, vectors: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        if self.config.has_perceivers:
            vectors = self.up_perceiver(vectors.to(self.model.post_quant.weight.dtype))
        condition = condition.expand(len(vectors), -1, -1)
        joined = torch.cat([vectors.to(condition.dtype), condition], dim=1)
        return self.model.decoder.states(self.model.post_quant(joined.to(self.model.post_quant.weight.dtype)))

    def decode_logits(
        self, vectors: Tensor, condition: Tensor, query_points: Tensor, query_normals: Tensor
    ) -> Tensor:
        """Logits of skin weights, differentiable and not chunked.

        Args:
            vectors: `(B, tokens, latent)` code vectors, one bone per row.
            condition: `(B, C, latent)` or `(1, C, latent)`.
            query_points, query_normals: `(B, Q, 3)` or `(1, Q, 3)`.

        Returns:
            `(B, Q)` float32, before the sigmoid.
        """
        key, value = self._states(vectors, condition)
        residual, query = self.model.decoder.query_states(self._features(query_points, query_normals))
        return self.model.decoder.logits(residual, query, key, value)

    @torch.no_grad()
    def decode(
        self,
        codes: Tensor,
        condition: Tensor,
        points: Tensor,
        normals: Tensor,
        max_elements: int | None = None,
    ) -> Tensor:
        """Skin weights of bones of one mesh, e.g. of all rigs rolled out for it.

        What depends on the points alone is computed once, what depends on the bone alone once per bone. Bones
        and points do not interact, so that the work is cut into pieces without changing the result.

        Args:
            codes: `(bones, tokens)` integers; any integer counts modulo the codebook size (section 8).
            condition: `(C, latent)`, `(1, C, latent)` or `(bones, C, latent)` from `encode_condition`.
            points, normals: `(N, 3)` where the weights are wanted.
            max_elements: largest intermediate array of a piece; chosen for the device if not given.

        Returns:
            `(bones, N)` float32 in (0, 1), not normalised over bones.
        """
        if codes.ndim != 2:
            raise ValueError(f"codes must be (bones, tokens), got {tuple(codes.shape)}")
        if condition.ndim == 2:
            condition = condition[None]
        if len(condition) not in (1, len(codes)):
            raise ValueError(
                f"condition must be (1, C, latent) or one per bone, got {tuple(condition.shape)}"
            )
        decoder, width = self.model.decoder, self.config.width_decoder
        residual, query = decoder.query_states(self._features(points[None], normals[None]))
        weights = torch.empty(len(codes), len(points), dtype=torch.float32, device=residual.device)
        if max_elements is None:
            max_elements = 2**22 if residual.device.type == "cpu" else 2**28
        cells = max(1, max_elements // (4 * width))
        tokens = codes.shape[1] + condition.shape[1]
        bones_per_piece = max(1, min(len(codes), cells // max(tokens, 512)))
        points_per_piece = max(1, cells // bones_per_piece)
        for bones in _pieces(len(codes), bones_per_piece):
            own = condition if len(condition) == 1 else condition[bones]
            key, value = self._states(self.codes_to_latents(codes[bones]), own)
            for part in _pieces(len(points), points_per_piece):
                logits = decoder.logits(residual[:, part], query[:, :, part], key, value)
                weights[bones, part] = logits.sigmoid()
        return weights

    def decode_meshes(
        self,
        codes: Tensor,
        mesh_index: Tensor,
        conditions: Tensor,
        points: Sequence[Tensor],
        normals: Sequence[Tensor],
        max_elements: int | None = None,
    ) -> list[Tensor]:
        """`decode` for bones of several meshes, in any order.

        Args:
            codes: `(B, tokens)`, bones of all meshes.
            mesh_index: `(B,)` integers, which mesh a bone belongs to.
            conditions: `(M, C, latent)`.
            points, normals: M arrays `(N_m, 3)`.

        Returns:
            M arrays `(bones of m, N_m)` float32; bones keep their order.
        """
        return [
            self.decode(
                codes[mesh_index == mesh], conditions[mesh], points[mesh], normals[mesh], max_elements
            )
            for mesh in range(len(conditions))
        ]

    def forward(
        self,
        points: Tensor,
        normals: Tensor,
        weights: Tensor,
        cond_points: Tensor,
        cond_normals: Tensor,
        query_points: Tensor,
        query_normals: Tensor,
        tokens: int | None = None,
        mesh_index: Tensor | None = None,
        rng: np.random.Generator | None = None,
        quantized: bool = True,
    ) -> Tensor:
        """Reconstruct weights of bones, differentiable (straight-through at the codes).

        Args:
            points, normals, weights: `(B, N, 3)`, `(B, N, 3)`, `(B, N)`: what the encoder sees.
            cond_points, cond_normals: `(M, K, 3)`, the meshes; M = B, M = 1, or any M with `mesh_index`.
            query_points, query_normals: `(B, Q, 3)` where to predict.
            tokens: codes per bone; `config.tokens_per_skin` if not given.
            mesh_index: `(B,)` int64, the mesh of each bone.
            rng: training draw of the query points of the encoders; the seeded one if not given.
            quantized: False decodes the latents themselves.

        Returns:
            `(B, Q)` float32 logits of the weights.
        """
        latents = self.encode_latents(points, normals, weights, tokens, rng=rng)
        vectors = self.quantize(latents)[0] if quantized else latents.float()
        condition = self.encode_condition(cond_points, cond_normals, rng=rng)
        if mesh_index is not None:
            condition = condition[mesh_index]
        return self.decode_logits(vectors, condition, query_points, query_normals)

    # ---------------------------------------------------------------- files

    def save(self, directory: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write `config.json` and `model.safetensors`, optionally in another dtype, into `directory`."""
        target = Path(directory)
        target.mkdir(parents=True, exist_ok=True)
        tensors = {
            name: tensor.detach().to("cpu", dtype or tensor.dtype).contiguous()
            for name, tensor in self.state_dict().items()
        }
        (target / "config.json").write_text(json.dumps(self.config.to_dict(), indent=2) + "\n")
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})

    @classmethod
    def load(
        cls,
        directory: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = torch.float32,
    ) -> "SkinVAE":
        """Read what `save` wrote; `dtype=None` keeps the stored one. ValueError for keys that do not fit."""
        source = Path(directory)
        config = SkinVAEConfig.from_dict(json.loads((source / "config.json").read_text()))
        with torch.device("meta"):
            vae = cls(config)
        tensors = load_file(source / "model.safetensors", device=str(device))
        expected = set(vae.state_dict())
        if expected != set(tensors):
            missing, extra = sorted(expected - set(tensors)), sorted(set(tensors) - expected)
            raise ValueError(f"{source / 'model.safetensors'}: missing {missing}, unexpected {extra}")
        # Copies, because views into the file are not aligned in memory and matrix products then differ in the
        # last bit: the same weights must give the same rewards in every process.
        aligned = {name: tensor.to(dtype or tensor.dtype, copy=True) for name, tensor in tensors.items()}
        vae.load_state_dict(aligned, assign=True)
        return vae.eval()


def _pieces(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(total, start + size))
