"""Buffers of the fast engine: filled for a request, compacted as rows finish, grown in stages."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from policy.tokens.grammar import GrammarState
from rl.engine.decode_attention import PrefixRows
from rl.engine.layers import Prefixes
from rl.engine.memory import CacheShape, check_memory, free_bytes, stage_of
from rl.engine.step import StepBuffers
from rl.engine.weights import SamplingWeights


class BufferPool:
    """Gives out buffers; `static` ones at the same addresses for equal shapes, so that graphs serve again.

    Own keys and values lie in one storage per layer, which all shapes share: fewer rows leave room for more
    positions. Storage grows when a shape needs more, and stays for the next request.
    """

    def __init__(self, weights: SamplingWeights, static: bool) -> None:
        self._static = static
        self._device, self._dtype = weights.device, weights.dtype
        self._kv_heads, self._head_dim = weights.kv_heads, weights.head_dim
        self._shape = CacheShape(
            len(weights.layers), weights.kv_heads, weights.head_dim, weights.norm.element_size()
        )
        self._keys = [self._new(0) for _ in weights.layers]
        self._values = [self._new(0) for _ in weights.layers]
        self._held: dict[str, Tensor] = {}

    def fill(
        self,
        prefixes: Prefixes,
        state: GrammarState,
        prefix_of_row: Tensor,
        output_row: Tensor,
        uniforms: Tensor,
        pad: int,
    ) -> StepBuffers:
        """Buffers of a request before its first draw.

        state: the grammar's after each prefix, (M,); prefix_of_row, output_row: (R,) int64 on the CPU;
        uniforms: (N, L). Raises MemoryError if keys and values of the first stage do not fit.
        """
        rows, (count, limit) = len(prefix_of_row), uniforms.shape
        positions = prefixes.keys[0].shape[2]
        capacity = stage_of(1, max(1, limit - 1))
        needed = self._shape.own(rows, capacity) - 2 * sum(k.nbytes for k in self._keys)
        check_memory(needed, free_bytes(self._device), rows, limit, self._device)
        of_row = prefix_of_row.to(self._device)
        layout = PrefixRows.of(prefix_of_row, prefixes.lengths, positions)
        layers = range(len(self._keys))
        return StepBuffers(
            position=self._hold("position", torch.zeros(1, dtype=torch.int64)),
            tokens=self._hold("tokens", torch.full((rows,), pad)),
            output_row=self._hold("output_row", output_row),
            prefix_length=self._hold("prefix_length", prefixes.lengths[of_row]),
            state=self._hold("state", state.state[of_row]),
            bones=self._hold("bones", state.bones[of_row]),
            skin=self._hold("skin", state.skin[of_row]),
            uniforms=self._hold("uniforms", uniforms),
            ids=self._hold("ids", torch.full((count, limit), pad)),
            log_probs=self._hold("log_probs", torch.zeros(count, limit)),
            rows=self._hold_layout(layout),
            prefix_of_row=prefix_of_row,
            prefix_keys=[self._hold(f"keys {i}", prefixes.keys[i]) for i in layers],
            prefix_values=[self._hold(f"values {i}", prefixes.values[i]) for i in layers],
            own_keys=[self._own(self._keys, i, rows, capacity) for i in layers],
            own_values=[self._own(self._values, i, rows, capacity) for i in layers],
        )

    def keep(self, buffers: StepBuffers, kept: Tensor, used: int) -> StepBuffers:
        """Buffers of the rows `kept` (int64, ascending) only; `used` own positions hold keys."""
        capacity = buffers.own_keys[0].shape[2]
        prefix_of_row = buffers.prefix_of_row[kept.cpu()]
        lengths, prefix_keys, prefix_values = buffers.rows.lengths, buffers.prefix_keys, buffers.prefix_values
        slots: int | None = buffers.rows.slots
        if not self._static:  # no graph needs fixed shapes: drop prefixes without rows
            meshes, prefix_of_row = torch.unique(prefix_of_row, return_inverse=True)
            slots = None
            if len(meshes) < len(lengths):
                lengths = lengths[meshes]
                prefix_keys = [key[meshes] for key in prefix_keys]
                prefix_values = [value[meshes] for value in prefix_values]
        layout = PrefixRows.of(prefix_of_row, lengths, prefix_keys[0].shape[2], slots)
        per_row = [tensor[: len(kept)].copy_(tensor.index_select(0, kept)) for tensor in buffers.per_row()]
        tokens, output_row, prefix_length, state, bones, skin = per_row
        return replace(
            buffers,
            tokens=tokens,
            output_row=output_row,
            prefix_length=prefix_length,
            state=state,
            bones=bones,
            skin=skin,
            rows=self._hold_layout(layout),
            prefix_of_row=prefix_of_row,
            prefix_keys=prefix_keys,
            prefix_values=prefix_values,
            own_keys=self._move(self._keys, buffers.own_keys, kept, capacity, used),
            own_values=self._move(self._values, buffers.own_values, kept, capacity, used),
        )

    def grow(self, buffers: StepBuffers, capacity: int, used: int) -> StepBuffers:
        """Buffers with room for more own positions; raises MemoryError if they do not fit."""
        rows = len(buffers.tokens)
        needed = rows * self._kv_heads * capacity * self._head_dim
        if needed > self._keys[0].numel():
            growth = self._shape.growth(rows, capacity)
            check_memory(growth, free_bytes(self._device), rows, capacity, self._device)
        everyone = torch.arange(rows, device=self._device)
        return replace(
            buffers,
            own_keys=self._move(self._keys, buffers.own_keys, everyone, capacity, used),
            own_values=self._move(self._values, buffers.own_values, everyone, capacity, used),
        )

    def _move(
        self, storages: list[Tensor], old: list[Tensor], rows: Tensor, capacity: int, used: int
    ) -> list[Tensor]:
        """Keys or values of some rows at another capacity, layer by layer, each freed before the next."""
        views = []
        for index in range(len(storages)):
            content = old[index][:, :, :used].index_select(0, rows)
            old[index] = content  # drops the view, so that a storage that is replaced is freed
            view = self._own(storages, index, len(rows), capacity)
            view[:, :, :used] = content
            views.append(view)
        return views

    def _own(self, storages: list[Tensor], index: int, rows: int, capacity: int) -> Tensor:
        """A view (R, KV, C, d) of a storage, which is replaced if it is too small."""
        shape = (rows, self._kv_heads, capacity, self._head_dim)
        needed = rows * self._kv_heads * capacity * self._head_dim
        if storages[index].numel() < needed:
            storages[index] = self._new(0)
            storages[index] = self._new(needed)
        return storages[index][:needed].view(shape)

    def _new(self, size: int) -> Tensor:
        return torch.zeros(size, device=self._device, dtype=self._dtype)

    def _hold(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor on the device; if static, in the memory of the last one of this name and shape."""
        if not self._static:
            return tensor
        held = self._held.get(name)
        if held is None or held.shape != tensor.shape:
            held = self._held[name] = tensor.to(self._device, copy=True)
        else:
            held.copy_(tensor)
        return held

    def _hold_layout(self, layout: PrefixRows) -> PrefixRows:
        rows = len(layout.slot_of_row)
        return replace(
            layout,
            lengths=self._hold("lengths", layout.lengths),
            slot_of_row=self._hold(f"slot_of_row {rows}", layout.slot_of_row),
            row_of_slot=self._hold(f"row_of_slot {rows}", layout.row_of_slot),
        )
