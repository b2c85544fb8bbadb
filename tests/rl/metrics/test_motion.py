"""Motion loss by hand, on real rigs, and against plain loops."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.rig import Rig, reorder
from rewards import random_rotations
from rewards.poses import rotation_matrices
from rewards.references import linear_blend_skinning_reference, skinning_matrices_reference
from rl.metrics import FAILED_MOTION, MetricError, motion_loss, pair_joints
from rl.metrics.pairing import _depths
from tests.rewards import cases
from tests.rl.metrics.rigs import random_rig, rig

TURN_Z = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # 90 degrees: x to y, y to -x
STILL = np.eye(3)


def mean_loss(vertices, predicted, truth, rotations):
    return motion_loss(vertices, predicted, truth, rotations, pair_joints(predicted, truth)).mean


def test_motion_loss_by_hand():
    vertices = [[1, 0, 0], [0, 0, 0]]
    truth = rig([[0, 0, 0], [0.5, 0, 0]], [-1, 0], [1, 0])
    early = rig([[0, 0, 0], [0.25, 0, 0]], [-1, 0], [1, 0])
    # The elbow turns by 90 degrees. True: (1, 0, 0) is 0.5 past the elbow, so it goes to (0.5, 0.5, 0).
    # Predicted: 0.75 past it, to (0.25, 0.75, 0). They are hypot(0.25, 0.25) apart; the other vertex rests.
    turn = np.array([[STILL, TURN_Z]])
    assert mean_loss(vertices, early, truth, turn) == pytest.approx(math.hypot(0.25, 0.25) / 2)
    # A second pose, at rest, halves the mean.
    rest = np.array([[STILL, STILL]])
    both = np.concatenate([turn, rest])
    assert mean_loss(vertices, early, truth, both) == pytest.approx(math.hypot(0.25, 0.25) / 4)
    assert mean_loss(vertices, early, truth, rest) == 0
    # The root turns: all weights and joints agree about it.
    assert mean_loss(vertices, early, truth, np.array([[TURN_Z, STILL]])) == 0


def test_squared_distances_by_hand():
    """UniRig's measure where both rigs share the skeleton: only the weights differ."""
    truth = rig([[0, 0, 0], [0.5, 0, 0]], [-1, 0], [1, 1, 0])
    other = rig([[0, 0, 0], [0.5, 0, 0]], [-1, 0], [1, 0, 0])
    # The second vertex should turn about the elbow from (0.75, 0, 0) to (0.5, 0.25, 0) and stays. Its squared
    # distance is 0.25² + 0.25² = 0.125; those of the other two are 0.
    vertices = [[1, 0, 0], [0.75, 0, 0], [0, 0, 0]]
    found = motion_loss(vertices, other, truth, np.array([[STILL, TURN_Z]]), np.array([0, 1]))
    assert found.squared == pytest.approx(0.125 / 3)
    assert found.mean == pytest.approx(math.sqrt(0.125) / 3)
    # A vertex is half a weight off: it is moved half of the way, a quarter of the square.
    half = Rig(other.joints, other.parents, np.array([[0, 1], [0.5, 0.5], [1, 0]]))
    found = motion_loss(vertices, half, truth, np.array([[STILL, TURN_Z]]), np.array([0, 1]))
    assert found.squared == pytest.approx(0.125 / 4 / 3)
    # Two poses: the mean of their squares.
    both = np.array([[STILL, TURN_Z], [STILL, STILL]])
    assert motion_loss(vertices, half, truth, both, np.array([0, 1])).squared == pytest.approx(0.125 / 24)


def test_a_missing_joint_costs_what_it_moves_and_a_superfluous_one_nothing():
    vertices = [[1, 0, 0], [0.25, 0, 0]]
    two = rig([[0, 0, 0], [0.5, 0, 0]], [-1, 0], [1, 0])
    one = rig([[0, 0, 0]], [-1], [0, 0])
    # (1, 0, 0) goes to (0.5, 0.5, 0) but the rig of one joint leaves it: hypot(0.5, 0.5) / 2 vertices.
    loss = mean_loss(vertices, one, two, np.array([[STILL, TURN_Z]]))
    assert loss == pytest.approx(math.hypot(0.5, 0.5) / 2)
    # A joint in the middle of the bone is nobody's: it follows the root, as the vertex on it should.
    three = rig([[0, 0, 0], [0.25, 0, 0], [0.5, 0, 0]], [-1, 0, 1], [2, 1])
    assert pair_joints(three, two).tolist() == [0, -1, 1]
    assert mean_loss(vertices, three, two, np.array([[TURN_Z, TURN_Z]])) == pytest.approx(0, abs=1e-12)
    assert mean_loss(vertices, one, one, np.array([[TURN_Z]])) == 0


