"""Other lengths and girths of limbs: an arm by hand, mirrored limbs, and what must stay."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import Mesh, Rig, make_creature
from data.augment.proportions import limbs_of, reproportioned, with_proportions

CREATURES = [make_creature(seed, "humanoid") for seed in range(3)]


def arm() -> tuple[Mesh, Rig]:
    """Joints at x = -1, 0, 1; the third vertex is above the elbow's bone, the last one bound to nothing."""
    vertices = np.array([[-1, 0, 0], [-0.5, 0, 0], [0.5, 0.2, 0], [1, 0, 0.1], [-1, 0.2, 0]])
    weights = np.array([[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]], dtype=np.float32)
    mesh = Mesh(vertices.astype(np.float32), np.array([[0, 1, 2], [2, 3, 4]]), "arm", np.zeros(3), 1.0)
    return mesh, Rig(np.float32([[-1, 0, 0], [0, 0, 0], [1, 0, 0]]), np.array([-1, 0, 1]), weights)


def test_an_arm_with_a_longer_upper_arm_and_a_thicker_forearm():
    mesh, rig = with_proportions(*arm(), np.array([1.5, 1.0, 1.0]), np.array([1.0, 2.0, 3.0]))
    # Joint 0 stretches by 1.5 along x: joint 1 to -1 + 1.5 = 0.5, joint 2 one further, to 1.5.
    # Vertex 1, at -0.5: half by joint 0, to -1 + 1.5 * 0.5 = -0.25, half by joint 1, to 0: -0.125.
    # Vertex 2: joint 1 keeps its length and doubles its girth: (0.5 + 0.5, 0.4, 0).
    # Vertex 3: at joint 2, whose bone, that from its parent, also lies along x: z becomes 0.3.
    vertices = np.array([[-1, 0, 0], [-0.125, 0, 0], [1, 0.4, 0], [1.5, 0, 0.3], [-1, 0.2, 0]])
    joints = np.array([[-1, 0, 0], [0.5, 0, 0], [1.5, 0, 0]])
    # Box: x -1..1.5, y 0..0.4, z 0..0.3; centre (0.25, 0.2, 0.15), 2 / 2.5 = 0.8.
    centre = np.array([0.25, 0.2, 0.15])
    np.testing.assert_allclose(mesh.vertices, (vertices - centre) * 0.8, atol=1e-6)
    np.testing.assert_allclose(rig.joints, (joints - centre) * 0.8, atol=1e-6)
    np.testing.assert_array_equal(rig.weights, arm()[1].weights)


def test_a_joint_with_several_children_grows_alike_in_all_directions():
    mesh, _ = arm()
    forked = Rig(
        np.float32([[0, 0, 0], [-1, 0, 0], [1, 0, 0]]), np.array([-1, 0, 0]), np.eye(3)[[0, 0, 0, 2, 2]]
    )
    grown, moved = with_proportions(mesh, forked, np.array([4.0, 1, 1]), np.ones(3))
    # sqrt(4 * 1) = 2 about joint 0: joint 2 to (2, 0, 0); the vertices there keep their place relative to it.
    vertices = np.array([[-2, 0, 0], [-1, 0, 0], [1, 0.4, 0], [2, 0, 0.1], [0, 0.2, 0]])
    centre = np.array([0, 0.2, 0.05])
    np.testing.assert_allclose(grown.vertices, (vertices - centre) / 2, atol=1e-6)
    np.testing.assert_allclose(
        moved.joints, (np.array([[0, 0, 0], [-2, 0, 0], [2, 0, 0]]) - centre) / 2, atol=1e-6
    )


def test_limbs_end_at_branches_and_mirror_images_share_one():
    #      0: hips, 1-2: spine, 3-4 and 5-6: arms from the chest 2, 7: head, 8-9: a leg on one side only
    joints = [[0, 0, 0], [0, 0.2, 0], [0, 0.4, 0]]
    joints += [[-0.3, 0.5, 0], [-0.6, 0.5, 0], [0.3, 0.5, 0.02], [0.6, 0.5, 0]]
    joints += [[0, 0.7, 0], [0.2, -0.3, 0], [0.2, -0.6, 0]]
    parents = np.array([-1, 0, 1, 2, 3, 2, 5, 2, 0, 8])
    rig = Rig(np.float32(joints), parents, np.ones((1, 10), np.float32) / 10)
    limbs = limbs_of(rig).tolist()
    assert limbs == [0, 1, 1, 2, 2, 2, 2, 3, 4, 4]


def test_a_single_joint_is_one_limb():
    rig = Rig(np.zeros((1, 3), np.float32), np.array([-1]), np.ones((5, 1), np.float32))
    mesh, grown = reproportioned(arm()[0], rig, np.random.default_rng(0), 0.3)
    # The whole mesh grows about the joint, which the mesh frame undoes.
    vertices = arm()[0].vertices
    np.testing.assert_allclose(
        mesh.vertices - mesh.vertices[0], (vertices - vertices[0]) * (2 / 2.0), atol=1e-6
    )
    assert len(grown.joints) == 1


@settings(deadline=None, max_examples=20)
@given(which=st.integers(0, 2), seed=st.integers(0, 2**32), sigma=st.sampled_from([0.1, 0.3, 0.6]))
def test_a_symmetric_character_stays_symmetric_and_its_tree_and_skin_stay(which, seed, sigma):
    creature = CREATURES[which]
    mesh, rig = reproportioned(creature.mesh, creature.rig, np.random.default_rng(seed), sigma)
    np.testing.assert_array_equal(rig.parents, creature.rig.parents)
    np.testing.assert_array_equal(rig.weights, creature.rig.weights)
    np.testing.assert_array_equal(mesh.faces, creature.mesh.faces)
    np.testing.assert_allclose((mesh.vertices.max(0) - mesh.vertices.min(0)).max(), 2, atol=1e-5)
    limbs = limbs_of(creature.rig)
    before = np.linalg.norm(creature.rig.joints[1:] - creature.rig.joints[creature.rig.parents[1:]], axis=1)
    after = np.linalg.norm(rig.joints[1:] - rig.joints[rig.parents[1:]], axis=1)
    ratios = after / np.maximum(before, 1e-9)
    # A bone's length is its parent's factor: joints whose parents are on mirrored limbs and have one child.
    single = np.bincount(rig.parents[1:], minlength=len(rig.joints))[rig.parents[1:]] == 1
    for limb in np.unique(limbs):
        own = ratios[single & (limbs[rig.parents[1:]] == limb) & (before > 1e-3)]
        if len(own):
            np.testing.assert_allclose(own, own[0], rtol=1e-4)


def test_factors_of_one_change_nothing():
    creature = CREATURES[0]
    ones = np.ones(len(creature.rig.joints))
    mesh, rig = with_proportions(creature.mesh, creature.rig, ones, ones)
    np.testing.assert_allclose(mesh.vertices, creature.mesh.vertices, atol=1e-6)
    np.testing.assert_allclose(rig.joints, creature.rig.joints, atol=1e-6)


def test_a_mesh_that_would_vanish_is_left_alone():
    mesh, rig = arm()
    flat = Mesh(np.zeros_like(mesh.vertices), mesh.faces, "flat", np.zeros(3), 1.0)
    assert (
        with_proportions(flat, Rig(rig.joints * 0, rig.parents, rig.weights), np.ones(3), np.ones(3))[0]
        is flat
    )


@pytest.mark.parametrize("shape", [(2,), (3, 1)])
def test_factors_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"pass \(3,\)"):
        with_proportions(*arm(), np.ones(shape), np.ones(3))
