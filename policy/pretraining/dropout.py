"""Dropout of pre-training: in the layers of a model, and of the surface points that it sees."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from data.typed_recipe import RecipeError

# Last projections of attention and feed-forward, whose outputs are added to the residual stream: of the
# language model, of the mesh encoder, and of the skin VAE.
_BRANCH_ENDS = re.compile(r"(o_proj|down_proj|attn\.c_proj|mlp\.c_proj|to_out\.0|ff\.net\.2)$")
_DECODERS = ("transformer.", "model.decoder.")


@dataclass(frozen=True)
class DropoutRecipe:
    """What is dropped at random in training; the trained model is an ordinary one. All are off by default."""

    encoder: float = 0.0
    """Share of the channels dropped after every attention and feed-forward layer of the encoders: stage 1's
    of bones and of the mesh, stage 2's of the mesh; at least 0 and below 1. Source: this project."""

    decoder: float = 0.0
    """The same in stage 1's decoder and in stage 2's language model; at least 0 and below 1. Source: this
    project."""

    points: float = 0.0
    """Largest share of the surface points (`data.points`) that a step does not see, drawn uniformly from 0 up
    to it for each step; at least 0 and below 1. Source: this project."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < 1:
                raise RecipeError(f"'dropout.{name}' must be at least 0 and below 1, not {value}")


def add_dropout(model: nn.Module, recipe: DropoutRecipe) -> None:
    """Drop channels of the layers' outputs in training mode; a model without dropout is not touched.

    Hooks, and so neither weights nor configuration: whatever calls the layers as modules (the plain and the
    packed pass) has the same dropout. Frozen layers have none.
    """
    for name, module in model.named_modules():
        share = recipe.decoder if name.startswith(_DECODERS) else recipe.encoder
        frozen = not any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        if share and not frozen and _BRANCH_ENDS.search(name):
            module.register_forward_hook(_dropped(share))


def _dropped(share: float) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return F.dropout(output, share, module.training)

    return hook


def seen_points(recipe: DropoutRecipe, points: Tensor, normals: Tensor, seed: tuple[int, ...]) -> Any:
    """The points and normals (M, N, 3) that a step sees: the first n, which are as random as any."""
    if not recipe.points:
        return points, normals
    share = recipe.points * np.random.default_rng(seed).random()
    count = max(1, round(points.shape[1] * (1 - share)))
    return points[:, :count], normals[:, :count]
