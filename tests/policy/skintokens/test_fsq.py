import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from policy.skintokens.fsq import FSQ

TOLERANCE = {"rtol": 0, "atol": 2e-5}


@pytest.fixture(scope="module")
def fsq(released_weights) -> FSQ:
    fsq = FSQ((8, 8, 8, 5), 32)
    prefix = "vae.model.FSQ."
    fsq.load_state_dict({k[len(prefix) :]: t for k, t in released_weights.items() if k.startswith(prefix)})
    return fsq.eval()


def test_first_level_is_the_least_significant_digit():
    # Levels (3, 5): basis 1, 3. Index 7 = 1 + 2 * 3: digits 1 and 2; codes (1 - 1) / 1 = 0, (2 - 2) / 2 = 0.
    # Index 14, the last: digits 2 and 4, codes 1 and 1.
    fsq = FSQ((3, 5), dim=2)
    assert fsq.project_in is None
    assert fsq.project_out is None
    assert fsq.indices_to_digits(torch.tensor([7, 14])).tolist() == [[1, 2], [2, 4]]
    assert fsq.indices_to_levels(torch.tensor([7, 14])).tolist() == [[0, 0], [1, 1]]
    assert fsq.codes_to_indices(torch.tensor([[0.0, 0.0], [1.0, 1.0]])).tolist() == [7, 14]


def test_saturated_values_take_the_outer_codes():
    # Even level 8: integers -4..3 over 4; odd level 5: -2..2 over 2.
    fsq = FSQ((8, 5), dim=2)
    codes = fsq.quantize(torch.tensor([[-50.0, -50.0], [50.0, 50.0], [0.0, 0.0]]))
    assert codes.tolist() == [[-1.0, -1.0], [0.75, 1.0], [0.0, 0.0]]


@given(st.lists(st.integers(2, 9), min_size=1, max_size=4), st.integers(-(10**6), 10**6))
def test_any_integer_counts_modulo_the_codebook(levels, index):
    fsq = FSQ(levels, dim=len(levels))
    codes = fsq.indices_to_levels(torch.tensor(index))
    assert fsq.codes_to_indices(codes).item() == index % fsq.codebook_size


def test_every_code_is_a_fixed_point_of_the_quantiser():
    fsq = FSQ((8, 5, 3), dim=3)
    indices = torch.arange(fsq.codebook_size)
    half = torch.tensor([4, 2, 1])
    integers = fsq.indices_to_levels(indices) * half
    # Undo the bound: z = atanh((r + offset) / half) - shift with the float halves of the formula.
    span = (torch.tensor([8, 5, 3]) - 1) * 1.001 / 2
    offset = torch.tensor([0.5, 0.0, 0.0])
    z = ((integers + offset) / span).clamp(-0.9999, 0.9999).atanh() - (offset / span).atanh()
    assert fsq.codes_to_indices(fsq.quantize(z)).tolist() == indices.tolist()


def test_released_codes_and_indices(fsq, golden):
    indices = golden["fsq_indices"]  # the last five out of range
    assert fsq.indices_to_digits(indices).tolist() == golden["fsq_level_indices"].tolist()
    torch.testing.assert_close(fsq.indices_to_levels(indices), golden["fsq_codes"], **TOLERANCE)
    torch.testing.assert_close(fsq.indices_to_codes(indices), golden["fsq_indices_to_codes"], **TOLERANCE)
    assert fsq.codes_to_indices(golden["fsq_codes"]).tolist() == golden["fsq_codes_to_indices"].tolist()


def test_released_quantiser(fsq, golden):
    z = golden["fsq_z"]
    projected = fsq.project(z)
    torch.testing.assert_close(projected, golden["fsq_projected"], **TOLERANCE)
    torch.testing.assert_close(fsq.bound(projected), golden["fsq_bound"], **TOLERANCE)
    torch.testing.assert_close(fsq.quantize(projected), golden["fsq_quantized"], **TOLERANCE)
    vectors, indices = fsq(z)
    torch.testing.assert_close(vectors, golden["fsq_forward_out"], **TOLERANCE)
    assert indices.tolist() == golden["fsq_forward_indices"].tolist()


def test_gradient_passes_the_rounding_and_keeps_the_tanh():
    fsq = FSQ((8,), dim=1)
    z = torch.tensor([[0.3], [-1.2], [2.0]], requires_grad=True)
    (through,) = torch.autograd.grad(fsq.quantize(z).sum(), z)
    (smooth,) = torch.autograd.grad((fsq.bound(z) / 4).sum(), z)
    torch.testing.assert_close(through, smooth)
    assert (through > 0).all()


def test_low_precision_weights_do_not_change_the_codes(fsq, golden):
    # The weights are exact in bf16, so that only computing in bf16 could move a code.
    low = FSQ((8, 8, 8, 5), 32)
    low.load_state_dict(fsq.state_dict())
    low = low.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        vectors, indices = low(golden["fsq_z"])
    assert indices.tolist() == golden["fsq_forward_indices"].tolist()
    assert vectors.dtype == torch.float32


def test_bad_levels():
    with pytest.raises(ValueError, match=r"every FSQ level must be 2 or more, got \[8, 1\]"):
        FSQ((8, 1), 16)
