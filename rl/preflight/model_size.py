"""Sizes of a policy from its configuration and the headers of its weights, without loading them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from policy.policy_folder import PolicyError, adapter_base, find_skin_vae
from policy.tokenrig.configuration import TokenRigConfig
from rl.recipe import PolicyRecipe

_ENCODER = ("mesh_encoder.", "output_proj.")


@dataclass(frozen=True)
class ModelSize:
    """Numbers of weights and sizes of a policy's parts.

    Attributes:
        language: weights of the language model, tied ones once.
        encoder: weights of the mesh encoder and its output projection.
        trained: weights that the recipe trains.
        adapters: weights of LoRA adapters, part of `trained`; 0 for full fine-tuning.
        vae: weights of the skin VAE; vae_width: channels of its decoder.
        layers, heads, kv_heads, head_dim, hidden, inner, vocabulary: of the language model.
        codebook, tokens_per_skin: of the SkinTokens.
        prefix: tokens of the mesh and the prompt `<bos> <class>`.
    """

    language: int
    encoder: int
    trained: int
    adapters: int
    vae: int
    vae_width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    inner: int
    vocabulary: int
    codebook: int
    tokens_per_skin: int
    prefix: int

    @property
    def model(self) -> int:
        """Weights of the whole TokenRig, adapters included."""
        return self.language + self.encoder + self.adapters


def model_size(policy: PolicyRecipe) -> ModelSize:
    """Sizes of the recipe's policy.

    Raises PolicyError if its files are missing, truncated or not those of a policy.
    """
    source = Path(policy.path)
    folder = adapter_base(source) or source
    skin_vae = find_skin_vae(source, policy.skin_vae)
    try:
        config = TokenRigConfig.from_pretrained(folder, local_files_only=True)
        shapes = _shapes(folder)
        vae = _shapes(skin_vae)
        vae_width = json.loads((skin_vae / "config.json").read_text())["width_decoder"]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PolicyError(f"{source} cannot be read ({reason}); restore its files") from error
    encoder = sum(size for name, size in shapes.items() if name.startswith(_ENCODER))
    language = sum(shapes.values()) - encoder
    adapters = 0 if policy.lora is None else policy.lora.rank * _adapted(config, policy.lora.target_modules)
    vocabulary = config.get_vocabulary()
    return ModelSize(
        language=language,
        encoder=encoder,
        trained=(adapters or language) + (encoder if policy.train_mesh_encoder else 0),
        adapters=adapters,
        vae=sum(vae.values()),
        vae_width=vae_width,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        hidden=config.hidden_size,
        inner=config.intermediate_size,
        vocabulary=vocabulary.size,
        codebook=vocabulary.codebook,
        tokens_per_skin=vocabulary.tokens_per_skin,
        prefix=config.get_mesh_encoder().token_num + 2,
    )


def _shapes(folder: Path) -> dict[str, int]:
    """Number of elements of every tensor in a folder's safetensors files, by name."""
    sizes = {}
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise OSError(f"{folder}: no model.safetensors")
    for file in files:
        with safe_open(file, "numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                sizes[name] = math.prod(tensors.get_slice(name).get_shape())
    return sizes


def _adapted(config: TokenRigConfig, modules: tuple[str, ...]) -> int:
    """Inputs plus outputs of all layers with an adapter: its weights per unit of rank."""
    heads, kv = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    hidden, inner = config.hidden_size, config.intermediate_size
    ends = {
        "q_proj": hidden + heads,
        "k_proj": hidden + kv,
        "v_proj": hidden + kv,
        "o_proj": heads + hidden,
        "gate_proj": hidden + inner,
        "up_proj": hidden + inner,
        "down_proj": inner + hidden,
    }
    return config.num_hidden_layers * sum(ends.get(name, 0) for name in modules)
