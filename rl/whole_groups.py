"""Puts the rows of each group back together in TRL's shuffled batches, so that a group's prefix runs once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import split_tensor_dict

Batch = dict[str, Any]


def regroup(batches: Sequence[Batch]) -> list[Batch]:
    """The same rows in as many batches of the same sizes, with the rows of each mesh as neighbours.

    batches: TRL's buffered micro-batches, with `prompt_ids` (B, P) that begin with the mesh. Meshes keep the
    order of their first rows, and rows the order within their mesh. The gradient of a step that takes all
    batches is the same up to rounding.
    """
    whole = {key: _joined([batch[key] for batch in batches]) for key in batches[0]}
    order = group_order(whole["prompt_ids"][:, 0])
    return split_tensor_dict({key: _ordered(value, order) for key, value in whole.items()}, len(batches))


def group_order(meshes: Tensor) -> Tensor:
    """(B,) int64 permutation that makes equal entries of meshes (B,) neighbours, in order of first rows."""
    same = meshes[:, None] == meshes[None]
    first = same.int().argmax(dim=1)  # the first row of each row's mesh
    return first.argsort(stable=True)


def _joined(parts: Sequence[Any]) -> Any:
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts)) if first.ndim else first
    return first if first is None else [entry for part in parts for entry in part]


def _ordered(value: Any, order: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[order] if value.ndim else value
    return value if value is None else [value[row] for row in order.tolist()]
