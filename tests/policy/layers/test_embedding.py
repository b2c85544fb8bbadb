import math

import pytest
import torch

from policy.layers.embedding import embed_points, embedded_size, frequencies, phases

TOLERANCE = {"rtol": 0, "atol": 2e-5}


def test_plain_features_by_hand():
    # F = 2, frequencies 1 and 2: [x y z | sin x, sin 2x, sin y, sin 2y, ... | cos ...], axis-major.
    x, y, z = 0.5, -1.0, 0.25
    expected = [x, y, z]
    for wave in (math.sin, math.cos):
        for value in (x, y, z):
            expected += [wave(value), wave(2 * value)]
    found = embed_points(torch.tensor([x, y, z]), num_freqs=2, include_pi=False)
    assert found.shape == (embedded_size(2),) == (15,)
    torch.testing.assert_close(found, torch.tensor(expected))


def test_phase_shift_by_hand():
    # F = 2: phases 2 pi (2^(1/2) + 1/2) and 2 pi (2^0 + 1) = 4 pi.
    torch.testing.assert_close(
        phases(2), torch.tensor([2 * math.pi * (math.sqrt(2) + 0.5), 4 * math.pi]), rtol=1e-6, atol=0
    )
    # x = 1, slot 1: sin(2 pi) + sin(pi/2 + 4 pi) = 0 + 1; cos(2 pi) + cos(pi/2 + 4 pi) = 1 + 0.
    found = embed_points(torch.tensor([1.0, 0.0, 0.0]), num_freqs=2, include_pi=True, pmpe=True)
    assert found[3 + 1] == pytest.approx(1.0, abs=1e-5)
    assert found[9 + 1] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(("prefix", "rounded"), [("", False), ("bf16buf_", True)])
def test_constants_of_the_released_code(golden, prefix, rounded):
    torch.testing.assert_close(
        frequencies(8, True, rounded), golden[f"{prefix}vae_frequencies"], rtol=1e-7, atol=0
    )
    torch.testing.assert_close(phases(8, rounded), golden[f"{prefix}vae_phase"], rtol=1e-7, atol=0)
    torch.testing.assert_close(
        embed_points(golden["embed5_points"], 8, True, pmpe=True, rounded=rounded),
        golden[f"{prefix}vae_embed5"],
        **TOLERANCE,
    )


def test_mesh_features_of_the_released_code(golden):
    found = embed_points(golden["embed5_points"], 8, include_pi=False)
    torch.testing.assert_close(found, golden["mesh_fourier5"], **TOLERANCE)


def test_low_precision_points_are_embedded_in_fp32():
    points = torch.tensor([[0.5, -0.25, 0.125]])  # exact in bf16
    found = embed_points(points.bfloat16(), 8, True, pmpe=True)
    torch.testing.assert_close(found, embed_points(points, 8, True, pmpe=True), rtol=0, atol=0)


def test_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(\.\.\., 3\)"):
        embed_points(torch.zeros(4, 2), 8, True)
