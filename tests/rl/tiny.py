"""A tiny random policy, and recipes that train it in seconds."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import yaml

from data.typed_recipe import build
from policy.bundle import RigPolicy
from policy.skintokens.skin_vae import SkinVAE, SkinVAEConfig
from policy.tokenrig.configuration import TokenRigConfig
from policy.tokenrig.mesh_encoder import MeshEncoderConfig
from policy.tokenrig.modeling import TokenRigForCausalLM
from policy.tokens.vocabulary import Vocabulary
from rl.recipe import Recipe, check_recipe

# With sixteen coordinates an untrained policy, to which all tokens are equally likely, ends a skeleton with
# probability 1/18 after each joint: most rigs are complete within 160 tokens, and some are cut off.
VOCABULARY = Vocabulary(bins=16, codebook=64, tokens_per_skin=2)
MESH_TOKENS = 8
POSITIONS = 256


def make_policy(seed: int = 0) -> RigPolicy:
    """A policy of random weights: hidden size 32, two layers, 60,000 parameters with its VAE."""
    torch.manual_seed(seed)
    skin_vae = SkinVAE(
        SkinVAEConfig(
            tokens_per_skin=2,
            cond_tokens=8,
            compress_tokens=8,
            sample_tokens=8,
            latent_channels=16,
            fsq_dim=16,
            num_attention_heads=2,
            width_encoder=16,
            width_decoder=16,
            num_layers_encoder=1,
            num_layers_decoder=1,
            fsq_levels=(8, 8),
        )
    )
    model = TokenRigForCausalLM(
        TokenRigConfig(
            vocabulary=VOCABULARY.to_dict(),
            mesh_encoder=MeshEncoderConfig(
                width=16, heads=2, num_encoder_layers=1, token_num=MESH_TOKENS
            ).to_dict(),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            intermediate_size=64,
            max_position_embeddings=POSITIONS,
        )
    )
    return RigPolicy(model.eval(), skin_vae.eval())


def recipe_values(policy: Path, output: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe of two steps as a mapping; `changes` are by dotted key, such as {"train.max_steps": 3}."""
    values: dict[str, Any] = {
        "output_dir": str(output),
        "policy": {"path": str(policy)},
        "data": {"train_count": 3, "eval_count": 2, "points": 64},
        "rewards": {"resolution": 24, "max_scoring_vertices": 96},
        "workers": {"backend": "inline", "count": 1},
        "eval": {"samples": 2},
        "train": {
            "max_steps": 2,
            "num_generations": 4,
            "per_device_train_batch_size": 8,
            "max_completion_length": 160,
            "learning_rate": 1e-3,
            "save_steps": 1,
        },
    }
    values = deepcopy(values)
    for key, value in changes.items():
        *sections, name = key.split(".")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return values


def make_recipe(policy: Path, output: Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of `recipe_values`, checked."""
    return check_recipe(build(Recipe, recipe_values(policy, output, changes or {})))


def write_recipe_file(path: Path, policy: Path, output: Path, changes: Mapping[str, Any]) -> Path:
    """The recipe of `recipe_values` as a YAML file."""
    path.write_text(yaml.safe_dump(recipe_values(policy, output, changes)))
    return path
