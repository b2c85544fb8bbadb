"""Work of a step in operations and bytes, and the machine's peak rates to compare with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from rl.benchmarks.sizes import Size

# Dense bfloat16 FLOP/s and bytes/s of data-centre GPUs by CUDA's name, from their data sheets.
_GPUS = {
    "NVIDIA H200": (989e12, 4.8e12),
    "NVIDIA H100 80GB HBM3": (989e12, 3.35e12),
    "NVIDIA A100-SXM4-80GB": (312e12, 2.04e12),
}


@dataclass(frozen=True)
class Peaks:
    """Peak rates: floating point operations and bytes read per second, and where they come from."""

    flops: float
    bandwidth: float
    source: str


def layer_parameters(size: Size) -> int:
    """Weights of one decoder layer's linear layers."""
    attention = size.hidden * size.head_dim * (2 * size.heads + 2 * size.kv_heads)
    return attention + 3 * size.hidden * size.inner


def body_parameters(size: Size) -> int:
    """Weights of all decoder layers' linear layers."""
    return size.layers * layer_parameters(size)


def cache_bytes(size: Size) -> int:
    """Bytes of keys and values of one token in all layers."""
    return 2 * size.layers * size.kv_heads * size.head_dim * (2 if size.half else 4)


def token_seconds(size: Size, peaks: Peaks) -> float:
    """The least time for one token of all rows: weights, prefixes and half of the own keys, read once.

    The head is read in the SkinTokens' phase, 4 of 7 tokens.
    """
    element = 2 if size.half else 4
    skin = size.tokens_per_skin / (3 + size.tokens_per_skin)
    weights = body_parameters(size) + skin * size.vocabulary.codebook * size.hidden
    prefixes = size.meshes * (size.mesh_tokens + 2) * cache_bytes(size)
    own = size.rows * size.most_tokens / 2 * cache_bytes(size)
    memory = (element * weights + prefixes + own) / peaks.bandwidth
    return max(memory, 2 * weights * size.rows / peaks.flops)


def update_flops(size: Size, tokens: int) -> float:
    """Operations of forward and backward of `tokens` completion tokens behind one prefix per mesh.

    Each weight costs 2 operations forward and 4 backward; the head only at SkinTokens. Attention: 4 forward
    and 8 backward per pair of positions and channel of all heads.
    """
    prefix = size.mesh_tokens + 2
    length = tokens / size.rows
    skin = size.tokens_per_skin / (3 + size.tokens_per_skin)
    body = 6 * body_parameters(size) * (tokens + size.meshes * prefix)
    head = 6 * skin * tokens * size.vocabulary.codebook * size.hidden
    pairs = tokens * (prefix + length / 2) + size.meshes * prefix**2 / 2
    return body + head + 12 * pairs * size.heads * size.head_dim * size.layers


def decoder_flops(size: Size, bones: int) -> float:
    """Operations to decode bones: their own blocks over T tokens, then attention and MLP at each point."""
    width, tokens = size.vae_width, size.tokens_per_skin + size.vae_condition
    block = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width
    per_point = 2 * (1 + 8) * width**2 + 4 * tokens * width
    return bones * (size.vae_layers * block + size.points * per_point)


def machine_peaks(device: torch.device) -> Peaks:
    """Peak rates of a known GPU by its name; of a CPU by a matrix product and a sum, measured now.

    Raises ValueError for a GPU that is not in the table.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if name in _GPUS:
            return Peaks(*_GPUS[name], f"data sheet of the {name}")
        raise ValueError(f"the peak rates of '{name}' are not known; add them to rl/benchmarks/limits.py")
    left, right = torch.rand(2048, 2048), torch.rand(2048, 2048)
    numbers = torch.rand(1 << 26)
    flops = max(2 * 2048**3 / _seconds(lambda: left @ right) for _ in range(3))
    bandwidth = max(numbers.nbytes / _seconds(numbers.sum) for _ in range(3))
    return Peaks(flops, bandwidth, "float32 product and sum, measured in this run")


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
