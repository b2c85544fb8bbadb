"""Launches the decode-attention kernels: chooses blocks and splits, allocates the partial results."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Programs that keep one multiprocessor busy, and the most splits that the merge reads for each part.
_PROGRAMS_PER_PROCESSOR = 2
_MOST_SPLITS = 16


@dataclass(frozen=True)
class Plan:
    """How a call is cut into programs.

    prefix, own: splits of each part's keys. tile: keys read at once, block: most queries of a program of the
    prefix kernel; both powers of two, at least 16. warps: of 32 threads, for each program.
    """

    prefix: int
    own: int
    tile: int
    block: int
    warps: int


@torch.library.custom_op("tokenrig::split_decode_attention", mutates_args=())
def split_decode_attention(
    query: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    own_key: Tensor,
    own_value: Tensor,
    position: Tensor,
    lengths: Tensor,
    row_of_slot: Tensor,
) -> Tensor:
    """Split-KV decode attention on CUDA; shapes as in :func:`rl.engine.decode_attention.decode_attention`.

    lengths: (M,) int64; row_of_slot: (M, S) int64, -1 in an empty slot. Nothing is copied to the host and the
    grid depends on shapes alone, so the call can be captured in a CUDA graph. The last dimension of every
    tensor of keys, values and queries must be contiguous. Raises ImportError without Triton, which PyTorch's
    CUDA wheels for Linux bring.
    """
    plan = make_plan(query, prefix_key, own_key, row_of_slot)
    return launch(query, prefix_key, prefix_value, own_key, own_value, position, lengths, row_of_slot, plan)


@split_decode_attention.register_fake
def _(
    query: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    own_key: Tensor,
    own_value: Tensor,
    position: Tensor,
    lengths: Tensor,
    row_of_slot: Tensor,
) -> Tensor:
    return torch.empty(query.shape, dtype=query.dtype, device=query.device)


def make_plan(query: Tensor, prefix_key: Tensor, own_key: Tensor, row_of_slot: Tensor) -> Plan:
    """Splits that give each multiprocessor a few programs; more only add partial results to write and merge.

    It sees shapes only: the own part is split by its capacity. Blocks are the largest that compile with
    next to no spilled registers for compute capability 8.0 and 9.0 at d = 128, in 100 KB of shared memory.
    """
    processors = torch.cuda.get_device_properties(query.device).multi_processor_count if query.is_cuda else 1
    wanted = processors * _PROGRAMS_PER_PROCESSOR
    meshes, kv_heads, positions, _ = prefix_key.shape
    rows, _, capacity, _ = own_key.shape
    queries = row_of_slot.shape[1] * query.shape[1] // kv_heads
    half = query.element_size() == 2  # float32 has no exact matrix instruction: it needs more registers
    tile, largest, warps = (64, 64, 4) if half else (32, 16, 8)
    block = min(largest, max(16, _power_of_two(queries)))

    def splits(programs: int, keys: int) -> int:
        return max(1, min(wanted // programs, math.ceil(keys / tile), _MOST_SPLITS))

    prefix = splits(meshes * kv_heads * math.ceil(queries / block), positions)
    return Plan(prefix, splits(rows * kv_heads, capacity), tile, block, warps)


def launch(
    query: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    own_key: Tensor,
    own_value: Tensor,
    position: Tensor,
    lengths: Tensor,
    row_of_slot: Tensor,
    plan: Plan,
) -> Tensor:
    """Run the three kernels; on CPU tensors too, if TRITON_INTERPRET=1 was set before Triton was imported.

    Raises ValueError if a tensor's last dimension is not contiguous.
    """
    from rl.engine.kernels.triton_decode import merge_kernel, own_kernel, prefix_kernel

    strided = {
        "query": query,
        "prefix_key": prefix_key,
        "prefix_value": prefix_value,
        "own_key": own_key,
        "own_value": own_value,
    }
    for name, tensor in strided.items():
        if tensor.stride(-1) != 1:
            raise ValueError(
                f"{name} has stride {tensor.stride(-1)} in its last dimension; make it contiguous"
            )
    rows, heads, size = query.shape
    meshes, kv_heads = prefix_key.shape[:2]
    slots, repeat = row_of_slot.shape[1], heads // kv_heads
    total = plan.prefix + plan.own
    partial = query.new_empty(rows, heads, total, size, dtype=torch.float32)
    partial_lse = query.new_empty(rows, heads, total, dtype=torch.float32)
    result = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    scale = size**-0.5 / math.log(2)
    block_d = max(16, _power_of_two(size))
    # TF32 would cost float32 inputs their last 13 bits; half precision ignores the setting.
    shared = {"REPEAT": repeat, "SIZE": size, "BLOCK_N": plan.tile, "BLOCK_D": block_d, "PRECISION": "ieee"}
    queries = query.stride()[:2]
    prefix_kernel[(meshes * kv_heads, plan.prefix, math.ceil(slots * repeat / plan.block))](
        query,
        prefix_key,
        prefix_value,
        lengths,
        row_of_slot,
        partial,
        partial_lse,
        heads,
        kv_heads,
        slots,
        plan.prefix,
        total,
        scale,
        *queries,
        *prefix_key.stride()[:3],
        *prefix_value.stride()[:3],
        BLOCK_M=plan.block,
        num_warps=plan.warps,
        num_stages=2,
        **shared,
    )
    own_kernel[(rows * kv_heads, plan.own)](
        query,
        own_key,
        own_value,
        position,
        partial,
        partial_lse,
        heads,
        kv_heads,
        plan.prefix,
        plan.own,
        total,
        scale,
        *queries,
        *own_key.stride()[:3],
        *own_value.stride()[:3],
        BLOCK_M=max(16, _power_of_two(repeat)),
        num_warps=plan.warps,
        num_stages=2,
        **shared,
    )
    merge_kernel[(rows * heads,)](
        partial,
        partial_lse,
        result,
        total,
        SIZE=size,
        BLOCK_S=_power_of_two(total),
        BLOCK_D=block_d,
        num_warps=1,
    )
    return result


def _power_of_two(number: int) -> int:
    """The smallest power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()
