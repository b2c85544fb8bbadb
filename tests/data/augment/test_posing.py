"""A pose as new bind pose: a bent arm by hand, and agreement with the skinning the rewards use."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import Mesh, Rig, make_creature
from data.augment.posing import posed, randomly_posed
from data.transforms import random_rotations, rotations_about
from rewards.lbs import linear_blend_skinning, skinning_matrices

CREATURE = make_creature(3, "biped")


def arm() -> tuple[Mesh, Rig]:
    """Joints at x = -1, 0, 1; five vertices, the last bound to nothing."""
    vertices = np.array([[-1, 0, 0], [0.5, 0, 0], [1, 0, 0], [1, 0, 0.5], [-1, 0.2, 0]], dtype=np.float32)
    weights = np.array([[1, 0, 0], [0.5, 0.5, 0], [0, 0, 1], [0, 0, 2], [0, 0, 0]], dtype=np.float32)
    mesh = Mesh(vertices, np.array([[0, 1, 2], [2, 3, 4]]), "arm", np.zeros(3), 1.0)
    return mesh, Rig(np.array([[-1, 0, 0], [0, 0, 0], [1, 0, 0]]), np.array([-1, 0, 1]), weights)


def test_an_elbow_bent_by_a_right_angle():
    turns = np.tile(np.eye(3), (3, 1, 1))
    turns[1] = rotations_about(np.array([[0.0, 0, 1]]), np.array([np.pi / 2]))[0]
    mesh, rig = posed(*arm(), turns)
    # About joint 1 at 0, x -> y: the hand (1, 0, 0) to (0, 1, 0), (1, 0, 0.5) to (0, 1, 0.5); the vertex half
    # on it to the mean of (0.5, 0, 0) and (0, 0.5, 0); the first and the unbound one stay. Weights that sum
    # to 2 count as 1.
    vertices = np.array([[-1, 0, 0], [0.25, 0.25, 0], [0, 1, 0], [0, 1, 0.5], [-1, 0.2, 0]])
    joints = np.array([[-1, 0, 0], [0, 0, 0], [0, 1, 0]])
    # Box: x -1..0.25, y 0..1, z 0..0.5; centre (-0.375, 0.5, 0.25), 2 / 1.25 = 1.6.
    centre = np.array([-0.375, 0.5, 0.25])
    np.testing.assert_allclose(mesh.vertices, (vertices - centre) * 1.6, atol=1e-6)
    np.testing.assert_allclose(rig.joints, (joints - centre) * 1.6, atol=1e-6)
    np.testing.assert_array_equal(rig.weights, arm()[1].weights)


def test_a_turn_of_a_parent_carries_its_children():
    turns = np.tile(np.eye(3), (3, 1, 1))
    turns[0] = rotations_about(np.array([[0.0, 0, 1]]), np.array([np.pi / 2]))[0]
    turns[1] = turns[0]
    _, rig = posed(*arm(), turns)
    # Root at -1: joint 1 to (-1, 1, 0); then a second right angle: joint 2 to (-2, 1, 0).
    legs = np.diff(rig.joints, axis=0)
    np.testing.assert_allclose(legs / np.linalg.norm(legs[0]), [[0, 1, 0], [-1, 0, 0]], atol=1e-6)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6))
def test_as_the_rewards_skin_it(seed):
    turns = random_rotations(np.random.default_rng(seed), len(CREATURE.rig.joints), 1.0)
    mesh, rig = posed(CREATURE.mesh, CREATURE.rig, turns)
    matrices = skinning_matrices(CREATURE.rig.joints, CREATURE.rig.parents, turns[None])
    plain = linear_blend_skinning(CREATURE.mesh.vertices, CREATURE.rig.weights, matrices)[0]
    heads = np.einsum("jab,jb->ja", matrices[0, :, :, :3], CREATURE.rig.joints) + matrices[0, :, :, 3]
    low, high = plain.min(axis=0), plain.max(axis=0)
    scale = 2 / (high - low).max()
    np.testing.assert_allclose(mesh.vertices, (plain - (low + high) / 2) * scale, atol=2e-6)
    np.testing.assert_allclose(rig.joints, (heads - (low + high) / 2) * scale, atol=2e-6)


def test_no_angle_no_change_and_bones_keep_their_lengths():
    mesh, rig = randomly_posed(CREATURE.mesh, CREATURE.rig, np.random.default_rng(0), 0.0)
    np.testing.assert_allclose(mesh.vertices, CREATURE.mesh.vertices, atol=1e-6)
    np.testing.assert_allclose(rig.joints, CREATURE.rig.joints, atol=1e-6)
    _, bent = randomly_posed(CREATURE.mesh, CREATURE.rig, np.random.default_rng(0), 0.5)
    lengths = [np.linalg.norm((one.joints - one.joints[one.parents])[1:], axis=1) for one in (rig, bent)]
    ratios = lengths[1] / lengths[0]
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-4)
    assert np.abs(bent.joints - rig.joints).max() > 0.1


def test_rotations_must_fit():
    with pytest.raises(ValueError, match=r"rotations have shape \(2, 3, 3\); pass \(3, 3, 3\)"):
        posed(*arm(), np.zeros((2, 3, 3)))
