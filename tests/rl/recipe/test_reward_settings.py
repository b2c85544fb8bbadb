"""Reward settings and the total reward of a recipe."""

import dataclasses

import pytest

from data.field_docs import dotted_docs
from data.typed_recipe import RecipeError
from rewards.settings import RewardSettings
from rl.recipe import Recipe, reward_settings, total_reward
from rl.recipe.reward_settings import SETTING_KEYS
from tests.rl.recipe.test_load import load


def test_every_section_of_the_recipe_reaches_the_reward_settings():
    recipe = load(
        "base",
        "rewards.resolution=50",
        "rewards.interior=flood",
        "rewards.coverage.alpha=0.5",
        "rewards.coverage.distance_unit=mesh",
        "rewards.containment.samples_per_bone=3",
        "rewards.sparsity.threshold=0.2",
        "rewards.sparsity.max_influences=2",
        "rewards.sparsity.unbound_power=2",
        "rewards.sparsity.crowded_power=3",
        "rewards.smoothness.scale=4",
        "rewards.smoothness.reduce=mean",
        "rewards.bone_influence.min_vertices=5",
        "rewards.joint_count_prior.expected=12",
        "rewards.joint_count_prior.factor=3",
        "rewards.max_scoring_vertices=77",
        "deformation.poses=2",
        "deformation.max_angle_deg=10",
        "deformation.wide_poses=3",
        "deformation.wide_angle_deg=70",
    )
    settings = dataclasses.asdict(reward_settings(recipe))
    expected = {
        "resolution": 50,
        "interior": "flood",
        "alpha": 0.5,
        "distance_unit": "mesh",
        "samples_per_bone": 3,
        "threshold": 0.2,
        "max_influences": 2,
        "unbound_power": 2.0,
        "crowded_power": 3.0,
        "smoothness_scale": 4.0,
        "reduce": "mean",
        "min_owned_vertices": 5,
        "expected_joints": 12.0,
        "joint_count_factor": 3.0,
        "max_scoring_vertices": 77,
        "poses": 2,
        "max_angle_deg": 10.0,
        "wide_poses": 3,
        "wide_angle_deg": 70.0,
    }
    assert {key: settings[key] for key in expected} == expected


def test_every_setting_has_its_recipe_key():
    derived = {"poses", "pose_file", "guards", "custom"}
    assert {field.name for field in dataclasses.fields(RewardSettings)} == SETTING_KEYS.keys() | derived
    assert set(SETTING_KEYS.values()) <= dotted_docs(Recipe).keys()


def test_the_total_is_the_weighted_sum():
    rewards = {"coverage": 0.5, "containment": 0.25, "sparsity": 1.0, "smoothness": 0.125}
    # 5 * 0.5 + 0.25 + 1 + 0.125
    assert total_reward(rewards, load("base").rewards) == 3.875


def test_all_weights_zero_is_refused():
    names = ("coverage", "containment", "sparsity", "smoothness")
    with pytest.raises(RecipeError, match="every reward weight is 0"):
        load("base", *(f"rewards.{name}.weight=0" for name in names))
