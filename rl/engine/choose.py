"""Chooses the rollout engine that a recipe names."""

from __future__ import annotations

from policy.tokenrig.modeling import TokenRigForCausalLM
from policy.tokens.grammar import Grammar
from rl.engine.plain import PlainSampler
from rl.engine.sampler import Sampler
from rl.recipe import Recipe


def make_sampler(model: TokenRigForCausalLM, recipe: Recipe) -> Sampler:
    """The sampler of `model` under the recipe's grammar; a model wrapped by PEFT or accelerate will do."""
    grammar = Grammar(model.config.get_vocabulary(), recipe.policy.grammar)
    return PlainSampler(model, grammar)
