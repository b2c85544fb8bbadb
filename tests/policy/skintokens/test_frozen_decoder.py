"""The inference copy of the decoder against the decoder itself: numbers, dtypes, devices."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from policy.skintokens import frozen_decoder
from policy.skintokens.skin_vae import SkinVAE


@pytest.fixture
def bones(golden):
    codes = torch.randint(0, 2560, (7, 4), generator=torch.Generator().manual_seed(3))
    return codes, golden["cond_latents"], golden["points"][:61], golden["normals"][:61]


def plain(vae, codes, condition, points, normals):
    """The decoder that training uses, in float64: the truth for float32."""
    vectors = vae.codes_to_latents(codes)
    features = vae._features(points[None], normals[None])
    exact = vae.double()
    try:
        decoder, count = exact.model.decoder, len(codes)
        joined = torch.cat([vectors.double(), condition.double().expand(count, -1, -1)], dim=1)
        key, value = decoder.states(exact.model.post_quant(joined))
        residual, query = decoder.query_states(features.double())
        hidden = decoder.cross.finish(residual, query, key, value)
        return decoder.proj_out(decoder.norm_out(hidden)).squeeze(-1).sigmoid().float()
    finally:
        vae.float()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("max_elements", [None, 4 * 48 * 50])
def test_float32_is_the_decoder(vae, bones, monkeypatch, packed, max_elements):
    if not packed:
        monkeypatch.setattr(frozen_decoder, "_packs", lambda device, dtype: False)
    found = vae.decode(*bones, max_elements=max_elements)
    with torch.no_grad():
        torch.testing.assert_close(found, plain(vae, *bones), rtol=0, atol=2e-6)


def test_a_condition_of_each_bone(vae, bones):
    codes, condition, points, normals = bones
    others = torch.cat([condition * scale for scale in torch.linspace(0.5, 1.5, len(codes))])
    found = vae.decode(codes, others, points, normals, max_elements=4 * 48 * 50)
    for bone in range(len(codes)):
        alone = vae.decode(codes[bone : bone + 1], others[bone], points, normals)
        torch.testing.assert_close(found[bone : bone + 1], alone, rtol=0, atol=2e-6)


@pytest.mark.parametrize("packed", [True, False])
def test_bfloat16_is_close_and_float32_outside(vae, bones, monkeypatch, packed):
    if not packed:
        monkeypatch.setattr(frozen_decoder, "_packs", lambda device, dtype: False)
    exact = vae.decode(*bones)
    found = vae.decode(*bones, decoder=vae.frozen_decoder(torch.bfloat16))
    assert found.dtype == torch.float32
    assert 0 < (found - exact).abs().max() < 0.03
    assert not torch.equal(found.bfloat16().float(), found)  # the sigmoid's argument is float32


def test_no_gradient_and_no_view_of_the_weights(vae, bones):
    decoder = vae.frozen_decoder()
    before = vae.decode(*bones, decoder=decoder)
    assert not before.requires_grad
    bias = vae.model.decoder.blocks[0].ff.net[2].bias
    kept = bias.detach().clone()
    try:
        with torch.no_grad():
            bias += 1
        assert torch.equal(vae.decode(*bones, decoder=decoder), before)
        assert not torch.equal(vae.decode(*bones), before)
    finally:
        with torch.no_grad():
            bias.copy_(kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_away_from_the_cpu_no_value_is_read(vae, dtype):
    """The path that CUDA takes, on tensors without values: a copy to the host would raise an error."""
    config = vae.config
    with torch.device("meta"):
        empty = SkinVAE(config)
        points = torch.zeros(4096, 3)
        weights = empty.frozen_decoder(dtype)(
            torch.zeros(816, 4, config.latent_channels),
            torch.zeros(1, config.cond_tokens, config.latent_channels),
            empty._features(points[None], points[None])[0],
        )
    assert weights.shape == (816, 4096)
    assert (weights.device.type, weights.dtype) == ("meta", torch.float32)
    with pytest.raises((RuntimeError, NotImplementedError)):
        weights.sum().item()


class _Products(TorchDispatchMode):
    """Numbers of rows that oneDNN's packed products get; it compiles and keeps a kernel for each."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: set[int] = set()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if "_linear_pointwise" in str(function):
            self.rows.add(arguments[0].shape[0])
        return function(*arguments, **(keywords or {}))


def test_rigs_of_any_size_use_few_kernels(vae, golden):
    """Otherwise a reward worker grows for as long as rigs differ: by 260 MB in 140 steps, when measured."""
    if not frozen_decoder._packs(torch.device("cpu"), torch.float32):
        pytest.skip("this torch has no packed products")
    decoder = vae.frozen_decoder()
    random = torch.Generator().manual_seed(5)
    with _Products() as products:
        for bones in range(1, 40):
            codes = torch.randint(0, 2560, (bones, 4), generator=random)
            points, normals = golden["points"][: 20 + bones], golden["normals"][: 20 + bones]
            vae.decode(codes, golden["cond_latents"], points, normals, decoder=decoder)
    assert 3 < len(products.rows) <= 16, products.rows
