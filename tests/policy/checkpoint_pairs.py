"""Checkpoint pairs for tests: the tiny reference pair, edited copies of it, random ones in other layouts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from policy.released.rig_settings import rig_hyper_parameters
from policy.released.vae_settings import vae_hyper_parameters
from policy.skintokens.configuration import SkinVAEConfig
from policy.skintokens.skin_vae import SkinVAE
from policy.tokenrig.configuration import TokenRigConfig
from policy.tokenrig.mesh_encoder import MeshEncoderConfig
from policy.tokenrig.modeling import TokenRigForCausalLM
from policy.tokens.vocabulary import Vocabulary

REFERENCE = Path(__file__).parent / "reference"
RIG, VAE = REFERENCE / "tiny_a.ckpt", REFERENCE / "tiny_a_vae.ckpt"


def edited(path: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    """Write a copy of the TokenRig checkpoint to `path`, its content changed in place by `edit`."""
    content = torch.load(RIG, weights_only=True)
    edit(content)
    torch.save(content, path)
    return path


def random_checkpoints(
    tmp_path: Path, prefix: str, infix: str, dtype: torch.dtype, **changes: Any
) -> tuple[Path, Path]:
    """Write a TokenRig and a VAE checkpoint with random weights; `changes` to their configurations."""
    torch.manual_seed(0)
    vae_changes = {
        "fsq_levels": (5, 4, 3),
        "latent_channels": 16,
        "fsq_dim": 16,
        "tokens_per_skin": 2,
        "width_encoder": 24,
        "width_decoder": 32,
        **changes.pop("vae", {}),
    }
    base = {
        "cond_tokens": 6,
        "compress_tokens": 8,
        "sample_tokens": 8,
        "num_attention_heads": 4,
        "num_layers_encoder": 1,
        "num_layers_decoder": 1,
    }
    vae = SkinVAE(SkinVAEConfig(**{**base, **vae_changes}))
    encoder = MeshEncoderConfig(
        width=24, heads=2, num_encoder_layers=1, token_num=4, **changes.pop("mesh_encoder", {})
    )
    config = TokenRigConfig(
        vocabulary=Vocabulary(
            bins=64,
            parts=(),
            classes=("a", "b"),
            codebook=vae.config.codebook_size,
            tokens_per_skin=vae.config.tokens_per_skin,
        ).to_dict(),
        mesh_encoder=encoder.to_dict(),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=48,
    )
    model = TokenRigForCausalLM(config)
    state = {f"vae.{name}": t for name, t in vae.state_dict().items()} | dict(model.state_dict())
    named = {prefix + name.replace("model.", f"model.{infix}", 1): t.to(dtype) for name, t in state.items()}
    torch.save(
        {"state_dict": named, "hyper_parameters": rig_hyper_parameters(config, vae.config)},
        tmp_path / "rig.ckpt",
    )
    own = {f"model.{name}": t.to(dtype) for name, t in vae.state_dict().items()}
    torch.save(
        {"state_dict": own, "hyper_parameters": vae_hyper_parameters(vae.config)}, tmp_path / "vae.ckpt"
    )
    return tmp_path / "rig.ckpt", tmp_path / "vae.ckpt"
