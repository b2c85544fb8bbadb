"""Which parameters Muon and AdamW train, and their learning-rate schedule."""

from __future__ import annotations

import math
import re
from typing import Any, Literal

import torch
from torch import nn

from data.typed_recipe import RecipeError
from policy.pretraining.loop_recipe import LoopRecipe
from policy.pretraining.muon import MuonAdamW

# Projections of attention layers, by the end of their names.
_ATTENTION = re.compile(
    r"(\.|^)(to_[qkv]|to_out\.0|[qkvo]_proj|c_q|c_kv|c_qkv|attn\.c_proj)\.weight$",
)


def muon_split(
    model: nn.Module, kind: Literal["blocks", "attention"] = "blocks"
) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters as (matrices for Muon, other matrices of stacked blocks, the rest).

    `kind` "blocks" gives Muon all matrices of the stacked blocks, "attention" only the projections of
    attention layers. Muon never trains embeddings, input and output projections, norms or biases, as its
    authors advise.
    """
    matrices: list[nn.Parameter] = []
    other: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        inside_block = parameter.ndim == 2 and any(part in name for part in ("layers.", "blocks."))
        is_attention = parameter.ndim == 2 and _ATTENTION.search(name) is not None
        if is_attention if kind == "attention" else inside_block:
            matrices.append(parameter)
        else:
            (other if inside_block else rest).append(parameter)
    return matrices, other, rest


def build_optimizer(model: nn.Module, recipe: LoopRecipe) -> torch.optim.Optimizer:
    """Muon with AdamW, or AdamW alone; Muon's updates are scaled to AdamW's, so both use one learning rate.

    Raises RecipeError if torch has no Muon.
    """
    adamw_options: dict[str, Any] = {"lr": recipe.learning_rate, "betas": (0.9, 0.98), "weight_decay": 0.0}
    if recipe.optimizer == "adamw":
        matrices, _, rest = muon_split(model)
        return torch.optim.AdamW(_decaying(matrices, rest, recipe.weight_decay), **adamw_options)
    if not hasattr(torch.optim, "Muon"):
        raise RecipeError("'loop.optimizer: muon' needs torch 2.9 or later; use 'adamw' or update torch")
    matrices, other, rest = muon_split(model, recipe.muon_matrices)
    muon = torch.optim.Muon(
        matrices,
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    adamw = torch.optim.AdamW(_decaying(other, rest, recipe.weight_decay), **adamw_options)
    return MuonAdamW(muon, adamw)


def _decaying(matrices: list[nn.Parameter], rest: list[nn.Parameter], decay: float) -> list[dict[str, Any]]:
    """Parameter groups with and without weight decay; empty groups are dropped."""
    groups: list[dict[str, Any]] = [{"params": matrices, "weight_decay": decay}, {"params": rest}]
    return [group for group in groups if group["params"]]


def cosine_factor(step: int, recipe: LoopRecipe) -> float:
    """Share of the peak learning rate at `step`: linear warm-up, then cosine to `min_learning_rate_ratio`."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.max_steps - recipe.warmup_steps)
    floor = recipe.min_learning_rate_ratio
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
