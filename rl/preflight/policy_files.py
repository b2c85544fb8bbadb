"""Checks that the recipe's policy and skin VAE load and fit together; damaged files do not load."""

from __future__ import annotations

from trl import GRPOConfig

from data.typed_recipe import RecipeError
from policy.bundle import RigPolicy
from rl.policy_setup import load_policy
from rl.preflight.finding import Finding, ok, problem
from rl.preflight.launch import StepBatch
from rl.recipe import Recipe, grpo_arguments


def check_policy(recipe: Recipe) -> tuple[Finding, RigPolicy | None]:
    """Load the policy as the run does; the policy, if that worked."""
    try:
        policy = load_policy(recipe)
    except RecipeError as error:
        return problem("policy", str(error)), None
    model, vae = (sum(p.numel() for p in part.parameters()) for part in (policy.model, policy.skin_vae))
    return ok(
        "policy", f"{recipe.policy.path}: {model / 1e6:.3g} million weights, skin VAE {vae / 1e6:.3g} million"
    ), policy


def training_arguments(recipe: Recipe, batch: StepBatch) -> GRPOConfig:
    """TRL's arguments as one process of the run would have them: TRL checks them against this process alone.

    Raises RecipeError for values that are incompatible with each other or with this machine.
    """
    rows = {"per_device_train_batch_size": batch.micro_batch * batch.processes}
    try:
        return GRPOConfig(**{**grpo_arguments(recipe), **rows})
    except ValueError as error:
        raise RecipeError(f"'train': {error}") from error
