"""Fixtures: reference outputs of the upstream code and the tiny random checkpoint that produced them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from policy.skintokens.configuration import SkinVAEConfig
from policy.skintokens.skin_vae import SkinVAE
from policy.tokenrig.configuration import TokenRigConfig
from policy.tokenrig.mesh_encoder import MeshEncoderConfig
from policy.tokenrig.modeling import TokenRigForCausalLM
from policy.tokens.vocabulary import Vocabulary

REFERENCE = Path(__file__).parent / "reference"


@pytest.fixture(scope="session")
def golden() -> dict[str, torch.Tensor]:
    with np.load(REFERENCE / "golden_a.npz", allow_pickle=False) as file:
        return {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}


@pytest.fixture(scope="session")
def released_weights() -> dict[str, torch.Tensor]:
    """Tensors of the tiny checkpoint as fp32, the leading `model.` removed."""
    file = torch.load(REFERENCE / "tiny_a.ckpt", map_location="cpu", weights_only=True)
    return {name.removeprefix("model."): tensor.float() for name, tensor in file["state_dict"].items()}


@pytest.fixture(scope="session")
def vae_config() -> SkinVAEConfig:
    """Configuration of the tiny VAE checkpoint, with embedding constants in full precision."""
    return SkinVAEConfig(
        tokens_per_skin=4,
        cond_tokens=24,
        compress_tokens=8,
        sample_tokens=8,
        latent_channels=32,
        num_attention_heads=4,
        width_encoder=48,
        width_decoder=48,
        num_layers_encoder=2,
        num_layers_decoder=3,
        fsq_levels=(8, 8, 8, 5),
        fsq_dim=32,
        rounded_constants=False,
    )


@pytest.fixture(scope="session")
def vae(released_weights: dict[str, torch.Tensor], vae_config: SkinVAEConfig) -> SkinVAE:
    return _loaded_vae(released_weights, vae_config)


@pytest.fixture(scope="session")
def rounded_vae(released_weights: dict[str, torch.Tensor], vae_config: SkinVAEConfig) -> SkinVAE:
    return _loaded_vae(released_weights, replace(vae_config, rounded_constants=True))


def _loaded_vae(weights: dict[str, torch.Tensor], config: SkinVAEConfig) -> SkinVAE:
    vae = SkinVAE(config)
    vae.load_state_dict({name[4:]: t for name, t in weights.items() if name.startswith("vae.")})
    return vae.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_config() -> TokenRigConfig:
    return TokenRigConfig(
        vocabulary=Vocabulary(codebook=8 * 8 * 8 * 5).to_dict(),
        mesh_encoder=MeshEncoderConfig(width=48, heads=4, num_encoder_layers=2, token_num=16).to_dict(),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=128,
    )


@pytest.fixture(scope="session")
def model(released_weights: dict[str, torch.Tensor], tiny_config: TokenRigConfig) -> TokenRigForCausalLM:
    """The tiny model with the reference weights; tests must not change it."""
    model = TokenRigForCausalLM(tiny_config)
    own = {name: t for name, t in released_weights.items() if not name.startswith("vae.")}
    model.load_state_dict(own)
    return model.eval().requires_grad_(False)


@pytest.fixture
def fresh_model(tiny_config: TokenRigConfig) -> TokenRigForCausalLM:
    """A model of the same size with its own initial weights, to train and change."""
    torch.manual_seed(0)
    return TokenRigForCausalLM(tiny_config)
