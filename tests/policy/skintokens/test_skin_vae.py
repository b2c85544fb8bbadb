from dataclasses import replace

import numpy as np
import pytest
import torch

from policy.skintokens.skin_vae import SkinVAE

TOLERANCE = {"rtol": 0, "atol": 2e-5}


@pytest.fixture(scope="module")
def cloud(golden):
    return golden["points"], golden["normals"]


def test_released_condition(vae, rounded_vae, golden, cloud):
    points, normals = cloud[0][None], cloud[1][None]
    seed = int(golden["cond_seed"])
    torch.testing.assert_close(
        vae.encode_condition(points, normals, seed), golden["cond_latents"], **TOLERANCE
    )
    torch.testing.assert_close(
        rounded_vae.encode_condition(points, normals, seed), golden["bf16buf_cond_latents"], **TOLERANCE
    )


def test_released_skin_codes(vae, golden, cloud):
    latents = vae.encode_latents(cloud[0], cloud[1], golden["enc_skin"])
    torch.testing.assert_close(latents, golden["enc_z"], **TOLERANCE)
    vectors, indices = vae.quantize(latents)
    torch.testing.assert_close(vectors, golden["enc_fsq_out"], **TOLERANCE)
    assert indices.tolist() == golden["enc_fsq_indices"].tolist()
    one_mesh = vae.encode_skin(cloud[0][None], cloud[1][None], golden["enc_skin"])
    per_bone = vae.encode_skin(
        cloud[0].expand(3, -1, -1), cloud[1].expand(3, -1, -1), golden["enc_skin"], tokens=4
    )
    assert one_mesh.tolist() == per_bone.tolist() == golden["enc_fsq_indices"].tolist()


def test_released_weights_from_codes(vae, rounded_vae, golden, cloud):
    codes = golden["dec_indices"]
    torch.testing.assert_close(vae.codes_to_latents(codes), golden["dec_z"], **TOLERANCE)
    torch.testing.assert_close(
        vae.decode(codes, golden["cond_latents"], *cloud), golden["dec_weights"], **TOLERANCE
    )
    torch.testing.assert_close(
        rounded_vae.decode(codes, golden["bf16buf_cond_latents"], *cloud),
        golden["bf16buf_dec_weights"],
        **TOLERANCE,
    )


@pytest.mark.parametrize("max_elements", [1, 4 * 48 * 7, 4 * 48 * 1100, 10**9])
def test_chunks_do_not_change_the_weights(vae, golden, cloud, max_elements):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 2560, (5, 4), generator=generator)
    count = 3 if max_elements == 1 else 97  # one cell per chunk is slow
    points, normals = cloud[0][:count], cloud[1][:count]
    plain = [
        vae.decode_logits(
            vae.codes_to_latents(codes[i : i + 1]), golden["cond_latents"], points[None], normals[None]
        )
        for i in range(5)
    ]
    found = vae.decode(codes, golden["cond_latents"][0], points, normals, max_elements=max_elements)
    torch.testing.assert_close(found, torch.cat(plain).sigmoid(), rtol=0, atol=2e-6)


def test_bones_of_several_meshes(vae, golden):
    points, normals = golden["meshbatch_points"], golden["meshbatch_normals"]
    conditions = vae.encode_condition(points, normals)
    codes = torch.randint(0, 2560, (5, 4), generator=torch.Generator().manual_seed(1))
    mesh = torch.tensor([1, 0, 1, 1, 0])
    queries = [points[0, :40], points[1, :70]]
    directions = [normals[0, :40], normals[1, :70]]
    found = vae.decode_meshes(codes, mesh, conditions, queries, directions)
    for m in range(2):
        assert found[m].shape == (int((mesh == m).sum()), len(queries[m]))
        alone = vae.decode(codes[mesh == m], conditions[m : m + 1], queries[m], directions[m])
        torch.testing.assert_close(found[m], alone, rtol=0, atol=2e-6)
    own = vae.decode(codes, conditions[mesh], queries[0], directions[0])
    torch.testing.assert_close(own[1], found[0][0], rtol=0, atol=2e-6)
    assert vae.decode(codes[:0], conditions[:1], queries[0], directions[0]).shape == (0, 40)


def test_condition_follows_its_seed(vae, cloud):
    points, normals = cloud[0][None], cloud[1][None]
    first = vae.encode_condition(points, normals, seed=5)
    assert torch.equal(first, vae.encode_condition(points, normals, seed=5))
    assert not torch.equal(first, vae.encode_condition(points, normals, seed=6))


