"""Turns a recipe into reward settings, and computes the weighted total reward."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from data.typed_recipe import RecipeError
from rewards.recorded_poses import PoseFileError, load_recorded_poses
from rewards.settings import RewardSettings
from rl.recipe.rewards import RewardsRecipe
from rl.recipe.sections import Recipe

# The recipe key that gives each setting; `poses`, `pose_file`, `guards` and `custom` are derived.
SETTING_KEYS = {
    "resolution": "rewards.resolution",
    "interior": "rewards.interior",
    "alpha": "rewards.coverage.alpha",
    "distance_unit": "rewards.coverage.distance_unit",
    "samples_per_bone": "rewards.containment.samples_per_bone",
    "threshold": "rewards.sparsity.threshold",
    "max_influences": "rewards.sparsity.max_influences",
    "unbound_power": "rewards.sparsity.unbound_power",
    "crowded_power": "rewards.sparsity.crowded_power",
    "smoothness_scale": "rewards.smoothness.scale",
    "reduce": "rewards.smoothness.reduce",
    "max_scoring_vertices": "rewards.max_scoring_vertices",
    "min_owned_vertices": "rewards.bone_influence.min_vertices",
    "expected_joints": "rewards.joint_count_prior.expected",
    "joint_count_factor": "rewards.joint_count_prior.factor",
    "max_angle_deg": "deformation.max_angle_deg",
    "wide_poses": "deformation.wide_poses",
    "wide_angle_deg": "deformation.wide_angle_deg",
}


def reward_settings(recipe: Recipe) -> RewardSettings:
    """The settings of the reward workers.

    Raises:
        RecipeError: a value is out of range, a pose file is bad, or a reward of the user's own does not work
            on a small creature.
    """
    deformation = recipe.deformation
    recorded = isinstance(deformation.poses, str)
    values: dict[str, Any] = {
        setting: functools.reduce(getattr, key.split("."), recipe) for setting, key in SETTING_KEYS.items()
    }
    custom = _checked(tuple(recipe.rewards.custom_weights))
    try:
        if recorded:
            load_recorded_poses(str(deformation.poses))  # refuse a bad file before the workers start
        return RewardSettings(
            **values,
            poses=deformation.frames if recorded else int(deformation.poses),
            pose_file=str(deformation.poses) if recorded else None,
            guards=recipe.rewards.guards,
            custom=custom,
        )
    except PoseFileError as error:
        raise RecipeError(f"'deformation.poses': {error}") from error
    except ValueError as error:  # "<setting> is <value>; <what it must be>"
        setting, _, rest = str(error).partition(" ")
        raise RecipeError(f"'{SETTING_KEYS.get(setting, setting)}' {rest}") from error


def _checked(places: tuple[str, ...]) -> tuple[str, ...]:
    """The user's own rewards, tried once per process."""
    if places:
        from rewards.custom import CustomRewardError
        from rewards.custom_check import check_custom_reward  # makes a creature: not for every recipe

        for place in places:
            try:
                check_custom_reward(place)
            except CustomRewardError as error:
                raise RecipeError(f"'rewards.custom': {error}") from error
    return places


def total_reward(rewards: Mapping[str, float], recipe: RewardsRecipe) -> float:
    """The weighted sum that GRPO optimises."""
    return sum(weight * rewards[name] for name, weight in recipe.weights.items())
