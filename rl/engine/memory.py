"""Memory of the rollout's key and value buffers: sizes, growth in stages, and a check before allocating."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Positions of a row's own keys at first; each next stage has twice as many. Most completions end early, and
# finished rows leave, so buffers of the longest completion for all rows would be mostly empty: 45 GB at the
# released size for 192 rows of 2,048 tokens.
FIRST_STAGE = 256

# Kept free for what a step allocates besides its buffers: logits, sums, the graphs' pool.
HEADROOM = 1 << 30


@dataclass(frozen=True)
class CacheShape:
    """Shape of the keys and values of one model: layers, key heads, their size, and bytes per element."""

    layers: int
    kv_heads: int
    head_dim: int
    itemsize: int

    @property
    def per_position(self) -> int:
        """Bytes of one position's keys and values in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.itemsize

    def own(self, rows: int, capacity: int) -> int:
        """Bytes of the rows' own buffers."""
        return self.per_position * rows * capacity

    def prefixes(self, meshes: int, positions: int) -> int:
        """Bytes of the meshes' prefixes, kept once per mesh."""
        return self.per_position * meshes * positions

    def growth(self, rows: int, capacity: int) -> int:
        """Bytes to allocate for a further stage: layers are copied one at a time, each freed before the next.

        The old buffers hold half of the new capacity (the next stage doubles it).
        """
        new = self.own(rows, capacity)
        return new // 2 + new // (2 * self.layers)


def stage_of(length: int, limit: int) -> int:
    """The smallest stage that holds `length` own positions; the last stage is `limit` itself.

    Raises ValueError for a length above the limit.
    """
    if not 1 <= length <= limit:
        raise ValueError(f"{length} own positions do not fit within the limit of {limit}")
    stage = FIRST_STAGE
    while stage < length:
        stage *= 2
    return min(stage, limit)


def resized(buffer: Tensor, capacity: int, rows: Tensor | None = None) -> Tensor:
    """A buffer (R, KV, C, d) of another capacity with the same entries, of the rows `rows` only (int64)."""
    kept = buffer if rows is None else buffer.index_select(0, rows)
    if capacity <= buffer.shape[2]:
        return kept[:, :, :capacity].contiguous()
    new = kept.new_zeros(*kept.shape[:2], capacity, kept.shape[3])
    new[:, :, : buffer.shape[2]] = kept
    return new


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can be allocated on a CUDA device, PyTorch's unused cache included; None elsewhere."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def check_memory(needed: int, free: int | None, rows: int, positions: int, device: torch.device) -> None:
    """Refuse buffers that do not fit into the free memory, before anything is allocated.

    Args:
        needed: bytes to allocate; see `CacheShape`.
        free: bytes that are free, from `free_bytes`; None skips the check.
        rows, positions: what the buffers are for: rows sampled at once, and own positions of each.
        device: for the message.

    Raises MemoryError naming the values to change.
    """
    if free is None or needed + HEADROOM <= free:
        return
    raise MemoryError(
        f"sampling {rows} rows of up to {positions} tokens needs {_gib(needed + HEADROOM)} GiB for keys and "
        f"values, but {device} has {_gib(free)} GiB free: lower rollout.batch_size (rows sampled at once) or "
        "train.max_completion_length, or set rollout.engine=plain"
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"
