import json

import pytest

from policy.tokenrig.configuration import TokenRigConfig


def test_configuration_follows_the_vocabulary(tiny_config, tmp_path):
    assert tiny_config.vocab_size == 267 + 2560 + 1
    assert (tiny_config.bos_token_id, tiny_config.eos_token_id, tiny_config.pad_token_id) == (257, 2827, 259)
    tiny_config.save_pretrained(tmp_path)
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())
    released = TokenRigConfig()
    assert released.vocab_size == 33036
    assert released.get_qwen3().rope_parameters["rope_theta"] == 1e6
    with pytest.raises(ValueError, match="heds"):
        TokenRigConfig(mesh_encoder={"heds": 8})
