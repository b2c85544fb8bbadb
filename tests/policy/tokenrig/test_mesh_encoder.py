from dataclasses import replace

import numpy as np
import pytest
import torch

from policy.tokenrig.mesh_encoder import MeshEncoder, MeshEncoderConfig

TOLERANCE = {"rtol": 0, "atol": 2e-5}
TINY = MeshEncoderConfig(width=48, heads=4, num_encoder_layers=2, token_num=16)


@pytest.fixture(scope="module")
def encoder(released_weights) -> MeshEncoder:
    encoder = MeshEncoder(TINY)
    prefix = "mesh_encoder."
    encoder.load_state_dict(
        {k[len(prefix) :]: t for k, t in released_weights.items() if k.startswith(prefix)}
    )
    return encoder.eval().requires_grad_(False)


def test_released_latents(encoder, golden):
    points, normals = golden["points"][None], golden["normals"][None]
    torch.testing.assert_close(encoder(points, normals), golden["mesh_latents"], **TOLERANCE)
    count = int(golden["meshsmall_n"])
    torch.testing.assert_close(
        encoder(points[:, :count], normals[:, :count]), golden["meshsmall_latents"], **TOLERANCE
    )
    torch.testing.assert_close(
        encoder(golden["meshbatch_points"], golden["meshbatch_normals"]),
        golden["meshbatch_latents"],
        **TOLERANCE,
    )


def test_training_draw(encoder, golden):
    points, normals = golden["points"][None], golden["normals"][None]
    first = encoder(points, normals, rng=np.random.default_rng(3))
    assert torch.equal(first, encoder(points, normals, rng=np.random.default_rng(3)))
    assert not torch.equal(first, encoder(points, normals))


def test_switches_change_the_parameters():
    names = set(MeshEncoder(TINY).state_dict())
    biased = set(MeshEncoder(replace(TINY, qkv_bias=True)).state_dict())
    assert {name.rsplit(".", 2)[-2] for name in biased - names} == {"c_q", "c_kv", "c_qkv"}
    bare = set(MeshEncoder(replace(TINY, use_ln_post=False)).state_dict())
    assert names - bare == {"encoder.ln_post.weight", "encoder.ln_post.bias"}


def test_drawn_points_only(golden):
    torch.manual_seed(0)
    encoder = MeshEncoder(replace(TINY, use_full_input=False)).eval()
    points, normals = golden["points"][None], golden["normals"][None]
    unseen = torch.ones(600, dtype=torch.bool)
    unseen[golden["mesh_choice"]] = False
    moved = points.clone()
    moved[:, unseen] = 0.0
    assert torch.equal(encoder(points, normals), encoder(moved, normals))


def test_several_token_numbers(golden):
    encoder = MeshEncoder(replace(TINY, token_num=(4, 16, 8)))
    points, normals = golden["points"][None], golden["normals"][None]
    assert encoder(points, normals).shape[1] == encoder.config.tokens == 16
    sizes = {encoder(points, normals, rng=np.random.default_rng(i)).shape[1] for i in range(12)}
    assert sizes == {4, 8, 16}


def test_initial_weights():
    torch.manual_seed(0)
    encoder = MeshEncoder(MeshEncoderConfig(width=64, heads=4, num_encoder_layers=1, token_num=4))
    fc = encoder.encoder.cross_attn.mlp.c_fc
    assert fc.weight.std().item() == pytest.approx(0.25 / 8, rel=0.05)  # 0.25 / sqrt(64)
    assert fc.bias.abs().max() == 0
    # PyTorch's default for input_proj: uniform within 1 / sqrt(54).
    assert encoder.encoder.input_proj.weight.abs().max().item() == pytest.approx(54**-0.5, rel=0.01)


def test_low_precision_runs(encoder, golden):
    low = MeshEncoder(TINY).bfloat16()
    low.load_state_dict(encoder.state_dict())
    found = low(golden["points"][None], golden["normals"][None])
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), golden["mesh_latents"], rtol=0, atol=0.1)


def test_configuration_round_trip_and_errors():
    config = replace(TINY, token_num=(4, 8))
    assert MeshEncoderConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="widht"):
        MeshEncoderConfig.from_dict({"widht": 3})
    with pytest.raises(ValueError, match="is not a multiple of heads"):
        replace(TINY, heads=5)
    with pytest.raises(ValueError, match=r"\(M, N, 3\)"):
        MeshEncoder(TINY)(torch.zeros(5, 3), torch.zeros(5, 3))
