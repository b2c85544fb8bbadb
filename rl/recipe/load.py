"""Reads and checks a GRPO recipe (each section checks its own ranges); builds TRL's GRPOConfig arguments."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.typed_recipe import RecipeError, build, read_recipe
from rewards.settings import PARTS, parts_of
from rl.recipe.best_by import check_best_by
from rl.recipe.reward_settings import reward_settings
from rl.recipe.sections import Recipe
from rl.recipe.train import FIXED, check_train


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a GRPO recipe with its overlays and dotted overrides, and check it.

    Raises:
        RecipeError: a key is unknown, has the wrong type or a value that is not allowed.
    """
    return check_recipe(build(Recipe, read_recipe(path, overrides)))


def check_recipe(recipe: Recipe) -> Recipe:
    """The recipe, checked and with its `train` section completed; raises RecipeError."""
    train = check_train(recipe.train)
    _check_places(recipe)
    steps = recipe.profile.steps
    if steps is not None and steps[1] > train["max_steps"]:
        raise RecipeError(
            f"'profile.steps' {list(steps)} ends after the last step, 'train.max_steps' {train['max_steps']}"
        )
    _check_credit(recipe, train)
    reward_settings(recipe)
    check_best_by(recipe)
    return replace(recipe, train=train)


def _check_credit(recipe: Recipe, train: Mapping[str, Any]) -> None:
    """Refuse what leaves phase credit without phases, or without a ratio per token."""
    if recipe.rewards.credit != "phase":
        return
    for key, holds, why in (
        (
            "train.importance_sampling_level",
            train.get("importance_sampling_level") == "sequence",
            "is sequence, and one ratio per rig gives all its tokens the same gradient",
        ),
        (
            "train.off_policy_mask_threshold",
            train.get("off_policy_mask_threshold") is not None,
            "masks whole rigs by the sign of their one advantage",
        ),
        ("train.log_completions", train["log_completions"], "writes tables with one advantage per rig"),
        (
            "data.skeleton",
            recipe.data.skeleton == "given",
            "is given, so that only SkinTokens are trained and there is one phase",
        ),
    ):
        if holds:
            raise RecipeError(f"'rewards.credit' is phase, but '{key}' {why}; remove one of them")
    for part, names in PARTS.items():
        if not any(part in parts_of(name) for name, weight in recipe.rewards.weights.items() if weight > 0):
            keys = ", ".join(f"rewards.{name}.weight" for name in names)
            raise RecipeError(
                f"'rewards.credit' is phase, but no reward of the {part} has a weight above 0, so that "
                f"nothing credits its tokens; set one of {keys}, or remove 'rewards.credit'"
            )


def _check_places(recipe: Recipe) -> None:
    """Refuse an output directory that is a file, and a decoder device or Ray address that cannot be one."""
    for place in (Path(recipe.output_dir), *Path(recipe.output_dir).parents):
        if place.exists() and not place.is_dir():
            raise RecipeError(
                f"'output_dir' {recipe.output_dir}: {place} is a file; choose another directory"
            )
    device = recipe.workers.decoder_device
    if re.fullmatch(r"cpu|cuda(:\d+)?", device) is None:
        raise RecipeError(f"'workers.decoder_device' '{device}' is not a device; use cpu, cuda or cuda:N")
    address = recipe.ray.address
    if address is not None and re.fullmatch(r"auto|(\[[\da-fA-F:]+\]|[\w.-]+):\d+", address) is None:
        raise RecipeError(
            f"'ray.address' '{address}' is not an address; use auto, HOST:PORT of the cluster's head, or null"
        )
    for key, text in (("ray.namespace", recipe.ray.namespace), ("output_dir", recipe.output_dir)):
        if not text.strip():
            raise RecipeError(f"'{key}' is empty; set it or remove it")


def grpo_arguments(recipe: Recipe) -> dict[str, Any]:
    """Keyword arguments for GRPOConfig."""
    fixed = {key: value for key, (value, _) in FIXED.items()}
    return {
        **fixed,
        **recipe.train,
        # Incomplete checkpoints, the model card and tables of completions go here; see rl/checkpoints.py.
        "output_dir": os.path.join(recipe.output_dir, "trainer"),
        "reward_weights": list(recipe.rewards.weights.values()),
    }
