"""RMS norm, rotary embedding and SwiGLU of a Qwen3 layer as functions: fp32 inside, fused on CUDA.

Each function takes tensors in the compute dtype (float32, bfloat16 or float16), computes in float32 and
rounds once, to the dtype of its input. A float32 weight does not promote the result, so that under autocast
the residual stream, queries and keys stay in the compute dtype. On CUDA each function is one kernel, compiled
at its first call; inside a function that is being compiled it is plain arithmetic, for the outer compiler to
fuse. On a CPU the backward passes are written out, because memory traffic dominates there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`weight * x / sqrt(mean(x^2) + eps)` over the last axis.

    x: (..., D); weight: (D,) in any dtype. Returns (..., D) in the dtype of x.
    Source: transformers, `Qwen3RMSNorm`.
    """
    return _run(_rms_norm, _RMSNorm, x, weight, eps)


def add_rms_norm(residual: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Residual addition and the norm behind it: `(residual + x, rms_norm(residual + x))`, both (..., D)."""
    if _fused(x):
        result: tuple[Tensor, Tensor] = _compiled(_add_rms_norm)(residual, x, weight, eps)
        return result
    total = residual + x
    return total, rms_norm(total, weight, eps)


def rotary_tables(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary embedding at positions.

    positions: (...) int; head_dim: even; theta: base of the frequencies. Returns two (..., head_dim / 2)
    float32 tensors on the device of positions, for :func:`rotate`. Source: transformers,
    `Qwen3RotaryEmbedding`.
    """
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions[..., None].float() * (1.0 / theta**exponents)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of queries or keys: channel pairs (i, i + D / 2) turned by their positions' angles.

    x: (..., heads, D); cos, sin: (..., D / 2) float32 from :func:`rotary_tables`, one row for all heads.
    Returns (..., heads, D) in the dtype of x. Source: transformers, `apply_rotary_pos_emb`.
    """
    return _run(_rotate, _Rotate, x, cos, sin)


def norm_rotate(x: Tensor, weight: Tensor, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate(rms_norm(x, weight, eps), cos, sin)`: what Qwen3 does to queries and keys (..., heads, D)."""
    if _fused(x):
        result: Tensor = _compiled(_norm_rotate)(x, weight, eps, cos, sin)
        return result
    return rotate(rms_norm(x, weight, eps), cos, sin)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up`, all (..., D). Source: transformers, `Qwen3MLP`."""
    return _run(_swiglu, _SwiGLU, gate, up)


# ------------------------------------------------------------ plain arithmetic, compiled on CUDA


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    h = x.float()
    h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)
    return (h * weight.float()).to(x.dtype)


def _add_rms_norm(residual: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = residual + x
    return total, _rms_norm(total, weight, eps)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def _norm_rotate(x: Tensor, weight: Tensor, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    # Rounded in between, as the two layers do.
    return _rotate(_rms_norm(x, weight, eps), cos, sin)


def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return (F.silu(gate.float()) * up.float()).to(gate.dtype)


# ------------------------------------------------------------ dispatch


def _fused(x: Tensor) -> bool:
    """Whether to call the compiled function: on CUDA, unless an outer function is being compiled."""
    return x.is_cuda and not torch.compiler.is_compiling()


def _run(plain: Callable[..., Tensor], differentiated: Any, x: Tensor, *arguments: Any) -> Tensor:
    if _fused(x):
        result: Tensor = _compiled(plain)(x, *arguments)
        return result
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return plain(x, *arguments)
    result = differentiated.apply(x, *arguments)
    return result


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # Dynamic: the number of tokens differs from call to call, and must not compile anew.
    return torch.compile(function, dynamic=True)


# ------------------------------------------------------------ written-out backward passes for the CPU


class _RMSNorm(torch.autograd.Function):
    """Saves the input and one factor per row instead of three intermediate tensors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        h = x.float()
        factor = torch.linalg.vector_norm(h, dim=-1, keepdim=True)
        factor = factor.square_().div_(h.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, factor)
        return (h * factor).mul_(weight.float()).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, factor = ctx.saved_tensors
        normed, grad = x.float() * factor, grad.float()
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad * normed).flatten(0, -2).sum(0).to(weight.dtype)
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, None
        grad = grad * weight.float()
        along = torch.linalg.vecdot(grad, normed)[..., None].div_(x.shape[-1])
        return grad.addcmul_(normed, along, value=-1).mul_(factor).to(x.dtype), grad_weight, None


class _Rotate(torch.autograd.Function):
    """The gradient is the rotation back, so the input is not saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, -sin), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`_rotate` without intermediate tensors of the size of x."""
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    result = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    first, second = x.float().chunk(2, dim=-1)
    low, high = result.chunk(2, dim=-1)
    torch.mul(first, cos, out=low).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=high).addcmul_(first, sin)
    return result.to(x.dtype)


class _SwiGLU(torch.autograd.Function):
    """Saves the two inputs only, and recomputes `silu(gate)` in the backward pass."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate.float()).mul_(up).to(gate.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grad, wide = grad.float(), gate.float()
        grad_up = F.silu(wide).mul_(grad)
        grad_gate = torch.ops.aten.silu_backward((grad * up), wide)
        return grad_gate.to(gate.dtype), grad_up.to(up.dtype)
