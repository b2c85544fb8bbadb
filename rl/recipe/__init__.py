"""The GRPO recipe: what each key means, its default, and how a recipe is read and checked."""

from rl.recipe.load import check_recipe, grpo_arguments, load_recipe
from rl.recipe.reward_settings import reward_settings, total_reward
from rl.recipe.rewards import RewardsRecipe
from rl.recipe.sections import LoraRecipe, PolicyRecipe, Recipe, RigRecipe

__all__ = [
    "LoraRecipe",
    "PolicyRecipe",
    "Recipe",
    "RewardsRecipe",
    "RigRecipe",
    "check_recipe",
    "grpo_arguments",
    "load_recipe",
    "reward_settings",
    "total_reward",
]
