"""Attention of one new token per row over its mesh's shared prefix and the row's own keys."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Each part (shared prefix, own keys) is an attention of its own: its output is normalised by its own sum of
# exponentials, and the logarithm of that sum (lse) comes with it. The whole output is the mean of the parts'
# outputs weighted by exp(lse). So keys are never concatenated, and the prefix is read once per mesh, by one
# matrix product with the queries of all its rows. CUDA splits both parts further (rl/engine/kernels/).


@dataclass(eq=False)
class PrefixRows:
    """Which rows read which mesh's prefix: M meshes with S slots each, R rows spread over the slots.

    lengths: (M,) int64, valid prefix positions of each mesh, at least 1. slot_of_row: (R,) int64,
    `mesh * S + slot`. row_of_slot: (M, S) int64, -1 in an empty slot. in_order: all slots are used, in the
    order of the rows. hidden: (M, 1, 1, P) bool, True at padding of shorter prefixes; None without padding.

    The int64 tensors, all that CUDA reads, keep their addresses in :meth:`copy_`, for captured graphs.
    """

    lengths: Tensor
    slot_of_row: Tensor
    row_of_slot: Tensor
    in_order: bool
    hidden: Tensor | None

    @property
    def slots(self) -> int:
        """S, the most rows of one mesh."""
        return self.row_of_slot.shape[1]

    @classmethod
    def of(cls, mesh_of_row: Tensor, lengths: Tensor, positions: int, slots: int | None = None) -> PrefixRows:
        """The layout of rows with these meshes; copies to the host, so build it outside a captured step.

        mesh_of_row: (R,) int64, indices into `lengths`; lengths: (M,) int64; positions: P, the size of the
        prefix buffers; slots: S if it should exceed the most rows of a mesh, to keep the shape of a graph.

        Raises ValueError if a mesh has more rows than slots or a length is not within 1 and P.
        """
        device = lengths.device
        meshes = mesh_of_row.tolist()
        sizes = lengths.tolist()
        if min(sizes) < 1 or max(sizes) > positions:
            raise ValueError(f"prefix lengths {sizes} must lie between 1 and {positions}, the buffers' size")
        used = [0] * len(sizes)
        slot_in_mesh = []
        for mesh in meshes:
            slot_in_mesh.append(used[mesh])
            used[mesh] += 1
        slots = max(used) if slots is None else slots
        if max(used) > slots:
            raise ValueError(f"a mesh has {max(used)} rows but only {slots} slots; pass at least {max(used)}")
        slot_of_row = [mesh * slots + slot for mesh, slot in zip(meshes, slot_in_mesh, strict=True)]
        row_of_slot = torch.full((len(sizes) * slots,), -1)
        row_of_slot[slot_of_row] = torch.arange(len(meshes))
        hidden = torch.arange(positions) >= torch.tensor(sizes)[:, None]
        return cls(
            lengths=lengths,
            slot_of_row=torch.tensor(slot_of_row, device=device),
            row_of_slot=row_of_slot.view(len(sizes), slots).to(device),
            in_order=slot_of_row == list(range(len(sizes) * slots)),
            hidden=hidden[:, None, None].to(device) if min(sizes) < positions else None,
        )

    def copy_(self, other: PrefixRows) -> None:
        """Take over another layout of the same rows, meshes and slots."""
        self.lengths.copy_(other.lengths)
        self.slot_of_row.copy_(other.slot_of_row)
        self.row_of_slot.copy_(other.row_of_slot)
        self.in_order, self.hidden = other.in_order, other.hidden


def decode_attention(
    query: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    own_key: Tensor,
    own_value: Tensor,
    position: Tensor,
    rows: PrefixRows,
) -> Tensor:
    """Softmax attention of one token per row over [its mesh's prefix, its own keys up to `position`].

    Args:
        query: (R, H, d), rotated, not scaled (scores are divided by sqrt(d) here).
        prefix_key, prefix_value: (M, KV, P, d), once per mesh, valid up to `rows.lengths`; H is a multiple of
            KV, and query head h reads key head h // (H / KV).
        own_key, own_value: (R, KV, C, d), of which entries 0 to `position` inclusive are valid.
        position: (1,) int64, index of the new token's own key. On CUDA it stays on the device.
        rows: which rows read which prefix.

    Returns (R, H, d) in the queries' dtype; sums are float32. On CUDA the Triton kernels run, and the work
    follows `position`, not C, also in a captured graph.
    """
    if query.device.type != "cpu":  # also "meta", on which the tests check what a graph can hold
        from rl.engine.kernels.decode import split_decode_attention

        return split_decode_attention(
            query, prefix_key, prefix_value, own_key, own_value, position, rows.lengths, rows.row_of_slot
        )
    count, heads, size = query.shape
    meshes, kv_heads = prefix_key.shape[:2]
    repeat, slots = heads // kv_heads, rows.slots
    grouped = query.reshape(count, kv_heads, repeat, size)

    spread = grouped
    if not rows.in_order:
        spread = grouped.new_zeros(meshes * slots, kv_heads, repeat, size)
        spread.index_copy_(0, rows.slot_of_row, grouped)
    spread = spread.view(meshes, slots, kv_heads, repeat, size).transpose(1, 2)
    shape = (meshes, kv_heads, slots * repeat)
    out, lse = _attend(spread.reshape(*shape, size), prefix_key, prefix_value, rows.hidden)
    out = out.view(meshes, kv_heads, slots, repeat, size).transpose(1, 2).reshape(-1, kv_heads, repeat, size)
    lse = lse.view(meshes, kv_heads, slots, repeat, 1).transpose(1, 2).reshape(-1, kv_heads, repeat, 1)
    if not rows.in_order:
        out, lse = out.index_select(0, rows.slot_of_row), lse.index_select(0, rows.slot_of_row)

    length = int(position) + 1
    own_out, own_lse = _attend(grouped, own_key[:, :, :length], own_value[:, :, :length], None)
    weight = torch.sigmoid(own_lse - lse).to(out.dtype)
    return torch.lerp(out, own_out, weight).reshape(count, heads, size)


def _attend(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention of one part and the log of its sum of exponentials: (B, KV, Q, d), (B, KV, Q, 1) float32.

    query (B, KV, Q, d), key and value (B, KV, N, d), hidden (B, 1, 1, N) bool. Measured on two cores:
    products are 5 to 30 % faster in float32, torch's flash kernel up to twice as fast in half precision.
    """
    if query.dtype != torch.float32:
        mask = None
        if hidden is not None:
            mask = torch.zeros(hidden.shape, dtype=query.dtype).masked_fill_(hidden, -math.inf)
            mask = mask.expand(-1, -1, query.shape[2], -1)
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, attn_mask=mask
        )
        return out, lse.unsqueeze(-1)
    scores = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(-1, -2))
    if hidden is not None:
        scores.masked_fill_(hidden, -math.inf)
    lse = scores.logsumexp(-1, keepdim=True)
    return torch.matmul(scores.sub_(lse).exp_(), value), lse
