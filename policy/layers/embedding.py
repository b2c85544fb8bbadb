"""Positional embeddings of surface points: Fourier features and the skin VAE's phase-shifted variant.

Both are parameter free and always computed in fp32 (specification, sections 4, 7.1 and 14). The constants
are built on the fly instead of being buffers: a `.to(bfloat16)` of the model then cannot round them by
accident, rounding is an explicit choice (`rounded`).
"""

import math

import torch
from torch import Tensor


def frequencies(count: int, include_pi: bool, rounded: bool = False) -> Tensor:
    """`(count,)` float32 on the CPU: `2^i`, times pi if `include_pi`; `rounded` passes them through bf16."""
    values = 2.0 ** torch.arange(count, dtype=torch.float32)
    if include_pi:
        values = values * math.pi
    return values.bfloat16().float() if rounded else values


def phases(count: int, rounded: bool = False) -> Tensor:
    """`(count,)` float32 on the CPU: `2 pi (F^(1 - (i+1)/F) + (i+1)/F)`, the shifts of PMPE (section 7.1)."""
    step = torch.arange(1, count + 1, dtype=torch.float32) / count
    values = 2.0 * math.pi * (float(count) ** (1.0 - step) + step)
    return values.bfloat16().float() if rounded else values


def embedded_size(num_freqs: int) -> int:
    """Length of one embedded point: the three coordinates and a sine and a cosine part of 3F each."""
    return 3 * (2 * num_freqs + 1)


def embed_points(
    points: Tensor, num_freqs: int, include_pi: bool, pmpe: bool = False, rounded: bool = False
) -> Tensor:
    """Embed points.

    Args:
        points: `(..., 3)`, mesh frame; any float type, computed in float32.
        num_freqs: F, the number of frequencies per axis.
        include_pi: whether the frequencies are `pi 2^i` or `2^i`.
        pmpe: add the phase-shifted slow wave of each slot (section 7.1); values then lie in [-2, 2].
        rounded: constants rounded to bf16, as released weights were run (section 14).

    Returns:
        `(..., 3 (2F + 1))` float32: `[x, sin, cos]`, axis-major inside the sine and the cosine part.
    """
    if points.shape[-1] != 3:
        raise ValueError(f"points must be (..., 3), got {tuple(points.shape)}")
    x = points.float()
    angle = x[..., None] * frequencies(num_freqs, include_pi, rounded).to(x.device)
    sine, cosine = angle.sin(), angle.cos()
    if pmpe:
        shifted = (math.pi / 2) * x[..., None] + phases(num_freqs, rounded).to(x.device)
        sine, cosine = sine + shifted.sin(), cosine + shifted.cos()
    return torch.cat([x, sine.flatten(-2), cosine.flatten(-2)], dim=-1)
