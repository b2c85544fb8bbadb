"""Operations and bytes of the released size, against figures worked out by hand."""

import pytest
import torch

from rl.benchmarks.limits import (
    Peaks,
    body_parameters,
    cache_bytes,
    decoder_flops,
    layer_parameters,
    machine_peaks,
    token_seconds,
    update_flops,
)
from rl.benchmarks.sizes import SIZES

RELEASED = SIZES["released"]


def test_parameters_of_a_layer():
    # q and o: 896 x 2048 each, k and v: 896 x 1024 each, MLP: three of 896 x 3072
    assert layer_parameters(RELEASED) == 2 * 896 * 2048 + 2 * 896 * 1024 + 3 * 896 * 3072 == 13_762_560
    assert body_parameters(RELEASED) == 28 * 13_762_560


def test_keys_and_values_of_a_token():
    # two, 28 layers, 8 heads of 128, two bytes
    assert cache_bytes(RELEASED) == 2 * 28 * 8 * 128 * 2 == 114_688


def test_a_token_is_limited_by_memory():
    """0.83 GB of weights, a 59 MB prefix per mesh, 17 MB of own keys per row, at 3.35 TB/s."""
    peaks = Peaks(989e12, 3.35e12, "")
    skin_head = 4 / 7 * 32_768 * 896 * 2
    weights = 2 * body_parameters(RELEASED) + skin_head
    own = 192 * 296 / 2 * 114_688
    assert token_seconds(RELEASED, peaks) == pytest.approx((weights + 8 * 514 * 114_688 + own) / 3.35e12)
    assert 1.2e-3 < token_seconds(RELEASED, peaks) < 1.5e-3


def test_an_update_reads_each_prefix_once():
    tokens = 192 * 296
    prefixes = 8 * 514
    body = 6 * body_parameters(RELEASED) * (tokens + prefixes)
    head = 6 * (4 / 7) * tokens * 32_768 * 896
    pairs = tokens * (514 + 148) + 8 * 514**2 / 2
    assert update_flops(RELEASED, tokens) == pytest.approx(body + head + 12 * pairs * 2048 * 28)


def test_the_decoder_costs_11_8_mflop_per_bone_and_point():
    one = decoder_flops(RELEASED, 1)
    block = 2 * 388 * 12 * 768**2 + 4 * 388**2 * 768
    assert one - 10 * block == pytest.approx(11.8e6 * 4096, rel=0.01)


def test_a_cpu_is_measured():
    peaks = machine_peaks(torch.device("cpu"))
    assert peaks.flops > 1e9
    assert peaks.bandwidth > 1e8
