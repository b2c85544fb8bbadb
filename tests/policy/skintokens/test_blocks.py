from dataclasses import replace

import torch

from policy.skintokens.skin_vae import SkinVAE


def test_perceivers_by_plain_loops(vae_config):
    torch.manual_seed(0)
    vae = SkinVAE(replace(vae_config, sample_tokens=16, tokens_per_skin=8)).double()
    perceiver = vae.down_perceiver
    x = torch.randn(2, 16, 32, dtype=torch.float64)
    found = perceiver(x)
    assert found.shape == (2, 8, 32)
    # q_vec (8 / 8, 8, 32) read as 8 tokens of 8 heads of 4 channels.
    query = perceiver.q_vec.detach().reshape(8, 8, 4)
    key, value = perceiver.k_proj(x).view(2, 16, 8, 4), perceiver.v_proj(x).view(2, 16, 8, 4)
    mixed = torch.empty(2, 8, 8, 4, dtype=torch.float64)
    for token in range(8):
        for head in range(8):
            scores = (key[:, :, head] * query[token, head]).sum(-1) / 2  # sqrt(4) = 2
            mixed[:, token, head] = (scores.softmax(-1)[..., None] * value[:, :, head]).sum(1)
    torch.testing.assert_close(found, perceiver.out_proj(mixed.flatten(2)))
