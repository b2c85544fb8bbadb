"""Attention by plain products against torch's kernel: values and gradients."""

import pytest
import torch
from torch.nn import functional as F

from policy.layers.attention import attend


@pytest.mark.parametrize(("queries", "keys", "width"), [(1, 1, 4), (3, 7, 8), (17, 5, 24)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_the_kernel(
    queries: int, keys: int, width: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(queries)
    inputs = [
        torch.randn(2, 3, length, width, generator=generator).to(dtype).requires_grad_()
        for length in (queries, keys, keys)
    ]
    weight = torch.randn(2, 3, queries, width, generator=generator)
    mixed = attend(*inputs)
    gradients = torch.autograd.grad((mixed.float() * weight).sum(), inputs)
    exact = [value.detach().float().requires_grad_() for value in inputs]
    expected = F.scaled_dot_product_attention(*exact)
    wanted = torch.autograd.grad((expected * weight).sum(), exact)
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(mixed.float(), expected, atol=tolerance, rtol=tolerance)
    for got, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(got.float(), want, atol=tolerance, rtol=tolerance)


def test_inference_is_the_kernel_to_the_bit() -> None:
    query, key, value = torch.randn(3, 1, 2, 9, 16).bfloat16()
    with torch.no_grad():
        assert torch.equal(attend(query, key, value), F.scaled_dot_product_attention(query, key, value))
