"""Hidden states of completions without padding: each mesh's prefix runs once, its completions behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from policy.tokenrig.layer_math import add_rms_norm, norm_rotate, rms_norm, rotary_tables, swiglu
from policy.tokenrig.packed_attention import PackedLayout, packed_attention


@dataclass(frozen=True)
class PackedRows:
    """Rows of a batch in packed order: prefixes `[conditioning, prompt]`, then what follows each.

    Rows of one mesh and one prompt share a prefix. If no rows share one, a prefix is a whole row: its
    attention is then one causal block instead of two parts that are merged. Of a completion of n tokens,
    n - 1 enter the pass: the prompt's last token predicts the first, and nothing follows the last.

    Attributes:
        layout: of the N packed tokens.
        meshes: the mesh of each of the P prefixes.
        prompts: ids of each prefix's prompt, or of its whole row.
        tokens: (n,) int64, for every id that enters (those of all prompts, then those of all rows) its index
            in the flattened `input_ids`.
        positions: (N,) int64, the position of each packed token.
        hidden_at: (B, C) int64, the packed token whose hidden state predicts each id of the completions; 0 at
            padding.
    """

    layout: PackedLayout
    meshes: tuple[int, ...]
    prompts: tuple[int, ...]
    tokens: Tensor
    positions: Tensor
    hidden_at: Tensor


def pack_rows(
    input_ids: Tensor,
    prompt_lengths: Tensor,
    completion_lengths: Tensor,
    mesh_index: Tensor,
    mesh_tokens: int,
    width: int,
) -> PackedRows:
    """Plan a packed pass, with one copy to the host.

    input_ids: (B, L) int64, each row its prompt followed directly by its completion; prompt_lengths,
    completion_lengths, mesh_index: (B,) int64; mesh_tokens: T, of the conditioning before each prompt; width:
    C, of the completions with their padding.
    """
    device = input_ids.device
    columns = torch.stack([prompt_lengths, completion_lengths, mesh_index], dim=1)
    on_host = torch.cat([columns.to(input_ids), input_ids], dim=1).cpu()
    begins, counts, meshes = (column.tolist() for column in on_host[:, :3].T)
    ids = on_host[:, 3:].numpy()

    groups: dict[tuple[int, bytes], list[int]] = {}
    for row, (begin, mesh) in enumerate(zip(begins, meshes, strict=True)):
        groups.setdefault((mesh, ids[row, :begin].tobytes()), []).append(row)
    # Rows of equal length become neighbours, which attention takes together.
    ordered = [sorted(rows, key=lambda row: counts[row]) for rows in groups.values()]
    own = [[max(counts[row] - 1, 0) for row in rows] for rows in ordered]

    if len(groups) == len(ids):
        return _whole_rows(ids.shape, begins, counts, meshes, mesh_tokens, width, device)
    prompts = [begins[rows[0]] for rows in ordered]
    prefixes = [mesh_tokens + prompt for prompt in prompts]
    length = ids.shape[1]
    tokens = [torch.arange(prompt) + rows[0] * length for prompt, rows in zip(prompts, ordered, strict=True)]
    positions = [torch.arange(prefix) for prefix in prefixes]
    hidden_at = torch.zeros(len(ids), width, dtype=torch.int64)
    place, end = sum(prefixes), 0
    for rows, extents, prefix, prompt in zip(ordered, own, prefixes, prompts, strict=True):
        end += prefix
        for row, extent in zip(rows, extents, strict=True):
            tokens.append(torch.arange(extent) + (row * length + prompt))
            positions.append(torch.arange(prefix, prefix + extent))
            if counts[row]:
                hidden_at[row, 0] = end - 1
                hidden_at[row, 1 : counts[row]] = torch.arange(place, place + extent)
            place += extent
    return PackedRows(
        layout=PackedLayout.of(prefixes, own, device),
        meshes=tuple(mesh for mesh, _ in groups),
        prompts=tuple(prompts),
        tokens=torch.cat(tokens).to(device, non_blocking=True),
        positions=torch.cat(positions).to(device, non_blocking=True),
        hidden_at=hidden_at.to(device, non_blocking=True),
    )


def _whole_rows(
    shape: tuple[int, ...],
    begins: Sequence[int],
    counts: Sequence[int],
    meshes: Sequence[int],
    mesh_tokens: int,
    width: int,
    device: torch.device,
) -> PackedRows:
    """The plan for rows (B, L) of which no two share a prefix."""
    # Rows of equal length become neighbours, which attention takes together.
    order = sorted(range(shape[0]), key=lambda row: begins[row] + counts[row])
    extents = {row: begins[row] + max(counts[row] - 1, 0) for row in order}
    hidden_at = torch.zeros(shape[0], width, dtype=torch.int64)
    place = 0
    for row in order:
        first = place + mesh_tokens + begins[row] - 1
        hidden_at[row, : counts[row]] = torch.arange(first, first + counts[row])
        place += mesh_tokens + extents[row]
    whole = [mesh_tokens + extents[row] for row in order]
    return PackedRows(
        layout=PackedLayout.of(whole, [[] for _ in order], device),
        meshes=tuple(meshes[row] for row in order),
        prompts=tuple(extents[row] for row in order),
        tokens=torch.cat([torch.arange(extents[row]) + row * shape[1] for row in order]).to(
            device, non_blocking=True
        ),
        positions=torch.cat([torch.arange(length) for length in whole]).to(device, non_blocking=True),
        hidden_at=hidden_at.to(device, non_blocking=True),
    )


def packed_hidden_states(
    model: nn.Module, mesh_embeds: Tensor, input_ids: Tensor, rows: PackedRows
) -> Tensor:
    """Last hidden states (N, H) float32 of packed rows.

    model: transformers' Qwen3Model, whose linear layers are called as modules, so that adapters and hooks
    apply; mesh_embeds: (M, T, H); input_ids: (B, L), those that `rows` was planned for. The residual stream,
    norms, queries, keys and values have the compute dtype: that of the embeddings, or autocast's. Layers are
    checkpointed as transformers' `gradient_checkpointing_enable` has set them.
    """
    module: Any = model
    config = module.config
    embeds = module.embed_tokens(input_ids.flatten()[rows.tokens])
    hidden = _interleave(embeds, mesh_embeds.to(embeds.dtype), rows)
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    theta = config.rope_parameters["rope_theta"]
    cos, sin = rotary_tables(rows.positions, config.head_dim, theta)
    for layer in module.layers:
        run = partial(_layer, layer=layer, cos=cos, sin=sin, layout=rows.layout)
        if layer.gradient_checkpointing and layer.training:
            hidden = layer._gradient_checkpointing_func(run, hidden)
        else:
            hidden = run(hidden)
    return rms_norm(hidden.float(), module.norm.weight, module.norm.variance_epsilon)


def _interleave(embeds: Tensor, mesh_embeds: Tensor, rows: PackedRows) -> Tensor:
    """Put each prefix's conditioning before its prompt."""
    pieces: list[Tensor] = []
    *prompts, rest = embeds.split([*rows.prompts, len(embeds) - sum(rows.prompts)])
    by_mesh: Sequence[Tensor] = mesh_embeds.unbind()
    for mesh, prompt in zip(rows.meshes, prompts, strict=True):
        pieces += [by_mesh[mesh], prompt]
    return torch.cat([*pieces, rest])


def _layer(hidden: Tensor, *, layer: Any, cos: Tensor, sin: Tensor, layout: PackedLayout) -> Tensor:
    """One Qwen3 layer of packed tokens (N, H)."""
    attention, mlp = layer.self_attn, layer.mlp
    first, second = layer.input_layernorm, layer.post_attention_layernorm
    normed = rms_norm(hidden, first.weight, first.variance_epsilon)
    heads = (len(hidden), -1, attention.head_dim)
    query, key = (
        norm_rotate(projection(normed).view(heads), norm.weight, norm.variance_epsilon, cos, sin)
        for projection, norm in (
            (attention.q_proj, attention.q_norm),
            (attention.k_proj, attention.k_norm),
        )
    )
    value = attention.v_proj(normed).view(heads)
    mixed = attention.o_proj(packed_attention(query, key, value, layout).flatten(1))
    hidden, normed = add_rms_norm(hidden, mixed, second.weight, second.variance_epsilon)
    return hidden + mlp.down_proj(swiglu(mlp.gate_proj(normed), mlp.up_proj(normed)))
