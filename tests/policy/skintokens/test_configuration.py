from dataclasses import replace

import pytest

from policy.skintokens.configuration import SkinVAEConfig


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 5}, "width 48 is not a multiple of num_attention_heads 5"),
        ({"fsq_dim": 16}, "latent_channels"),
        ({"tokens_per_skin": 9}, "learned queries"),
        ({"sample_tokens": 12}, "multiple of 8"),
        ({"sample_tokens": 16, "tokens_per_skin": 4}, "compress_tokens"),
    ],
)
def test_errors_name_the_setting(vae_config, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(vae_config, **changes)


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match="use_pmpee"):
        SkinVAEConfig.from_dict({"use_pmpee": True})
