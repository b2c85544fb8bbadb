"""The skin VAE: skinning weights of one bone to a few FSQ codes and back, conditioned on the mesh.

Modules carry the released parameter names: the state dict of `SkinVAE` is that of a released VAE checkpoint
(`model.encoder...`), and that of a released TokenRig checkpoint behind the prefix `vae.`.
Source: specification, section 7.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from policy.layers.embedding import embed_points, embedded_size
from policy.layers.finite import check_after_loading, check_before_saving
from policy.layers.queries import select_queries
from policy.skintokens.blocks import Perceiver
from policy.skintokens.configuration import SkinVAEConfig
from policy.skintokens.decoder import Decoder
from policy.skintokens.encoder import Encoder
from policy.skintokens.frozen_decoder import FrozenDecoder
from policy.skintokens.fsq import FSQ


class _SkinTransformer(nn.Module):
    """Encoders, quantiser and decoder under the released parameter names."""

    def __init__(self, config: SkinVAEConfig) -> None:
        super().__init__()
        position = embedded_size(config.embed_frequency)
        heads, latent = config.num_attention_heads, config.latent_channels
        encoder = (config.width_encoder, heads, config.num_layers_encoder)
        learned = config.sample_tokens if config.is_learned_queries else 0
        self.encoder = Encoder(position + config.in_channels, *encoder, learned)
        self.cond_encoder = Encoder(position + config.cond_channels, *encoder, 0)
        self.decoder = Decoder(
            position + config.cond_channels, config.width_decoder, heads, config.num_layers_decoder
        )
        self.cond_quant = nn.Linear(config.width_encoder, latent)
        self.quant = nn.Linear(config.width_encoder, latent)
        self.post_quant = nn.Linear(latent, config.width_decoder)
        self.FSQ = FSQ(config.fsq_levels, config.fsq_dim)


class SkinVAE(nn.Module):
    """Encode skinning weights of bones to SkinTokens and decode SkinTokens to skinning weights.

    Sizes come from `SkinVAEConfig`. All points are in the mesh frame, float32; normals have unit length (zero
    for degenerate faces). Source: specification, section 7.
    """

    def __init__(self, config: SkinVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.model = _SkinTransformer(config)
        if config.has_perceivers:
            self.down_perceiver = Perceiver(config.compress_tokens, config.latent_channels)
            self.up_perceiver = Perceiver(config.sample_tokens, config.latent_channels)
        self._init_weights()

    @torch.no_grad()
    def _init_weights(self) -> None:
        """Initialise as in the specification, section 7.5; other layers keep PyTorch's default."""
        net, config = self.model, self.config
        fan_ins = [
            (net.encoder.proj_in, config.width_encoder),
            (net.cond_encoder.proj_in, config.width_encoder),
            (net.decoder.proj_query, config.width_decoder),
            (net.decoder.proj_out, config.width_decoder),
            (net.quant, config.width_encoder),
            (net.cond_quant, config.width_encoder),
            (net.post_quant, config.latent_channels),
        ]
        for layer, width in fan_ins:
            nn.init.normal_(layer.weight, std=0.25 / width**0.5)
            nn.init.zeros_(layer.bias)
        if net.encoder.learned_queries is not None:
            nn.init.normal_(net.encoder.learned_queries, std=0.02)
        for module in self.modules():
            if isinstance(module, Perceiver):
                nn.init.normal_(module.q_vec, std=0.02)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.model.post_quant.weight.device

    def _features(self, points: Tensor, normals: Tensor) -> Tensor:
        """Input features (B, N, 3 (2F + 1) + 3) float32 of (B, N, 3) points and normals."""
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
        """Encode meshes to the condition latents that `decode` takes; differentiable.

        Args:
            points, normals: `(M, N, 3)`, or `(N, 3)` for one mesh.
            seed: seed of the query point draw: same seed, same latents. The released code leaves it unseeded.
            rng: generator of the training draw, instead of `seed`; see `policy.layers.queries`.

        Returns:
            `(M, C, latent)` in the dtype of the weights.

        Raises:
            ValueError: points and normals have the wrong shapes.
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
        """Encode bones to latents before quantisation, differentiable.

        Takes the arguments of `encode_skin` and returns `(B, tokens, latent)` in the dtype of the weights.
        Raises ValueError for wrong shapes and for a number of tokens this VAE cannot produce.
        """
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
                    f"this VAE has perceivers: tokens must be {config.compress_tokens}, got {count}"
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
        """Quantise latents with a straight-through gradient.

        `(..., latent)` to code vectors `(..., latent)` float32 and codes `(...)` int64.
        """
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
        """Encode the skinning weights of bones to SkinTokens.

        Args:
            points, normals: `(B, N, 3)`, or `(N, 3)` / `(1, N, 3)` if all bones belong to one mesh.
            weights: `(B, N)` skinning weights in [0, 1] at these points, one bone per row.
            tokens: codes per bone; `config.tokens_per_skin` if not given.
            seed, rng: query point draw of a VAE without learned queries; unused by others.

        Returns:
            codes `(B, tokens)` int64 in [0, codebook size).

        Raises:
            ValueError: other shapes, or a number of tokens this VAE cannot produce.
        """
        return self.quantize(self.encode_latents(points, normals, weights, tokens, seed, rng))[1]

    # ---------------------------------------------------------------- decoding

    def codes_to_latents(self, codes: Tensor) -> Tensor:
        """`(..., tokens)` integer codes to `(..., tokens, latent)` float32 code vectors."""
        return self.model.FSQ.indices_to_codes(codes)

    def _latents_of(self, vectors: Tensor) -> Tensor:
        """Latents that the decoder attends to: code vectors (B, tokens, latent), resampled if there are
        perceivers."""
        if not self.config.has_perceivers:
            return vectors
        return self.up_perceiver(vectors.to(self.model.post_quant.weight.dtype))

    def decode_logits(
        self, vectors: Tensor, condition: Tensor, query_points: Tensor, query_normals: Tensor
    ) -> Tensor:
        """Decode code vectors to logits of skinning weights, differentiable and in one pass.

        Args:
            vectors: `(B, tokens, latent)` code vectors, one bone per row.
            condition: `(B, C, latent)` or `(1, C, latent)` from `encode_condition`.
            query_points, query_normals: `(B, Q, 3)` or `(1, Q, 3)`.

        Returns:
            `(B, Q)` float32 logits; their sigmoid is the weight.
        """
        vectors = self._latents_of(vectors)
        joined = torch.cat([vectors.to(condition.dtype), condition.expand(len(vectors), -1, -1)], dim=1)
        hidden = self.model.post_quant(joined.to(self.model.post_quant.weight.dtype))
        key, value = self.model.decoder.states(hidden)
        residual, query = self.model.decoder.query_states(self._features(query_points, query_normals))
        return self.model.decoder.logits(residual, query, key, value)

    def frozen_decoder(self, dtype: torch.dtype | None = None) -> FrozenDecoder:
        """Copy of the decoder for `decode`, which makes one per call otherwise; `dtype` defaults to the
        weights'."""
        return FrozenDecoder(
            self.model.decoder, self.model.post_quant, dtype or self.model.post_quant.weight.dtype
        )

    @torch.no_grad()
    def decode(
        self,
        codes: Tensor,
        condition: Tensor,
        points: Tensor,
        normals: Tensor,
        max_elements: int | None = None,
        decoder: FrozenDecoder | None = None,
    ) -> Tensor:
        """Decode SkinTokens of bones of one mesh, e.g. of all rigs rolled out for it, to skinning weights.

        Projections of points are computed once, projections of bones once per bone. Bones and points do not
        interact, so chunking does not change the result. On a GPU nothing is copied to the host.

        Args:
            codes: `(bones, tokens)` integers, taken modulo the codebook size (section 8).
            condition: `(C, latent)`, `(1, C, latent)` or `(bones, C, latent)` from `encode_condition`.
            points, normals: `(N, 3)` query points and their normals.
            max_elements: elements of a chunk's largest intermediate array; chosen for the device by default.
            decoder: from `frozen_decoder`; made from the present weights if not given.

        Returns:
            `(bones, N)` float32 in (0, 1), not normalised over bones.

        Raises:
            ValueError: `codes`, `condition` or the points have the wrong shapes.
        """
        if codes.ndim != 2:
            raise ValueError(f"codes must be (bones, tokens), got {tuple(codes.shape)}")
        if condition.ndim == 2:
            condition = condition[None]
        if len(condition) not in (1, len(codes)):
            raise ValueError(
                f"condition must be (1, C, latent) or one per bone, got {tuple(condition.shape)}"
            )
        features = self._features(points[None], normals[None])[0]
        decoder = decoder or self.frozen_decoder()
        vectors = self._latents_of(self.codes_to_latents(codes))
        return decoder(vectors, condition, features, max_elements)

    def decode_meshes(
        self,
        codes: Tensor,
        mesh_index: Tensor,
        conditions: Tensor,
        points: Sequence[Tensor],
        normals: Sequence[Tensor],
        max_elements: int | None = None,
    ) -> list[Tensor]:
        """Decode SkinTokens of bones of several meshes, in any order; see `decode`.

        Args:
            codes: `(B, tokens)`, bones of all meshes.
            mesh_index: `(B,)` integers, the mesh of each bone.
            conditions: `(M, C, latent)`.
            points, normals: M tensors `(N_m, 3)`.

        Returns:
            M tensors `(bones of m, N_m)` float32; bones keep their order.
        """
        decoder = self.frozen_decoder()
        return [
            self.decode(
                codes[mesh_index == mesh],
                conditions[mesh],
                points[mesh],
                normals[mesh],
                max_elements,
                decoder,
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
        """Reconstruct skinning weights of bones, differentiable (straight-through at the quantiser).

        Args:
            points, normals, weights: `(B, N, 3)`, `(B, N, 3)`, `(B, N)`: input of the encoder.
            cond_points, cond_normals: `(M, K, 3)`, the meshes; M = B, M = 1, or any M with `mesh_index`.
            query_points, query_normals: `(B, Q, 3)`, where weights are predicted.
            tokens: codes per bone; `config.tokens_per_skin` if not given.
            mesh_index: `(B,)` int64, the mesh of each bone.
            rng: generator of the encoders' training draw of query points; the seeded draw if not given.
            quantized: False skips the quantiser and decodes the latents themselves.

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

    @property
    def encoding_modules(self) -> list[nn.Module]:
        """What determines a bone's codes; the other modules decode them."""
        modules: list[nn.Module | None] = [self.model.encoder, self.model.quant, self.model.FSQ.project_in]
        if self.config.has_perceivers:
            modules.append(self.down_perceiver)
        return [module for module in modules if module is not None]

    def code_digest(self) -> str:
        """Names the code: equal for skin VAEs that encode with the same weights, compared in bfloat16."""
        digest = hashlib.sha256()
        for module in self.encoding_modules:
            for tensor in module.state_dict().values():
                digest.update(
                    tensor.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy()
                )
        return digest.hexdigest()[:16]

    def save(self, directory: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write `config.json` and `model.safetensors` to `directory`, in `dtype` if given.

        Raises RunFailedError if a weight is not finite.
        """
        target = Path(directory)
        tensors = {
            name: tensor.detach().to("cpu", dtype or tensor.dtype).contiguous()
            for name, tensor in self.state_dict().items()
        }
        check_before_saving(tensors, "the skin VAE")
        target.mkdir(parents=True, exist_ok=True)
        (target / "config.json").write_text(json.dumps(self.config.to_dict(), indent=2) + "\n")
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})

    @classmethod
    def load(
        cls,
        directory: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = torch.float32,
    ) -> "SkinVAE":
        """Load what `save` wrote, in evaluation mode; `dtype=None` keeps the stored dtype.

        Raises ValueError for unknown settings, missing or unexpected tensors, and non-finite weights.
        """
        source = Path(directory)
        config = SkinVAEConfig.from_dict(json.loads((source / "config.json").read_text()))
        with torch.device("meta"):
            vae = cls(config)
        tensors = load_file(source / "model.safetensors", device=str(device))
        expected = set(vae.state_dict())
        if expected != set(tensors):
            missing, extra = sorted(expected - set(tensors)), sorted(set(tensors) - expected)
            raise ValueError(f"{source / 'model.safetensors'}: missing {missing}, unexpected {extra}")
        check_after_loading(tensors, source / "model.safetensors")
        # Copied, because views into the mapped file are unaligned and change the last bit of matrix products:
        # the same weights must give the same rewards in every process.
        aligned = {name: tensor.to(dtype or tensor.dtype, copy=True) for name, tensor in tensors.items()}
        vae.load_state_dict(aligned, assign=True)
        return vae.eval()
