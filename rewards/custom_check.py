"""Tries a user's reward function on a small creature, before a run depends on it."""

from __future__ import annotations

import inspect
from functools import cache

from data.creatures import make_creature
from rewards.custom import CustomRewardError, find_reward
from rewards.errors import RigRewardError
from rewards.score import RewardSettings, prepare_scoring_mesh, score_rig


@cache
def check_custom_reward(place: str) -> None:
    """Import the function at `package.module:function` and score a procedural creature's own rig with it.

    Raises:
        CustomRewardError: it cannot be imported, does not take one argument, fails on the creature or
            returns something else than a finite number.
    """
    function = find_reward(place)
    try:
        signature = inspect.signature(function)
    except ValueError:  # some built-in functions have none
        pass
    else:
        try:
            signature.bind(None)
        except TypeError:
            raise CustomRewardError(
                f"the reward {place} takes {signature}; it must take one argument, a "
                "rewards.custom.RewardInputs"
            ) from None
    settings = RewardSettings(resolution=24, custom=(place,))
    creature = make_creature(0)
    mesh = prepare_scoring_mesh(creature.mesh.vertices, creature.mesh.faces, settings, creature.mesh.name)
    rig = creature.rig
    weights = rig.weights[mesh.source]
    try:
        score_rig(mesh, rig.joints, rig.parents, weights, settings.rotations(len(rig.joints), 0), settings)
    except RigRewardError as error:
        raise CustomRewardError(
            f"the reward {place} rejects the rig of a procedural creature ({error}); it must accept good rigs"
        ) from error
