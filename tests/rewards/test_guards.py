"""Guard rewards: values by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest

from rewards import (
    REWARD_NAMES,
    RewardSettings,
    RigRewardError,
    bone_influence,
    joint_count_prior,
    prepare_scoring_mesh,
    score_rig,
)
from tests.rewards.shapes import box


@pytest.mark.parametrize(
    ("rows", "min_vertices", "expected"),
    [
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], 1, 1.0),
        ([[1, 0, 0]] * 5, 1, 1 / 3),  # everything on the root
        ([[0.3, 0.3, 0.3]] * 5, 1, 1 / 3),  # all equal: the first bone owns everything
        ([[0.6, 0.4, 0], [0.4, 0.6, 0], [0.4, 0.6, 0]], 1, 2 / 3),
        ([[0.6, 0.4, 0], [0.4, 0.6, 0], [0.4, 0.6, 0]], 2, 1 / 3),
        ([[0, 0], [0, 0]], 1, 0.0),  # no weight, no owner
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bone_influence(dtype, rows, min_vertices, expected):
    assert bone_influence(np.array(rows, dtype=dtype), min_vertices) == pytest.approx(expected)


def test_joint_count_prior():
    assert joint_count_prior(30) == 1.0
    # twice and half the expected number: exp(-1/2); four times: exp(-2)
    assert joint_count_prior(60) == pytest.approx(math.exp(-0.5))
    assert joint_count_prior(15) == pytest.approx(math.exp(-0.5))
    assert joint_count_prior(120) == pytest.approx(math.exp(-2))
    # factor 3 around 9 joints: 27 is one factor away
    assert joint_count_prior(27, expected=9, factor=3) == pytest.approx(math.exp(-0.5))
    assert 0 < joint_count_prior(1) < joint_count_prior(2) < joint_count_prior(29) < 1


def test_guards_are_scored_only_when_enabled():
    settings = RewardSettings(resolution=8)
    mesh = prepare_scoring_mesh(*box(), settings)
    weights = np.zeros((8, 3))
    weights[:5, 0], weights[5:, 2] = 1, 1
    rig = (np.full((3, 3), 0.5), np.array([-1, 0, 1]), weights, settings.rotations(3, 0))
    assert tuple(score_rig(mesh, *rig, settings).rewards) == REWARD_NAMES
    guarded = replace(settings, guards=("joint_count_prior", "bone_influence"), expected_joints=6)
    score = score_rig(mesh, *rig, guarded)
    assert tuple(score.rewards) == (*REWARD_NAMES, "joint_count_prior", "bone_influence")
    assert tuple(score.rewards) == guarded.reward_names
    assert score.rewards["bone_influence"] == pytest.approx(2 / 3)
    assert score.rewards["joint_count_prior"] == pytest.approx(math.exp(-0.5))
    stricter = score_rig(mesh, *rig, replace(guarded, min_owned_vertices=4, joint_count_factor=4.0))
    assert stricter.rewards["bone_influence"] == pytest.approx(1 / 3)  # only the root owns 4
    assert stricter.rewards["joint_count_prior"] == pytest.approx(math.exp(-1 / 8))


def test_errors():
    with pytest.raises(RigRewardError, match="not finite"):
        bone_influence([[np.nan]])
    with pytest.raises(ValueError, match="min_vertices is 0"):
        bone_influence([[1.0]], 0)
    for arguments in ((0,), (3, 0.0), (3, 30.0, 1.0)):
        with pytest.raises(ValueError, match="at least 1, above 0 and above 1"):
            joint_count_prior(*arguments)
    with pytest.raises(
        ValueError, match="choose from bone_influence, joint_count_prior, volume_preservation, weight"
    ):
        RewardSettings(guards=("bone_influense",))
    for name in ("min_owned_vertices", "expected_joints", "joint_count_factor"):
        with pytest.raises(ValueError, match=name):
            RewardSettings(**{name: 0})
