"""Sizes that `rl.benchmark` can run, and the random policies of these sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from policy.bundle import RigPolicy
from policy.skintokens.skin_vae import SkinVAE, SkinVAEConfig
from policy.tokenrig.configuration import TokenRigConfig
from policy.tokenrig.mesh_encoder import MeshEncoderConfig
from policy.tokenrig.modeling import TokenRigForCausalLM
from policy.tokens.vocabulary import Vocabulary


@dataclass(frozen=True)
class Size:
    """A policy and a GRPO step.

    Attributes:
        hidden, layers, heads, kv_heads, head_dim, inner: the language model.
        mesh_tokens: conditioning embeddings of a mesh.
        codebook_levels, tokens_per_skin: SkinTokens.
        vae_width, vae_heads, vae_layers, vae_condition, vae_latent: the skin VAE's decoder.
        meshes, group: meshes of a step, rollouts of each.
        joints: fewest and most joints of a rig; 7 J + 2 tokens.
        points: scoring vertices, at which skinning weights are decoded.
        micro_batch: rows of a training pass with the repeated prefix; our passes take whole groups.
        plain_tokens: tokens per row that the plain rollout is timed on, and then scaled to ours; the first
            ones have the fewest keys to attend to, so this favours the plain side.
        decoder_share: part of the bones that the bone-by-bone decoder is timed on, and then extrapolated.
        half: bfloat16 for the language model (weights of rollouts, autocast in training) and the decoder.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    mesh_tokens: int
    codebook_levels: tuple[int, ...]
    tokens_per_skin: int
    vae_width: int
    vae_heads: int
    vae_layers: int
    vae_condition: int
    vae_latent: int
    meshes: int
    group: int
    joints: tuple[int, int]
    points: int
    micro_batch: int
    plain_tokens: int
    decoder_share: float
    half: bool

    @property
    def rows(self) -> int:
        """Rollouts of a step."""
        return self.meshes * self.group

    @property
    def most_tokens(self) -> int:
        """Tokens of the longest completion."""
        return self.joints[1] * (3 + self.tokens_per_skin) + 2

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary, with 256 coordinates."""
        codebook = 1
        for level in self.codebook_levels:
            codebook *= level
        return Vocabulary(codebook=codebook, tokens_per_skin=self.tokens_per_skin)


_RELEASED = Size(
    hidden=896,
    layers=28,
    heads=16,
    kv_heads=8,
    head_dim=128,
    inner=3072,
    mesh_tokens=512,
    codebook_levels=(8, 8, 8, 8, 8),
    tokens_per_skin=4,
    vae_width=768,
    vae_heads=12,
    vae_layers=10,
    vae_condition=384,
    vae_latent=512,
    meshes=8,
    group=24,
    joints=(42, 42),
    points=4096,
    micro_batch=4,
    plain_tokens=300,
    decoder_share=1 / 96,
    half=True,
)

SIZES = {
    # One GPU. `released` is a step of recipes/grpo_1400.yaml; `released-24` has one mesh.
    "released": _RELEASED,
    "released-24": replace(_RELEASED, meshes=1, decoder_share=1 / 12),
    # Two CPU cores in under five minutes: the released layers, four of them, and a smaller VAE.
    "small": replace(
        _RELEASED,
        layers=4,
        vae_width=256,
        vae_heads=4,
        vae_layers=4,
        vae_condition=128,
        vae_latent=128,
        meshes=1,
        joints=(29, 42),
        points=512,
        plain_tokens=96,
        decoder_share=0.25,
        half=False,
    ),
    # The shipped pair's sizes and a third of a step of recipes/quickstart.yaml, for rl.benchmarks.sweep.
    "shipped": Size(
        hidden=192,
        layers=5,
        heads=6,
        kv_heads=2,
        head_dim=32,
        inner=512,
        mesh_tokens=64,
        codebook_levels=(8, 8, 8, 4, 2),
        tokens_per_skin=4,
        vae_width=96,
        vae_heads=4,
        vae_layers=3,
        vae_condition=64,
        vae_latent=64,
        meshes=2,
        group=8,
        joints=(25, 25),
        points=512,
        micro_batch=8,
        plain_tokens=96,
        decoder_share=0.25,
        half=False,
    ),
    # Seconds, for tests.
    "tiny": Size(
        hidden=32,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=16,
        inner=64,
        mesh_tokens=8,
        codebook_levels=(8, 8),
        tokens_per_skin=2,
        vae_width=16,
        vae_heads=2,
        vae_layers=1,
        vae_condition=8,
        vae_latent=16,
        meshes=2,
        group=3,
        joints=(3, 5),
        points=64,
        micro_batch=2,
        plain_tokens=64,
        decoder_share=1.0,
        half=False,
    ),
}


def random_policy(size: Size, device: torch.device) -> RigPolicy:
    """A policy of random float32 weights, in eval mode."""
    torch.manual_seed(0)
    vae = SkinVAE(
        SkinVAEConfig(
            tokens_per_skin=size.tokens_per_skin,
            cond_tokens=size.vae_condition,
            compress_tokens=8,
            sample_tokens=8,
            latent_channels=size.vae_latent,
            fsq_dim=size.vae_latent,
            num_attention_heads=size.vae_heads,
            width_encoder=size.vae_width,
            width_decoder=size.vae_width,
            num_layers_encoder=1,
            num_layers_decoder=size.vae_layers,
            fsq_levels=size.codebook_levels,
        )
    )
    config = TokenRigConfig(
        vocabulary=size.vocabulary.to_dict(),
        mesh_encoder=MeshEncoderConfig(
            width=64, heads=2, num_encoder_layers=1, token_num=size.mesh_tokens
        ).to_dict(),
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.head_dim,
        intermediate_size=size.inner,
        max_position_embeddings=size.mesh_tokens + size.most_tokens + 64,
    )
    with torch.device(device):
        model = TokenRigForCausalLM(config)
    return RigPolicy(model.to(device).eval(), vae.to(device).eval())