@pytest.mark.parametrize("name", cases.NAMES)
def test_real_rigs_move_like_themselves(name):
    data = cases.inputs(name)
    truth = Rig(data["joints"], data["parents"], data["weights"])
    rotations = rotation_matrices(data["poses"].astype(np.float64))
    assert mean_loss(data["vertices"], truth, truth, rotations) == 0
    moved = Rig(data["joints_shift_random"], data["parents"], data["weights"])
    assert 0 < mean_loss(data["vertices"], moved, truth, rotations) < FAILED_MOTION.mean


@given(seed=st.integers(0, 2**32), counts=st.tuples(st.integers(1, 6), st.integers(1, 6)))
@settings(deadline=None, max_examples=30)
def test_properties_of_the_motion_loss(seed, counts):
    rng = np.random.default_rng(seed)
    predicted, truth = (random_rig(rng, count, 5) for count in counts)
    vertices = rng.uniform(-1, 1, (5, 3))
    rotations = random_rotations(3, counts[1], 30.0, seed)
    found = mean_loss(vertices, predicted, truth, rotations)

    pairing = pair_joints(predicted, truth)
    paired = pairing[pairing >= 0]
    assert len(set(paired.tolist())) == len(paired) == min(counts)
    # The plain way: a rotation per predicted joint, and the mean of every vertex's distance in every pose.
    taken = np.tile(np.eye(3), (3, counts[0], 1, 1))
    for joint, partner in enumerate(pairing):
        if partner >= 0:
            taken[:, joint] = rotations[:, partner]
    moved = [
        linear_blend_skinning_reference(
            vertices, each.weights, skinning_matrices_reference(each.joints, each.parents, turns)
        )
        for each, turns in ((predicted, taken), (truth, rotations))
    ]
    plain = [math.dist(moved[0][p, v], moved[1][p, v]) for p in range(3) for v in range(5)]
    assert found == pytest.approx(sum(plain) / 15, abs=1e-9)
    squared = motion_loss(vertices, predicted, truth, rotations, pairing).squared
    assert squared == pytest.approx(sum(x * x for x in plain) / 15, abs=1e-9)

    assert mean_loss(vertices, truth, truth, rotations) == 0
    if counts[0] == counts[1]:  # every joint is paired, so each rig can take the other's poses
        assert mean_loss(vertices, truth, predicted, taken) == pytest.approx(found, abs=1e-12)
    shift = np.array([0.25, -0.5, 0.125], dtype=np.float32)
    shifted = [Rig(each.joints + shift, each.parents, each.weights) for each in (predicted, truth)]
    assert mean_loss(vertices + shift, *shifted, rotations) == pytest.approx(found, abs=1e-5)
    # The joints of the prediction in another order that keeps parents first: breadth after depth.
    depths = _depths(predicted)
    other = reorder(predicted, np.lexsort((-np.arange(counts[0]), depths)))
    assert mean_loss(vertices, other, truth, rotations) == pytest.approx(found, abs=1e-9)


@pytest.mark.parametrize(
    ("vertices", "poses", "message"),
    [
        (
            np.zeros((3, 3)),
            np.zeros((1, 2, 3, 3)),
            "the predicted rig has weights for 2 vertices, but the mesh has 3",
        ),
        (np.zeros((0, 3)), np.zeros((1, 2, 3, 3)), r"vertices have shape \(0, 3\)"),
        (np.zeros((2, 2)), np.zeros((1, 2, 3, 3)), r"vertices have shape \(2, 2\)"),
        (np.full((2, 3), np.nan), np.zeros((1, 2, 3, 3)), "vertices are not all finite"),
        (np.zeros((2, 3)), np.zeros((1, 3, 3, 3)), r"rotations have shape \(1, 3, 3, 3\); 2 joints need"),
        (np.zeros((2, 3)), np.zeros((0, 2, 3, 3)), r"rotations have shape \(0, 2, 3, 3\)"),
        (np.zeros((2, 3)), np.full((1, 2, 3, 3), np.inf), "a rotation is not finite"),
    ],
)
def test_unusable_motions_are_refused(vertices, poses, message):
    arm = rig([[0, 0, 0], [0.5, 0, 0]], [-1, 0], [1, 0])
    with pytest.raises(MetricError, match=message):
        mean_loss(vertices, arm, arm, poses)


def test_rigs_of_different_meshes_are_refused():
    arm, other = (rig([[0, 0, 0], [0.5, 0, 0]], [-1, 0], bound) for bound in ([1, 0], [1, 0, 0]))
    with pytest.raises(
        MetricError, match="the ground-truth rig has weights for 3 vertices, but the mesh has 2"
    ):
        mean_loss(np.zeros((2, 3)), arm, other, np.zeros((1, 2, 3, 3)))
