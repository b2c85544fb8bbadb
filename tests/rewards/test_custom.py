"""A user's own rewards: what they get, how they are scored, and what is refused."""

import math
import pickle
import sys
from dataclasses import replace

import numpy as np
import pytest

from rewards import REWARD_NAMES, RewardSettings, RigRewardError, prepare_scoring_mesh, score_rig
from rewards.custom import CustomRewardError, find_reward, import_folder
from rewards.custom_check import check_custom_reward
from rewards.lbs import linear_blend_skinning, skinning_matrices
from rewards.worker import INVALID, RolloutRig, score_rollouts
from tests.rewards import own_rewards
from tests.rewards.shapes import box, random_rig

OWN = "tests.rewards.own_rewards"
SETTINGS = RewardSettings(resolution=8, guards=("weight_locality",))
MESH = prepare_scoring_mesh(*box(), SETTINGS, "cube")


def rig(joints, seed=0):
    return (
        *random_rig(np.random.default_rng(seed), joints, 8),
        SETTINGS.rotations(joints, 0),
    )


def test_a_function_gets_the_rig_and_its_value_follows_the_other_rewards():
    own_rewards.SEEN.clear()
    places = (f"{OWN}:joints_per_hundred", f"{OWN}:how_far_it_moves")
    settings = replace(SETTINGS, custom=places)
    joints, parents, weights, rotations = rig(5)
    score = score_rig(MESH, joints, parents, weights, rotations, settings)
    names = (*REWARD_NAMES, "weight_locality", "joints_per_hundred", "how_far_it_moves")
    assert tuple(score.rewards) == settings.reward_names == names
    assert score.rewards["joints_per_hundred"] == 0.05
    (seen,) = own_rewards.SEEN
    assert seen.mesh == "cube"
    assert (seen.vertices == MESH.vertices).all()
    assert (seen.normals == MESH.normals).all()
    assert (seen.edges == MESH.edges).all()
    assert seen.grid is MESH.grid
    assert (seen.joints == joints).all()
    assert (seen.parents == parents).all()
    assert (seen.weights == weights).all()
    posed = linear_blend_skinning(MESH.vertices, weights, skinning_matrices(joints, parents, rotations))
    assert seen.posed.shape == (5, 8, 3)
    assert (seen.posed == posed).all()
    moved = np.abs(posed - MESH.vertices).mean()
    assert score.rewards["how_far_it_moves"] == pytest.approx(moved)
    plain = score_rig(MESH, joints, parents, weights, rotations, SETTINGS)
    assert seen.rewards == plain.rewards
    assert seen.diagnostics == plain.diagnostics == score.diagnostics


def test_a_function_may_reject_a_rig():
    settings = replace(SETTINGS, custom=(f"{OWN}:rejects_three_joints",))
    rigs = [RolloutRig(*rig(count)[:2], np.zeros((count, 2), np.int64)) for count in (3, 4)]
    weights = [rig(count)[2] for count in (3, 4)]
    rejected, kept = score_rollouts(MESH, rigs, weights, 0, settings)
    assert rejected == replace(INVALID, reason="three joints are not enough")
    assert kept.valid
    assert kept.rewards["rejects_three_joints"] == 1.0


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (
            "divides_by_zero",
            r"failed for a rig of 3 joints on mesh 'cube' \(ZeroDivisionError: division by zero, "
            r"own_rewards\.py line \d+\); fix the function and run the same command again",
        ),
        ("writes", r"failed for a rig of 3 joints on mesh 'cube' \(ValueError: .*read-only, own_rewards"),
        ("exits", r"failed for a rig of 3 joints on mesh 'cube' \(SystemExit: 3, own_rewards"),
        ("an_array", r"returned ndarray of shape \(3,\) for a rig of 3 joints on mesh 'cube', not a number"),
        ("too_large", "returned inf for a rig of 3 joints on mesh 'cube', which is not finite"),
        ("no_number", "returned str for a rig of 3 joints on mesh 'cube', not a number; fix"),
        ("not_finite", "returned nan for a rig of 3 joints on mesh 'cube', which is not finite; fix"),
    ],
)
def test_failures_name_the_function_and_the_rig(name, problem):
    settings = replace(SETTINGS, custom=(f"{OWN}:{name}",))
    with pytest.raises(CustomRewardError, match=f"^the reward {OWN}:{name} {problem}") as caught:
        score_rig(MESH, *rig(3), settings)
    assert "\n" not in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))  # as from a Ray worker
    assert isinstance(again, CustomRewardError)
    assert str(again) == str(caught.value)


