"""From tokens to rewards: reading rollouts, one request per mesh, and whose fault a missing score is."""

import numpy as np

from rewards.worker import INVALID, UNSCORED, GroupScore, RolloutScore
from rl.given_skeleton import give
from rl.scoring import PendingScore, read_rollout, submit_scores
from tests.rl import tiny
from tests.rl.training_runs import FakeService

WORDS = tiny.VOCABULARY


def test_a_completion_is_a_rig_or_nothing():
    class_id = WORDS.class_id("articulation")
    skin = [WORDS.skin_first + 3, WORDS.skin_first + 5]
    completion = [1, 2, 3, WORDS.skeleton_eos, *skin, WORDS.eos]
    rig = read_rollout(completion, class_id, WORDS)
    assert rig is not None
    assert rig.joints.shape == (1, 3)
    assert rig.parents.tolist() == [-1]
    assert rig.codes.tolist() == [[3, 5]]
    assert read_rollout(completion[:-2], class_id, WORDS) is None  # cut off
    assert read_rollout([], class_id, WORDS) is None


def test_with_a_given_skeleton_a_completion_is_its_skin():
    joints = np.array([[0, 0, 0], [0, 0.31, 0]], dtype=np.float32)
    given = give(joints, np.array([-1, 0]), "ab", WORDS)
    codes = [[3, 5], [7, 9]]
    completion = [WORDS.skin_first + code for row in codes for code in row] + [WORDS.eos]
    rig = read_rollout(completion, WORDS.class_none, WORDS, given)
    assert np.array_equal(rig.joints, joints)  # not their bins
    assert rig.parents.tolist() == [-1, 0]
    assert rig.codes.tolist() == codes
    for wrong in (completion[:-1], completion[1:], [*completion[:-1], WORDS.skin_first, WORDS.eos], []):
        assert read_rollout(wrong, WORDS.class_none, WORDS, given) is None
    assert read_rollout([1, 2, 3, *completion], WORDS.class_none, WORDS, given) is None


def test_rigs_are_submitted_once_per_mesh_and_scores_keep_their_row():
    service = FakeService(lambda row: row / 4)
    rigs = [None, object(), object(), None, object()]
    scores = submit_scores(service, [7, 2, 7, 2, 7], rigs, lambda mesh: mesh * 10)
    assert service.submitted == [(7, 3, 70), (2, 2, 20)]
    assert service.events == ["submit", "submit"]  # nothing is waited for
    # Rows 0, 2, 4 are rows 0, 1, 2 of mesh 7; rows 1, 3 are rows 0, 1 of mesh 2. Rows 0 and 3 are no rigs.
    found = [score.rewards(["coverage"]) for score in scores]
    assert found == [{"coverage": value} for value in (0.0, 0.0, 0.25, 0.0, 0.5)]
    assert [score.score().valid for score in scores] == [False, True, True, False, True]


def test_invalid_rigs_get_zero_and_unscored_ones_nothing():
    class Pending:
        def result(self) -> GroupScore:
            return GroupScore(
                [RolloutScore({"coverage": 0.5, "sparsity": 1.0}, True), INVALID, UNSCORED], 0, 0
            )

    rewards = [PendingScore(Pending(), row).rewards(["sparsity"]) for row in range(3)]
    assert rewards == [{"sparsity": 1.0}, {"sparsity": 0.0}, None]
