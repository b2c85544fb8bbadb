"""Layer functions against the Hugging Face Qwen3 layers: values, gradients, dtypes and compilation."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import (
    Qwen3MLP,
    Qwen3RMSNorm,
    Qwen3RotaryEmbedding,
    apply_rotary_pos_emb,
)

from policy.tokenrig import layer_math
from policy.tokenrig.layer_math import add_rms_norm, norm_rotate, rms_norm, rotary_tables, rotate, swiglu

THETA, EPS = 1e6, 1e-6


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, requires_grad=True)


def same(own, theirs, inputs, tolerance=1e-6):
    """Values and gradients of two tensors agree."""
    torch.testing.assert_close(own, theirs, atol=tolerance, rtol=tolerance)
    direction = torch.randn_like(own)
    for ours, other in zip(
        torch.autograd.grad(own, inputs, direction),
        torch.autograd.grad(theirs, inputs, direction),
        strict=True,
    ):
        torch.testing.assert_close(ours, other, atol=tolerance, rtol=1e-5)


def hf_rotate(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    config = Qwen3Config(
        hidden_size=8, head_dim=x.shape[-1], rope_parameters={"rope_type": "default", "rope_theta": THETA}
    )
    cos, sin = Qwen3RotaryEmbedding(config)(x, positions[None])
    return apply_rotary_pos_emb(x[None], x[None], cos, sin, unsqueeze_dim=2)[0][0]


@pytest.mark.parametrize("shape", [(1, 7), (5, 32), (3, 2, 16)])
def test_rms_norm(shape):
    norm = Qwen3RMSNorm(shape[-1], eps=EPS)
    nn.init.normal_(norm.weight)
    x = leaf(*shape)
    same(rms_norm(x, norm.weight, EPS), norm(x), [x, norm.weight])


def test_rms_norm_behind_a_residual():
    norm = Qwen3RMSNorm(12, eps=EPS)
    nn.init.normal_(norm.weight)
    residual, x = leaf(5, 12), leaf(5, 12)
    total, normed = add_rms_norm(residual, x, norm.weight, EPS)
    assert torch.equal(total, residual + x)
    same(normed, norm(residual + x), [residual, x, norm.weight])


@pytest.mark.parametrize("dim", [2, 10, 128])
def test_rotate(dim):
    positions = torch.tensor([0, 1, 5, 700, 3191])
    x = leaf(5, 3, dim)
    same(rotate(x, *rotary_tables(positions, dim, THETA)), hf_rotate(x, positions), [x])


def test_norm_and_rotation_of_queries():
    norm = Qwen3RMSNorm(16, eps=EPS)
    nn.init.normal_(norm.weight)
    positions = torch.tensor([3, 0, 9])
    x = leaf(3, 2, 16)
    own = norm_rotate(x, norm.weight, EPS, *rotary_tables(positions, 16, THETA))
    same(own, hf_rotate(norm(x), positions), [x, norm.weight])


def test_swiglu():
    mlp = Qwen3MLP(Qwen3Config(hidden_size=6, intermediate_size=11))
    x = leaf(4, 6)
    same(mlp.down_proj(swiglu(mlp.gate_proj(x), mlp.up_proj(x))), mlp(x), [x, *mlp.parameters()])


def calls(dtype: torch.dtype, tokens: int = 5):
    """Each function with arguments in a compute dtype: (name, function, arguments)."""
    weight = torch.randn(16, requires_grad=True)  # float32, as under autocast
    cos, sin = rotary_tables(torch.arange(tokens), 16, THETA)
    x, y = (torch.randn(tokens, 2, 16, dtype=dtype).requires_grad_() for _ in range(2))
    return [
        ("_rms_norm", rms_norm, (x, weight, EPS)),
        ("_add_rms_norm", add_rms_norm, (x, y, weight, EPS)),
        ("_rotate", rotate, (x, cos, sin)),
        ("_norm_rotate", norm_rotate, (x, weight, EPS, cos, sin)),
        ("_swiglu", swiglu, (x, y)),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("which", range(5))
def test_the_written_out_backward_is_that_of_the_compiled_arithmetic(which, dtype):
    name, function, arguments = calls(dtype)[which]
    own, plain = function(*arguments), getattr(layer_math, name)(*arguments)
    pairs = zip(own, plain, strict=True) if isinstance(own, tuple) else [(own, plain)]
    inputs = [argument for argument in arguments if isinstance(argument, torch.Tensor) and argument.is_leaf]
    inputs = [tensor for tensor in inputs if tensor.requires_grad]
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    for ours, other in pairs:
        assert ours.dtype == other.dtype == dtype
        torch.testing.assert_close(ours, other, atol=tolerance, rtol=tolerance)
        direction = torch.randn_like(ours)
        for mine, theirs in zip(
            torch.autograd.grad(ours, inputs, direction, retain_graph=True, allow_unused=True),
            torch.autograd.grad(other, inputs, direction, retain_graph=True, allow_unused=True),
            strict=True,
        ):
            assert (mine is None) == (theirs is None)
            if mine is not None:
                assert mine.dtype == theirs.dtype
                torch.testing.assert_close(mine.float(), theirs.float(), atol=4 * tolerance, rtol=tolerance)


@pytest.mark.parametrize("which", range(5))
def test_one_compilation_serves_all_lengths(which):
    """As on CUDA, with a backend that compiles the same graph without generating code."""
    name = calls(torch.float32)[which][0]
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(getattr(layer_math, name), dynamic=True, backend=counter)
    for tokens in (5, 3, 4):
        _, function, arguments = calls(torch.float32, tokens)[which]
        torch.testing.assert_close(compiled(*arguments), function(*arguments), atol=1e-6, rtol=1e-6)
    assert counter.frame_count == 1
