"""Decode attention on the CPU equals the plain reference at odd sizes, ragged rows, unequal prefixes."""

import pytest
import torch

from rl.engine.decode_attention import PrefixRows, decode_attention
from tests.rl.engine.attention_cases import CASES, Case, layout, reference, tensors


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_equals_the_reference(case: Case, dtype: torch.dtype) -> None:
    inputs = tensors(case, dtype)
    out = decode_attention(*inputs, layout(case))
    assert out.dtype == dtype
    tolerance = {torch.float32: 2e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]
    torch.testing.assert_close(out.double(), reference(case, *inputs), atol=tolerance, rtol=0)


def test_spare_slots_change_nothing() -> None:
    case = CASES[2]
    inputs = tensors(case)
    wide = layout(case, slots=5)
    assert wide.slots == 5
    torch.testing.assert_close(decode_attention(*inputs, wide), decode_attention(*inputs, layout(case)))


def test_the_layout_maps_rows_to_slots_and_back() -> None:
    rows = PrefixRows.of(torch.tensor([2, 0, 2]), torch.tensor([4, 5, 5]), 5)
    assert rows.slot_of_row.tolist() == [4, 0, 5]
    assert rows.row_of_slot.tolist() == [[1, -1], [-1, -1], [0, 2]]
    assert not rows.in_order
    assert rows.hidden is not None
    assert rows.hidden[:, 0, 0].tolist() == [[False] * 4 + [True], [False] * 5, [False] * 5]


def test_rows_in_order_are_recognised() -> None:
    rows = PrefixRows.of(torch.tensor([0, 0, 1, 1]), torch.tensor([5, 5]), 5)
    assert rows.in_order
    assert rows.hidden is None


@pytest.mark.parametrize("lengths", [[0, 3], [3, 6]])
def test_refuses_lengths_outside_the_buffers(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="between 1 and 5"):
        PrefixRows.of(torch.tensor([0, 1]), torch.tensor(lengths), 5)


def test_refuses_too_few_slots() -> None:
    with pytest.raises(ValueError, match="3 rows but only 2 slots"):
        PrefixRows.of(torch.tensor([0, 0, 0]), torch.tensor([5]), 5, slots=2)