def test_training_pass_reaches_every_parameter(vae_config, golden):
    torch.manual_seed(0)
    vae = SkinVAE(vae_config)
    points, normals = golden["meshbatch_points"][:, :120], golden["meshbatch_normals"][:, :120]
    weights = torch.rand(3, 120, generator=torch.Generator().manual_seed(0))
    mesh = torch.tensor([0, 1, 1])
    inputs = (points[mesh], normals[mesh], weights, points, normals, points[mesh, :50], normals[mesh, :50])
    logits = vae(*inputs, tokens=6, mesh_index=mesh, rng=np.random.default_rng(0))
    assert logits.shape == (3, 50)
    logits.square().sum().backward()
    without = [name for name, p in vae.named_parameters() if p.grad is None or not p.grad.abs().any()]
    assert without == []
    queries = vae.model.encoder.learned_queries
    assert queries.grad[:6].abs().sum(1).min() > 0
    assert queries.grad[6:].abs().max() == 0  # six tokens were requested


def test_training_pass_is_encode_then_decode(vae, golden, cloud):
    points, normals = cloud[0][None], cloud[1][None]
    logits = vae(
        *(x.expand(3, -1, -1) for x in (points, normals)),
        golden["enc_skin"],
        points,
        normals,
        points.expand(3, -1, -1),
        normals.expand(3, -1, -1),
    )
    codes = vae.encode_skin(points, normals, golden["enc_skin"])
    weights = vae.decode(codes, vae.encode_condition(points, normals), *cloud)
    torch.testing.assert_close(logits.sigmoid(), weights, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_pmpe": False, "embed_include_pi": False},
        {"is_learned_queries": False},
        {"width_encoder": 32, "width_decoder": 64},
        {"compress_tokens": 8, "sample_tokens": 16, "tokens_per_skin": 8},
        {"latent_channels": 4, "fsq_dim": 4},
    ],
)
def test_other_layouts(vae_config, golden, cloud, changes, tmp_path):
    torch.manual_seed(0)
    vae = SkinVAE(replace(vae_config, **changes)).eval()
    codes = vae.encode_skin(cloud[0], cloud[1], golden["enc_skin"])
    assert codes.shape == (3, vae.config.tokens_per_skin)
    condition = vae.encode_condition(cloud[0][None], cloud[1][None])
    weights = vae.decode(codes, condition, cloud[0][:50], cloud[1][:50])
    assert weights.shape == (3, 50)
    vae.save(tmp_path)
    again = SkinVAE.load(tmp_path)
    assert again.config == vae.config
    torch.testing.assert_close(
        again.decode(codes, condition, cloud[0][:50], cloud[1][:50]), weights, rtol=0, atol=0
    )


def test_initial_weights(vae_config):
    torch.manual_seed(0)
    vae = SkinVAE(replace(vae_config, width_encoder=64, width_decoder=64))
    assert vae.model.quant.weight.std().item() == pytest.approx(0.25 / 8, rel=0.05)  # 0.25 / sqrt(64)
    assert vae.model.post_quant.weight.std().item() == pytest.approx(0.25 / 32**0.5, rel=0.06)
    assert vae.model.encoder.learned_queries.std().item() == pytest.approx(0.02, rel=0.15)
    assert vae.model.decoder.proj_out.bias.abs().max() == 0


def test_low_precision(vae, vae_config, golden, cloud):
    low = SkinVAE(vae_config).bfloat16()
    low.load_state_dict(vae.state_dict())
    weights = low.decode(golden["dec_indices"], golden["cond_latents"].bfloat16(), *cloud)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, golden["dec_weights"], rtol=0, atol=0.1)


def test_saved_in_bfloat16(vae, golden, cloud, tmp_path):
    vae.save(tmp_path, dtype=torch.bfloat16)
    again = SkinVAE.load(tmp_path)  # the reference weights are exact in bf16
    assert next(again.parameters()).dtype == torch.float32
    torch.testing.assert_close(
        again.decode(golden["dec_indices"], golden["cond_latents"], *cloud),
        golden["dec_weights"],
        **TOLERANCE,
    )


def test_errors_name_the_problem(vae, golden, cloud, tmp_path):
    with pytest.raises(ValueError, match="tokens must be 1 to 8"):
        vae.encode_skin(cloud[0], cloud[1], golden["enc_skin"], tokens=9)
    with pytest.raises(ValueError, match=r"codes must be \(bones, tokens\)"):
        vae.decode(torch.zeros(4, dtype=torch.int64), golden["cond_latents"], *cloud)
    with pytest.raises(ValueError, match="one per bone"):
        vae.decode(golden["dec_indices"], golden["cond_latents"].expand(2, -1, -1), *cloud)
    with pytest.raises(ValueError, match=r"weights must be \(B, N\)"):
        vae.encode_skin(cloud[0], cloud[1], golden["enc_skin"][:, :5])
    vae.save(tmp_path)
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text().replace(": true", ": false"))
    with pytest.raises(ValueError, match="learned_queries"):
        SkinVAE.load(tmp_path)
