"""FSQ projections fitted to latents that were trained without quantisation."""

import numpy as np
import pytest
import torch
from torch import Tensor

from policy.skintokens.configuration import SkinVAEConfig
from policy.skintokens.quantiser_init import _van_der_corput, initialise_quantiser
from policy.skintokens.skin_vae import SkinVAE


def small_vae(levels: tuple[int, ...] = (7, 5, 4)) -> SkinVAE:
    torch.manual_seed(0)
    return SkinVAE(
        SkinVAEConfig(
            tokens_per_skin=4,
            cond_tokens=4,
            compress_tokens=4,
            sample_tokens=4,
            latent_channels=12,
            fsq_dim=12,
            num_attention_heads=2,
            width_encoder=16,
            width_decoder=16,
            num_layers_encoder=1,
            num_layers_decoder=1,
            embed_frequency=3,
            fsq_levels=levels,
            rounded_constants=False,
        )
    ).eval()


@pytest.fixture
def bones() -> tuple[Tensor, Tensor, Tensor]:
    """Points (300, 24, 3), normals, and weights that fall off around each bone's own centre."""
    rng = np.random.default_rng(1)
    points = rng.uniform(-1, 1, (300, 24, 3))
    normals = rng.normal(size=(300, 24, 3))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    centres = rng.uniform(-1, 1, (300, 1, 3))
    weights = np.exp(-4 * ((points - centres) ** 2).sum(-1))
    first, second, third = (torch.from_numpy(x.astype(np.float32)) for x in (points, normals, weights))
    return first, second, third


def error(vae: SkinVAE, latents: Tensor, bones: tuple[Tensor, Tensor, Tensor], tokens: int) -> float:
    """Share of the latents' variance over bones that the mean of the code vectors misses."""
    with torch.no_grad():
        vectors = vae.quantize(vae.encode_latents(*bones, tokens))[0].mean(1)
    wanted = latents.mean(1)
    residual = (vectors - vectors.mean(0)) - (wanted - wanted.mean(0))
    return float(residual.square().sum() / (wanted - wanted.mean(0)).square().sum())


def test_codes_distinguish_bones_and_more_tokens_do_so_more_finely(
    bones: tuple[Tensor, Tensor, Tensor],
) -> None:
    vae = small_vae()
    with torch.no_grad():
        latents = vae.encode_latents(*bones, 4)
        before = vae.quantize(latents)[1]
    initialise_quantiser(vae, *bones)
    with torch.no_grad():
        after = vae.quantize(vae.encode_latents(*bones, 4))[1]
    assert len(after[:, 0].unique()) > 3 * len(before[:, 0].unique())
    one, two, four = (error(vae, latents, bones, tokens) for tokens in (1, 2, 4))
    assert four < two < one
    assert four < 0.2


def test_tokens_lie_fractions_of_a_level_apart(bones: tuple[Tensor, Tensor, Tensor]) -> None:
    vae = small_vae()
    initialise_quantiser(vae, *bones)
    with torch.no_grad():
        means = vae.model.FSQ.project(vae.encode_latents(*bones, 4)).mean(0)
    in_levels = (means - means[0]) * (torch.tensor([7, 5, 4]) - 1) / 2
    wanted = torch.tensor([0.0, 0.5, 0.25, 0.75])[:, None].expand(-1, 3)
    torch.testing.assert_close(in_levels, wanted, atol=0.1, rtol=0)


def test_the_same_bones_give_the_same_codes(bones: tuple[Tensor, Tensor, Tensor]) -> None:
    first, second = small_vae(), small_vae()
    initialise_quantiser(first, *bones)
    initialise_quantiser(second, *bones)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


@pytest.mark.parametrize(
    ("index", "value"), [(0, 0.0), (1, 0.5), (2, 0.25), (3, 0.75), (4, 0.125), (6, 0.375), (7, 0.875)]
)
def test_van_der_corput_sequence(index: int, value: float) -> None:
    assert _van_der_corput(index) == value


def test_two_levels_are_both_used(bones: tuple[Tensor, Tensor, Tensor]) -> None:
    vae = small_vae((5, 4, 2))
    initialise_quantiser(vae, *bones)
    with torch.no_grad():
        digits = vae.model.FSQ.indices_to_digits(vae.encode_skin(*bones, 4).flatten())
    for levels, column in zip((5, 4, 2), digits.T, strict=True):
        assert len(column.unique()) == levels
        assert column.bincount().max() < 0.95 * len(column)
