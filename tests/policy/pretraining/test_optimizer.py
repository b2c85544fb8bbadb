"""Which parameters Muon and AdamW train, weight decay, and the learning-rate schedule."""

import pytest
import torch

from data.typed_recipe import RecipeError
from policy.pretraining.loop_recipe import LoopRecipe
from policy.pretraining.optimizer import build_optimizer, cosine_factor, muon_split
from policy.skintokens.skin_vae import SkinVAE
from tests.policy.pretraining.test_loop import Net


def test_cosine_factor_by_hand():
    loop = LoopRecipe(max_steps=12, warmup_steps=4, min_learning_rate_ratio=0.1)
    # Warm-up: (step + 1) / 4. Then progress (step - 4) / 8: 0.1 + 0.9 (1 + cos(pi progress)) / 2.
    expected = {
        0: 0.25,
        1: 0.5,
        3: 1.0,
        4: 1.0,
        6: 0.1 + 0.9 * 0.8535533905932737,  # progress 1/4: (1 + 0.7071067811865476) / 2
        8: 0.55,  # progress 1/2: 0.1 + 0.9 / 2
        12: 0.1,
        20: 0.1,
    }
    assert {step: cosine_factor(step, loop) for step in expected} == pytest.approx(expected, abs=1e-12)
    assert cosine_factor(0, LoopRecipe(warmup_steps=0)) == 1.0


@pytest.mark.parametrize("which", ["tokenrig", "skin_vae"])
def test_every_trainable_parameter_has_one_optimizer(which, fresh_model, vae_config):
    model = fresh_model if which == "tokenrig" else SkinVAE(vae_config)
    frozen = next(iter(model.parameters()))
    frozen.requires_grad_(False)
    matrices, other, rest = muon_split(model)
    assert not other
    both = [id(parameter) for parameter in (*matrices, *rest)]
    trainable = [id(parameter) for parameter in model.parameters() if parameter.requires_grad]
    assert sorted(both) == sorted(trainable)
    assert id(frozen) not in both
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    of_muon = {names[id(parameter)] for parameter in matrices}
    assert all(parameter.ndim == 2 for parameter in matrices)
    assert all("blocks." in name or "layers." in name for name in of_muon)
    inside = ("q_proj.weight", "down_proj.weight") if which == "tokenrig" else ("to_q.weight", "net.2.weight")
    assert all(any(name.endswith(end) for name in of_muon) for end in inside)
    outside = ("embed", "proj_in", "input_proj", "output_proj", "quant", "norm", "learned_queries", "bias")
    assert not [name for name in of_muon if any(part in name for part in outside)]
    optimizer = build_optimizer(model, LoopRecipe(weight_decay=0.3))
    groups = optimizer.param_groups
    assert [len(group["params"]) for group in groups] == [len(matrices), len(rest)]
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]


@pytest.mark.parametrize("which", ["tokenrig", "skin_vae"])
def test_muon_may_take_the_attention_matrices_alone(which, fresh_model, vae_config):
    model = fresh_model if which == "tokenrig" else SkinVAE(vae_config)
    matrices, other, rest = muon_split(model, "attention")
    both = [id(parameter) for parameter in (*matrices, *other, *rest)]
    assert sorted(both) == sorted(id(parameter) for parameter in model.parameters())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    of_muon = {names[id(parameter)] for parameter in matrices}
    ends = {"tokenrig": ("q_proj", "k_proj", "v_proj", "o_proj", "attn.c_qkv", "attn.c_proj", "c_q", "c_kv")}
    for end in ends.get(which, ("to_q", "to_k", "to_v", "to_out.0")):
        assert any(name.endswith(f"{end}.weight") for name in of_muon), end
    assert not [name for name in of_muon if "mlp" in name or ".ff." in name or "embed" in name]
    assert all("mlp" in names[id(one)] or ".ff." in names[id(one)] for one in other)
    # What decays is the same: the matrices of blocks, and with Muon those of the one cross attention too.
    of_blocks = {id(parameter) for parameter in muon_split(model)[0]}
    groups = build_optimizer(model, LoopRecipe(weight_decay=0.3, muon_matrices="attention")).param_groups
    assert [group["weight_decay"] for group in groups] == [0.3, 0.3, 0.0]
    assert of_blocks <= {id(parameter) for group in groups[:2] for parameter in group["params"]}


def test_adamw_alone_takes_everything_and_decays_the_same_matrices():
    model = Net()
    adamw = build_optimizer(model, LoopRecipe(optimizer="adamw", weight_decay=0.3))
    groups = {group["weight_decay"]: group["params"] for group in adamw.param_groups}
    assert [id(parameter) for parameter in groups[0.3]] == [id(model.blocks[0].weight)]
    assert len(groups[0.0]) == len(list(model.parameters())) - 1


def test_muon_needs_a_torch_that_has_it(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(RecipeError, match=r"'loop\.optimizer: muon' needs torch 2\.9"):
        build_optimizer(Net(), LoopRecipe())
