import pytest
import torch

from policy.released.checkpoint import CheckpointError, read_checkpoint
from policy.released.release import parse_release
from tests.policy.checkpoint_pairs import VAE, edited


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("tokenizer_config", "continuous_range"), [-2, 2], r"continuous_range is \[-2, 2\]"),
        (("tokenizer_config", "cls_token_id"), {"a": 1}, r"the ids \[1\] must be 0, 1, 2, … without gaps"),
        (("tokenizer_config", "num_discrete"), None, "vocabulary.bins"),
        (("model_config", "llm", "pretrained_model_name_or_path"), "meta/Llama", "only Qwen3-0.6B"),
        (("model_config", "llm", "attention_bias"), True, "attention_bias is True"),
        (("model_config", "llm", "num_hidden_layers"), 3, "missing: transformer.model.layers.2"),
        (("model_config", "mesh_encoder", "__target__"), "michelangelo", "only 'michelangelo_encoder'"),
        (("model_config", "mesh_encoder", "query_method"), True, "query_method is True"),
        (("model_config", "mesh_encoder", "heads"), 5, "width 48 is not a multiple of heads 5"),
        (("model_config", "tokens_per_skin"), 9, "learned queries"),
        (("model_config",), None, "has no model_config"),
    ],
)
def test_unsupported_settings_are_refused(tmp_path, where, value, message):
    def change(content):
        place = content["hyper_parameters"]
        for name in where[:-1]:
            place = place[name]
        place[where[-1]] = value

    with pytest.raises(CheckpointError, match=message):
        parse_release(read_checkpoint(edited(tmp_path / "bad.ckpt", change)), read_checkpoint(VAE))


def test_all_missing_and_wrong_tensors_are_reported(tmp_path):
    def change(content):
        state = content["state_dict"]
        del state["model.transformer.model.norm.weight"]
        del state["model.vae.model.quant.bias"]
        del state["model.transformer.lm_head.weight"]
        state["model.output_proj.0.bias"] = torch.zeros(63)
        state["model.mesh_encoder.encoder.ln_post.weight"] = torch.zeros(48, 2)
        state["model.mesh_encoder.encoder.cross_attn.attn.c_q.bias"] = torch.zeros(48)

    bad = edited(tmp_path / "bad.ckpt", change)
    with pytest.raises(CheckpointError) as refusal:
        parse_release(read_checkpoint(bad), read_checkpoint(VAE))
    error = str(refusal.value)
    for part in [
        "bad.ckpt",
        "3 missing",
        "transformer.model.norm.weight",
        "vae.model.quant.bias",
        "transformer.lm_head.weight",
        "output_proj.0.bias (expected (64,), found (63,))",
        "mesh_encoder.encoder.ln_post.weight (expected (48,), found (48, 2))",
        "1 unexpected: mesh_encoder.encoder.cross_attn.attn.c_q.bias",
    ]:
        assert part in error, part
    assert "\n" not in error


def test_an_untied_head_is_refused_if_the_configuration_ties_it(tmp_path):
    def untie(content):
        state = content["state_dict"]
        state["model.transformer.lm_head.weight"] = state["model.transformer.lm_head.weight"] + 1

    rig = read_checkpoint(edited(tmp_path / "a.ckpt", untie))
    with pytest.raises(CheckpointError, match="although the configuration ties them"):
        parse_release(rig, read_checkpoint(VAE))
