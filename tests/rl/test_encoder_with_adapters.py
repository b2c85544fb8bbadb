"""A mesh encoder beside LoRA adapters: trained, sampled with, saved, resumed, exported; not in the KL."""

import json

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file

from policy.bundle import load, load_model
from tests.rl.commands import metrics, steps
from tests.rl.training_runs import Run, weights

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

BOTH = {
    "policy.lora": {"rank": 2},
    "policy.train_mesh_encoder": True,
    "train.learning_rate": 1e-2,
    "train.beta": 0.1,
    "eval.before_and_after": False,
}
PARTS = ("mesh_encoder.", "output_proj.")


def of_the_encoder(names):
    return {name for name in names if name.startswith(PARTS)}


def test_the_encoder_is_trained_and_sampled_with_and_the_reference_keeps_the_original(make_recipe):
    run = Run(make_recipe(BOTH))
    trainer = run.trainer()
    trainable = [name for name, weight in trainer.model.named_parameters() if weight.requires_grad]
    assert {name.split(".")[2] for name in trainable} == {"mesh_encoder", "output_proj", "transformer"}
    original = trainer.mesh_embeds(trainer.model, torch.arange(2))
    trainer.train()

    # What the sampler conditions on comes from the trained encoder, and from the original without adapters.
    model = trainer.accelerator.unwrap_model(trainer.model)
    trained = trainer.mesh_embeds(model, torch.arange(2))
    assert (trained - original).abs().max() > 1e-3
    with model.disable_adapter():
        torch.testing.assert_close(trainer.mesh_embeds(model, torch.arange(2)), original, rtol=0, atol=0)
    assert all(layer.active_adapters for layer in model.modules() if isinstance(layer, BaseTunerLayer))
    torch.testing.assert_close(trainer.mesh_embeds(model, torch.arange(2)), trained, rtol=0, atol=0)

    # The KL term's reference is the policy the run began with; without its encoder, the first KL would be 0.
    rows = run.metrics()
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert rows[-1]["kl"] > 1e-5

    merged = model.merge_and_unload()
    torch.testing.assert_close(merged.encode_mesh(*run.bank.clouds(torch.arange(2), merged.device)), trained)
    names = {name for name, weight in merged.named_parameters() if not torch.equal(weight, run.before[name])}
    assert len(of_the_encoder(names)) > 0.9 * len(of_the_encoder(run.before))


def test_checkpoints_and_the_exported_policy_hold_the_encoder_and_resuming_is_exact(
    here, tmp_path, policy_path
):
    run, unbroken = tmp_path / "run", tmp_path / "unbroken"
    assert here({**BOTH, "train.max_steps": 1}) == 0
    checkpoint = run / "checkpoints" / "checkpoint-1"
    saved = load_file(checkpoint / "adapter_model.safetensors")
    assert any("mesh_encoder" in name for name in saved)
    assert any("output_proj" in name for name in saved)
    config = json.loads((checkpoint / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["mesh_encoder", "output_proj"]
    # A checkpoint loads as the policy that the run exports.
    exported = weights(load(run / "policy").model)
    for name, weight in weights(load_model(checkpoint)).items():
        torch.testing.assert_close(weight, exported[name], rtol=0, atol=0)
    start = weights(load(policy_path).model)
    assert any(not torch.equal(exported[name], start[name]) for name in of_the_encoder(start))

    assert here({**BOTH, "train.max_steps": 3}) == 0
    assert here({**BOTH, "train.max_steps": 3}, f"output_dir={unbroken}") == 0
    assert steps(run) == [1, 2, 3]
    assert metrics(run) == metrics(unbroken)
    file = "policy/model.safetensors"
    assert (run / file).read_bytes() == (unbroken / file).read_bytes()
