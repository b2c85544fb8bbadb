"""Reward functions of a user, good and bad ones, for the tests of `rewards.custom`."""

import numpy as np

from rewards import RigRewardError
from rewards.custom import RewardInputs

SEEN: list[RewardInputs] = []
NOT_A_FUNCTION = 3


def joints_per_hundred(rig: RewardInputs) -> float:
    SEEN.append(rig)
    return len(rig.joints) / 100


def how_far_it_moves(rig: RewardInputs):
    return np.abs(rig.posed - rig.vertices).mean()


def fails_on_three_joints(rig: RewardInputs) -> float:
    return 1 / 0 if len(rig.joints) == 3 else 0.5


def rejects_three_joints(rig: RewardInputs) -> float:
    if len(rig.joints) == 3:
        raise RigRewardError("three joints are not enough")
    return 1.0


def rejects_all(rig: RewardInputs) -> float:
    raise RigRewardError("nothing is good enough")


def no_number(rig: RewardInputs):
    return "much"


def an_array(rig: RewardInputs):
    return np.zeros(3)


def too_large(rig: RewardInputs) -> int:
    return 10**400


def exits(rig: RewardInputs) -> float:
    raise SystemExit(3)


def not_finite(rig: RewardInputs) -> float:
    return float("nan")


def two_arguments(joints, weights) -> float:
    return 0.0


def writes(rig: RewardInputs) -> float:
    rig.weights[:] = 0
    return 1.0


def divides_by_zero(rig: RewardInputs) -> float:
    return 1 / 0