def test_a_failure_is_not_the_policys_fault():
    """It is no invalid rig with rewards of 0: it ends the scoring of its group."""
    settings = replace(SETTINGS, custom=(f"{OWN}:fails_on_three_joints",))
    rigs = [RolloutRig(*rig(count)[:2], np.zeros((count, 2), np.int64)) for count in (4, 3)]
    weights = [rig(count)[2] for count in (4, 3)]
    assert score_rollouts(MESH, rigs[:1], weights[:1], 0, settings)[0].valid
    with pytest.raises(CustomRewardError, match="failed for a rig of 3 joints"):
        score_rollouts(MESH, rigs, weights, 0, settings)


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        (
            "no_such_module:reward",
            "cannot be imported (ModuleNotFoundError: No module named 'no_such_module')",
        ),
        (f"{OWN}:no_such_name", "is not a function: "),
        (f"{OWN}:NOT_A_FUNCTION", "has int by that name; correct one of them"),
        (
            f"{OWN}:two_arguments",
            "takes (joints, weights) -> float; it must take one argument, a rewards.custom",
        ),
        (f"{OWN}:divides_by_zero", "ZeroDivisionError"),
        (f"{OWN}:not_finite", "returned nan"),
        (f"{OWN}:rejects_all", "rejects the rig of a procedural creature (nothing is good enough)"),
    ],
)
def test_what_the_check_at_the_start_refuses(place, problem):
    with pytest.raises(CustomRewardError) as caught:
        check_custom_reward(place)
    assert str(caught.value).startswith(f"the reward {place} ")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_check_calls_the_function_once_for_a_real_creature():
    own_rewards.SEEN.clear()
    check_custom_reward.cache_clear()
    for _ in range(2):
        check_custom_reward(f"{OWN}:joints_per_hundred")
    (seen,) = own_rewards.SEEN
    assert len(seen.joints) > 3
    assert math.isfinite(seen.rewards["smoothness"])
    assert seen.weights.shape == (len(seen.vertices), len(seen.joints))


def test_modules_are_found_in_the_current_folder_and_their_folder_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    package = tmp_path / "my_package_of_rewards"
    package.mkdir()
    (package / "inner.py").write_text("def one(rig):\n    return 1.0\n")
    (tmp_path / "my_module_of_rewards.py").write_text("def one(rig):\n    return 1.0\n")
    monkeypatch.chdir(tmp_path)
    for place in ("my_package_of_rewards.inner:one", "my_module_of_rewards:one"):
        assert find_reward(place)(None) == 1.0
        assert import_folder(place) == str(tmp_path)
    (tmp_path / "my_script.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(CustomRewardError, match=r"imported \(SystemExit: 3, my_script.py line 1\); correct"):
        find_reward("my_script:one")
    (tmp_path / "my_broken_rewards.py").write_text("import numpy\n\nx = numpy.no_such_thing\n")
    with pytest.raises(
        CustomRewardError, match=r"AttributeError: .*, my_broken_rewards.py line 3\); correct"
    ):
        find_reward("my_broken_rewards:one")


def test_rig_errors_still_come_first():
    settings = replace(SETTINGS, custom=(f"{OWN}:divides_by_zero",))
    joints, _, weights, rotations = rig(3)
    with pytest.raises(RigRewardError, match="cycle"):
        score_rig(MESH, joints, [1, 2, 0], weights, rotations, settings)
