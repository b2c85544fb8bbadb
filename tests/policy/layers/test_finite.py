"""Weights that are NaN or infinite are neither saved nor loaded, and are reported by file and name."""

import math
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from data.command_line import RunFailedError
from policy.bundle import RigPolicy, load, load_model
from policy.convert import main
from policy.layers.finite import non_finite_file, non_finite_names, training_state
from policy.policy_folder import PolicyError
from policy.skintokens.skin_vae import SkinVAE
from tests.policy.checkpoint_pairs import RIG, VAE, edited

NORM = "transformer.model.norm.weight"


@pytest.fixture
def policy(fresh_model, vae) -> RigPolicy:
    """A policy to spoil."""
    return RigPolicy(deepcopy(fresh_model), deepcopy(vae))


def spoil(file: Path, name: str, value: float = math.nan) -> None:
    tensors = load_file(file)
    tensors[name].view(-1)[-1] = value
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_one_bad_element_among_many_is_found(dtype, value):
    good = torch.randn(70, 111).to(dtype)
    bad = good.clone()
    bad[53, 77] = value
    tensors = {"good": good, "bad": bad, "empty": good[:0], "whole": torch.arange(3), "scalar": bad[53, 77]}
    tensors["large"] = torch.full(
        (3,), torch.finfo(dtype).max, dtype=dtype
    )  # finite, although its sum is not
    assert non_finite_names(tensors.items()) == ["bad", "scalar"]
    assert non_finite_names([]) == []


def test_the_state_of_an_optimizer_is_named_after_its_weights():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    optimizer.state[model.bias]["exp_avg_sq"].fill_(math.inf)
    names = [name for name, _ in training_state(model, optimizer)]
    assert {"weight", "bias", "exp_avg of weight", "exp_avg_sq of bias"} <= set(names)
    assert non_finite_names(training_state(model, optimizer)) == ["exp_avg_sq of bias"]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("part", ["the policy", "the skin VAE"])
def test_a_policy_that_is_not_finite_is_not_saved_and_the_old_one_kept(policy, tmp_path, part, dtype):
    policy.save(tmp_path / "policy", dtype)
    before = (tmp_path / "policy" / "model.safetensors").read_bytes()
    module = policy.model if part == "the policy" else policy.skin_vae
    with torch.no_grad():
        list(module.parameters())[5].view(-1)[0] = math.nan
    with pytest.raises(RunFailedError, match=f"{part} was not saved, because .* contains NaN or infinity"):
        policy.save(tmp_path / "policy", dtype)
    assert (tmp_path / "policy" / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_a_conversion_that_overflows_is_not_saved(policy, tmp_path):
    with torch.no_grad():
        policy.model.transformer.model.norm.weight[0] = 1e6  # float16 ends at 65,504
    policy.save(tmp_path / "a", torch.bfloat16)
    with pytest.raises(RunFailedError, match=f"because {NORM} contains"):
        policy.save(tmp_path / "b", torch.float16)


def test_files_that_are_not_finite_are_refused_by_name(policy, tmp_path):
    folder = tmp_path / "policy"
    policy.save(folder)
    assert non_finite_file(folder) is None
    spoil(folder / "model.safetensors", NORM)
    with pytest.raises(PolicyError, match=rf"policy: {NORM} contains NaN .*; use an earlier checkpoint"):
        load(folder)
    assert f"{folder / 'model.safetensors'}: {NORM} contains NaN" in (non_finite_file(folder) or "")
    policy.save(folder)
    name = next(iter(load_file(folder / "skin_vae" / "model.safetensors")))
    spoil(folder / "skin_vae" / "model.safetensors", name, math.inf)
    with pytest.raises(ValueError, match=rf"skin_vae/model\.safetensors: {name} contains NaN or infinity"):
        SkinVAE.load(folder / "skin_vae")
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"model\.safetensors: truncated"):
        non_finite_file(folder)


def test_adapters_that_are_not_finite_are_refused(policy, tmp_path):
    policy.save(tmp_path / "base")
    wrapped = get_peft_model(load_model(tmp_path / "base"), LoraConfig(target_modules=["q_proj"], r=2))
    wrapped.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    wrapped.save_pretrained(tmp_path / "lora")
    load_model(tmp_path / "lora")
    file = tmp_path / "lora" / "adapter_model.safetensors"
    spoil(file, sorted(load_file(file))[-1])
    with pytest.raises(PolicyError, match=r"adapter_model\.safetensors: .*lora_B.* contains NaN"):
        load_model(tmp_path / "lora")


def test_a_released_checkpoint_that_is_not_finite_is_not_imported(tmp_path, capsys):
    def change(content):
        name = next(name for name in content["state_dict"] if name.endswith(NORM))
        content["state_dict"][name][0] = math.nan

    bad = edited(tmp_path / "bad.ckpt", change)
    assert main(["import", str(bad), "--vae", str(VAE), "--out", str(tmp_path / "out")]) == 2
    assert f"bad.ckpt: {NORM} contains NaN or infinity; use an earlier" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["import", str(RIG), "--vae", str(VAE), "--out", str(tmp_path / "out")]) == 0
    spoil(tmp_path / "out" / "model.safetensors", NORM)
    assert main(["info", str(tmp_path / "out")]) == 0
    assert f"1 of them NOT FINITE, such as {NORM}" in capsys.readouterr().out
    assert main(["export", str(tmp_path / "out"), "--out", str(tmp_path / "x.ckpt")]) == 2
    assert f"{NORM} contains NaN" in capsys.readouterr().err
    assert not (tmp_path / "x.ckpt").exists()
