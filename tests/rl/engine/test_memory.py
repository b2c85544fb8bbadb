"""Buffers of keys and values: their bytes, their stages, and the refusal of what does not fit."""

import pytest
import torch

from rl.engine.memory import HEADROOM, CacheShape, check_memory, free_bytes, resized, stage_of

RELEASED = CacheShape(layers=28, kv_heads=8, head_dim=128, itemsize=2)
CPU = torch.device("cpu")


def test_bytes_of_the_released_size() -> None:
    assert RELEASED.per_position == 114_688  # 2 * 28 layers * 8 heads * 128 numbers * 2 bytes
    assert RELEASED.own(192, 2048) == pytest.approx(45.1e9, rel=1e-3)
    assert RELEASED.own(192, 256) == pytest.approx(5.64e9, rel=1e-3)
    assert RELEASED.prefixes(8, 514) == 8 * 514 * 114_688


def test_growth_counts_the_difference_and_one_layer_twice() -> None:
    shape = CacheShape(layers=4, kv_heads=1, head_dim=2, itemsize=4)
    old, new = shape.own(3, 8), shape.own(3, 16)
    assert shape.growth(3, 16) == new - old + old // 4


@pytest.mark.parametrize(
    ("length", "limit", "stage"),
    [(1, 2048, 256), (256, 2048, 256), (257, 2048, 512), (1025, 2048, 2048), (300, 400, 400), (5, 20, 20)],
)
def test_stages_double_up_to_the_limit(length: int, limit: int, stage: int) -> None:
    assert stage_of(length, limit) == stage


def test_a_length_beyond_the_limit_is_an_error() -> None:
    with pytest.raises(ValueError, match="401 own positions"):
        stage_of(401, 400)


def test_resizing_keeps_the_entries_of_the_kept_rows() -> None:
    buffer = torch.randn(4, 2, 6, 3)
    rows = torch.tensor([3, 1])
    grown = resized(buffer, 10, rows)
    assert grown.shape == (2, 2, 10, 3)
    assert torch.equal(grown[:, :, :6], buffer[rows])
    assert torch.equal(grown[:, :, 6:], torch.zeros(2, 2, 4, 3))
    assert torch.equal(resized(buffer, 5), buffer[:, :, :5])


def test_what_fits_passes() -> None:
    check_memory(100, 100 + HEADROOM, 1, 1, CPU)
    check_memory(1 << 50, free_bytes(CPU), 1, 1, CPU)  # the CPU is not checked


def test_what_does_not_fit_names_the_values_to_change() -> None:
    with pytest.raises(MemoryError) as error:
        check_memory(RELEASED.own(192, 2048), 40 << 30, 192, 2048, torch.device("cuda:1"))
    assert str(error.value) == (
        "sampling 192 rows of up to 2048 tokens needs 43.0 GiB for keys and values, but cuda:1 has 40.0 GiB "
        "free: lower rollout.batch_size (rows sampled at once) or train.max_completion_length, or set "
        "rollout.engine=plain"
    )
