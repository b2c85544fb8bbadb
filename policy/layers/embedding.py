"""Positional embedding of surface points: Fourier features, optionally phase-shifted (PMPE).

Without parameters and always computed in float32. Constants are built in each call rather than kept as
buffers, so a `.to(bfloat16)` of the model cannot round them by accident; `rounded` does so explicitly.
Source: specification, sections 4, 7.1 and 14.
"""

import math

import torch
from torch import Tensor


def frequencies(count: int, include_pi: bool, rounded: bool = False) -> Tensor:
    """`2^i`, times pi if `include_pi`: `(count,)` float32 on the CPU, rounded to bf16 if `rounded`."""
    values = 2.0 ** torch.arange(count, dtype=torch.float32)
    if include_pi:
        values = values * math.pi
    return values.bfloat16().float() if rounded else values


def phases(count: int, rounded: bool = False) -> Tensor:
    """Phase shifts of PMPE, `2 pi (F^(1 - (i+1)/F) + (i+1)/F)`: `(count,)` float32 on the CPU."""
    step = torch.arange(1, count + 1, dtype=torch.float32) / count
    values = 2.0 * math.pi * (float(count) ** (1.0 - step) + step)
    return values.bfloat16().float() if rounded else values


def embedded_size(num_freqs: int) -> int:
    """Channels of an embedded point: three coordinates, 3F sines and 3F cosines."""
    return 3 * (2 * num_freqs + 1)


def embed_points(
    points: Tensor, num_freqs: int, include_pi: bool, pmpe: bool = False, rounded: bool = False
) -> Tensor:
    """Embed points as coordinates, sines and cosines.

    Args:
        points: `(..., 3)`, mesh frame; any float type, computed in float32.
        num_freqs: F, the number of frequencies per axis.
        include_pi: frequencies `pi 2^i` instead of `2^i`.
        pmpe: add a phase-shifted slow wave to each sine and cosine (section 7.1); values lie in [-2, 2].
        rounded: round constants to bf16, as in released inference (section 14).

    Returns:
        `(..., 3 (2F + 1))` float32: `[x, sin, cos]`, axis-major inside the sine and the cosine part.

    Raises:
        ValueError: the last axis does not have 3 entries.
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
