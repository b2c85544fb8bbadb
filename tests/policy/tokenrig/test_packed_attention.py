"""Packed attention against a dense softmax, and the CUDA kernels' shapes on fake tensors."""

from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from policy.tokenrig.packed_attention import (
    PackedLayout,
    Segments,
    _PackedAttention,
    packed_attention,
    unsupported,
)

CPU = torch.device("cpu")
LAYOUTS = {
    "several groups": ([5, 3, 5], [[2, 7, 7], [], [1, 0, 4]]),
    "no rows": ([4, 4], [[], [0]]),
    "one of each": ([1], [[1]]),
}


def dense(query, key, value, prefixes, rows):
    """Attention of every row on its own, over [prefix, row]."""
    output = torch.empty_like(query)
    repeats = query.shape[1] // key.shape[1]
    place, start = sum(prefixes), 0
    for prefix, group in zip(prefixes, rows, strict=True):
        before = torch.arange(start, start + prefix)
        start += prefix
        for length in [0, *group]:
            own = torch.arange(place, place + length)
            place += length
            seen = torch.cat([before, own])
            q, k, v = (x[seen].transpose(0, 1) for x in (query, key, value))
            k, v = k.repeat_interleave(repeats, 0), v.repeat_interleave(repeats, 0)
            mask = torch.ones(len(seen), len(seen), dtype=torch.bool).tril()
            scores = (q @ k.transpose(1, 2) / q.shape[2] ** 0.5).masked_fill(~mask, -torch.inf)
            output[seen] = (scores.softmax(-1) @ v).transpose(0, 1)
    return output


def tensors(layout, heads=(6, 2), dim=10, dtype=torch.float32, device="cpu"):
    tokens = sum(layout.sequences.lengths)
    return [
        torch.randn(tokens, count, dim, dtype=dtype, device=device, requires_grad=device == "cpu")
        for count in (heads[0], heads[1], heads[1])
    ]


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("heads", [(6, 2), (3, 3)])
def test_values_and_gradients(name, heads):
    torch.manual_seed(0)
    layout = PackedLayout.of(*LAYOUTS[name], CPU)
    inputs = tensors(layout, heads)
    found, expected = packed_attention(*inputs, layout), dense(*inputs, *LAYOUTS[name])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    direction = torch.randn_like(found)
    for own, other in zip(
        torch.autograd.grad(found, inputs, direction),
        torch.autograd.grad(expected, inputs, direction),
        strict=True,
    ):
        torch.testing.assert_close(own, other, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cuda_kernels_accept_the_shapes(dtype, monkeypatch):
    """No GPU is needed: schema, shapes and dtypes of what the variable-length kernels take and return."""

    def merge(*tensors):  # its arithmetic needs a PyTorch with CUDA even for fake tensors
        assert [tuple(tensor.shape) for tensor in tensors] == [(21, 16, 128), (21, 16)] * 2

    monkeypatch.setattr("policy.tokenrig.packed_attention._merge", merge)
    layout = PackedLayout.of(*LAYOUTS["several groups"], CPU)
    with FakeTensorMode():
        layout = PackedLayout(
            *(
                Segments(part.lengths, torch.empty(part.bounds.shape, dtype=torch.int32, device="cuda"))
                for part in (layout.prefixes, layout.sequences, layout.queries)
            )
        )
        inputs = tensors(layout, (16, 8), 128, dtype, "cuda")
        context = SimpleNamespace()
        context.save_for_backward = lambda *saved: setattr(context, "saved_tensors", saved)
        found = _PackedAttention.forward(context, *inputs, layout)
        assert (found.shape, found.dtype, found.device.type) == (inputs[0].shape, dtype, "cuda")
        *grads, nothing = _PackedAttention.backward(context, torch.empty_like(found))
        assert nothing is None
        for grad, tensor in zip(grads, inputs, strict=True):
            assert (grad.shape, grad.dtype, grad.device.type) == (tensor.shape, dtype, "cuda")


def test_what_is_supported():
    assert unsupported(CPU, torch.float32, 10) is None
    assert "train.bf16" in unsupported(torch.device("cuda"), torch.float32, 128)
    assert "multiple of 8" in unsupported(torch.device("cuda"), torch.bfloat16, 132)
    assert "mps" in unsupported(torch.device("mps"), torch.float32, 128)
