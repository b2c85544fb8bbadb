"""Chooses the rollout engine that a recipe names."""

from __future__ import annotations

import sys
from typing import Any

import torch

from data.typed_recipe import RecipeError
from policy.tokenrig.modeling import TokenRigForCausalLM
from policy.tokens.grammar import Grammar
from rl.engine.fast import FastSampler
from rl.engine.plain import PlainSampler
from rl.engine.sampler import Sampler
from rl.engine.self_check import CheckedSampler, model_scorer
from rl.engine.weights import unsupported
from rl.recipe import Recipe


def make_sampler(model: TokenRigForCausalLM, recipe: Recipe) -> Sampler:
    """The sampler of `model` under the recipe's grammar; model: bare or wrapped by PEFT.

    With `rollout.engine: auto` a model that the fast engine does not support is reported on stderr and
    sampled by the plain engine. Raises RecipeError for such a model with `fast`.
    """
    grammar = Grammar(model.config.get_vocabulary(), recipe.policy.grammar)
    plain = PlainSampler(model, grammar)
    engine = recipe.rollout.engine
    if engine == "plain":
        return plain
    reason = unsupported(model)
    if reason is not None:
        if engine == "fast":
            raise RecipeError(
                f"'rollout.engine' is fast, but the fast engine cannot sample from this model: {reason}; set "
                "rollout.engine=plain, or auto to fall back to it"
            )
        print(
            f"warning: the fast rollout engine cannot sample from this model: {reason}; sampling with the "
            "plain engine, which is slower",
            file=sys.stderr,
        )
        return plain
    dtype = sampling_dtype(recipe)
    fast = FastSampler(model, grammar, dtype)
    if fast.device.type != "cuda":
        return fast
    return CheckedSampler(fast, plain, model_scorer(model, grammar), dtype, engine)


def sampling_dtype(recipe: Recipe) -> torch.dtype:
    """The fast engine's dtype: `rollout.dtype`, by default that of training."""
    requested: Any = recipe.rollout.dtype
    if requested == "auto":
        requested = "bfloat16" if recipe.train.get("bf16") else "float32"
    return torch.bfloat16 if requested == "bfloat16" else torch.float32
