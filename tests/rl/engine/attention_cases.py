"""Random inputs of decode attention at odd sizes, and the plain reference beside which it is tested."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rl.engine.decode_attention import PrefixRows


@dataclass
class Case:
    """Meshes of the rows, prefix lengths, size P of the prefix buffers, own length, capacity C, heads."""

    meshes: tuple[int, ...]
    lengths: tuple[int, ...]
    positions: int
    own: int
    capacity: int
    kv_heads: int
    repeat: int
    size: int


CASES = [
    Case((0,), (1,), 1, 1, 1, 1, 1, 16),
    Case((0, 0, 0), (17,), 17, 1, 8, 2, 1, 32),
    Case((1, 0, 1, 1), (5, 40), 40, 33, 64, 2, 3, 16),
    Case((2, 0, 2, 0, 0, 2, 2), (66, 1, 65), 70, 70, 70, 1, 2, 64),
    Case((0, 1), (33, 33), 33, 130, 256, 1, 2, 128),
    Case((0, 1, 0, 1, 0, 1), (129, 64), 140, 16, 17, 3, 2, 32),
]


def tensors(case: Case, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, ...]:
    """query, prefix keys and values, own keys and values, position; unused entries hold large garbage."""
    g = torch.Generator().manual_seed(seed)
    rows, meshes = len(case.meshes), len(case.lengths)
    query = torch.randn(rows, case.kv_heads * case.repeat, case.size, generator=g)
    prefix = torch.randn(2, meshes, case.kv_heads, case.positions, case.size, generator=g)
    own = torch.randn(2, rows, case.kv_heads, case.capacity, case.size, generator=g)
    for mesh, length in enumerate(case.lengths):
        prefix[:, mesh, :, length:] = 1e4
    own[:, :, :, case.own :] = 1e4
    position = torch.tensor([case.own - 1])
    return (query.to(dtype), *prefix.to(dtype), *own.to(dtype), position)


def layout(case: Case, slots: int | None = None) -> PrefixRows:
    return PrefixRows.of(torch.tensor(case.meshes), torch.tensor(case.lengths), case.positions, slots)


def reference(case: Case, *inputs: Tensor) -> Tensor:
    """One row and head at a time, in float64."""
    query, prefix_key, prefix_value, own_key, own_value, _ = (t.double() for t in inputs)
    out = torch.empty_like(query)
    for row, mesh in enumerate(case.meshes):
        for head in range(query.shape[1]):
            kv, n = head // case.repeat, case.lengths[mesh]
            keys = torch.cat([prefix_key[mesh, kv, :n], own_key[row, kv, : case.own]])
            values = torch.cat([prefix_value[mesh, kv, :n], own_value[row, kv, : case.own]])
            out[row, head] = (keys @ query[row, head] / math.sqrt(case.size)).softmax(0) @ values
    return out
