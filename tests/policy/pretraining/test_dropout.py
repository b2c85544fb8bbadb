"""Dropout: off, it is not there; on, it acts in training alone, in both passes, and leaves no trace."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from data.typed_recipe import RecipeError
from policy.pretraining.dropout import DropoutRecipe, add_dropout, seen_points
from policy.skintokens.skin_vae import SkinVAE, SkinVAEConfig
from policy.tokenrig.modeling import TokenRigForCausalLM
from tests.policy.tiny_recipes import SKIN_VAE


def hooked(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if module._forward_hooks]


def log_probs(model: TokenRigForCausalLM, packed: bool) -> torch.Tensor:
    torch.manual_seed(0)
    words = model.config.get_vocabulary()
    ids = torch.tensor([[words.bos, words.class_none, 5, 6, 7, words.skeleton_eos]])
    embeds = torch.randn(1, 16, model.config.hidden_size)
    return model(input_ids=ids, mesh_embeds=embeds, completion_ids=ids[:, 2:], packed=packed).log_probs


def test_without_dropout_no_layer_is_touched(fresh_model):
    add_dropout(fresh_model, DropoutRecipe(points=0.5))
    assert hooked(fresh_model) == []


@pytest.mark.parametrize("packed", [False, True])
def test_the_language_model_drops_channels_in_training_alone(fresh_model, packed):
    fresh_model.eval()
    plain = log_probs(fresh_model, packed)
    keys, config = set(fresh_model.state_dict()), fresh_model.config.to_json_string()
    add_dropout(fresh_model, DropoutRecipe(decoder=0.2))
    assert hooked(fresh_model) == [
        f"transformer.model.layers.{layer}.{end}"
        for layer in range(2)
        for end in ("self_attn.o_proj", "mlp.down_proj")
    ]
    assert torch.equal(log_probs(fresh_model, packed), plain)
    fresh_model.train()
    assert not torch.equal(log_probs(fresh_model, packed), plain)
    assert set(fresh_model.state_dict()) == keys
    assert fresh_model.config.to_json_string() == config


def test_encoders_have_a_share_of_their_own(fresh_model):
    add_dropout(fresh_model, DropoutRecipe(encoder=0.2))
    assert len(hooked(fresh_model)) == 2 * 3  # cross attention and two layers
    assert all(name.startswith("mesh_encoder.") for name in hooked(fresh_model))
    points, normals = torch.randn(2, 1, 40, 3)
    fresh_model.train()
    first, second = (fresh_model.encode_mesh(points, normals) for _ in range(2))
    assert not torch.allclose(first, second, atol=1e-3)
    fresh_model.eval()
    assert torch.equal(fresh_model.encode_mesh(points, normals), fresh_model.encode_mesh(points, normals))


def test_the_skin_vae_drops_in_what_learns():
    vae = SkinVAE(SkinVAEConfig(**SKIN_VAE["model"]))
    vae.model.encoder.requires_grad_(False)
    add_dropout(vae, DropoutRecipe(encoder=0.1, decoder=0.3))
    # A cross and a self attention layer in each of the three; the frozen one has none.
    assert sorted({name.split(".")[1] for name in hooked(vae)}) == ["cond_encoder", "decoder"]
    assert len(hooked(vae)) == 8


def test_a_share_of_the_channels_is_dropped():
    block = nn.Module()
    block.attn = nn.ModuleDict({"c_proj": nn.Linear(1, 1)})
    nn.init.ones_(block.attn["c_proj"].weight)
    nn.init.zeros_(block.attn["c_proj"].bias)
    add_dropout(block, DropoutRecipe(encoder=0.25))
    torch.manual_seed(0)
    dropped = block.attn["c_proj"](torch.ones(10_000, 1))
    assert sorted(set(dropped.flatten().tolist())) == pytest.approx([0, 1 / 0.75])
    assert (dropped == 0).float().mean() == pytest.approx(0.25, abs=0.02)


def test_a_step_sees_a_part_of_the_points():
    points = torch.randn(2, 1000, 3)
    counts = []
    for step in range(200):
        seen, normals = seen_points(DropoutRecipe(points=0.4), points, -points, (0, step))
        assert torch.equal(seen, points[:, : seen.shape[1]])
        assert torch.equal(normals, -seen)
        counts.append(seen.shape[1])
    assert min(counts) >= 600
    assert np.mean(counts) == pytest.approx(800, abs=30)
    again, _ = seen_points(DropoutRecipe(points=0.4), points, points, (0, 3))
    assert again.shape[1] == counts[3]
    assert seen_points(DropoutRecipe(), points, points, (0, 3))[0] is points


@pytest.mark.parametrize("values", [{"encoder": 1.0}, {"decoder": -0.1}, {"points": float("nan")}])
def test_shares_that_cannot_be(values: dict[str, Any]):
    (name,) = values
    with pytest.raises(RecipeError, match=rf"'dropout\.{name}' must be at least 0 and below 1, not"):
        DropoutRecipe(**values)
