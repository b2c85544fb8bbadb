"""Augmentation as a whole: switches, order, and what must hold after any of it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import AugmentRecipe, Mesh, Rig, augmented, make_creature
from data.transforms import in_mesh_frame
from data.typed_recipe import RecipeError, build, to_mapping

ALL = AugmentRecipe(
    reparent_probability=1.0,
    subtree_probability=1.0,
    deletion_probability=1.0,
    proportions_probability=1.0,
    scale_probability=1.0,
    mirror_probability=1.0,
    pose_probability=1.0,
    rotation_probability=1.0,
    turn_probability=1.0,
    quarter_turns_probability=1.0,
    joint_noise=1e-2,
    vertex_noise=1e-3,
)
SWITCHES = [name for name in vars(ALL) if name.endswith(("_probability", "_noise"))]
CREATURES = [make_creature(seed) for seed in range(6)]


def arrays(mesh: Mesh, rig: Rig) -> list[np.ndarray]:
    return [mesh.vertices, mesh.faces, rig.joints, rig.parents, rig.weights]


def same(a: tuple[Mesh, Rig], b: tuple[Mesh, Rig]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(arrays(*a), arrays(*b), strict=True))


def test_all_off_by_default_gives_back_the_very_objects():
    mesh, rig = CREATURES[0].mesh, CREATURES[0].rig
    rng = np.random.default_rng(0)
    state = rng.bit_generator.state
    result = augmented(mesh, rig, AugmentRecipe(), rng)
    assert result[0] is mesh
    assert result[1] is rig
    assert rng.bit_generator.state == state


@pytest.mark.parametrize("switch", SWITCHES)
def test_each_switch_changes_something_and_one_seed_gives_one_result(switch):
    recipe = replace(AugmentRecipe(), **{switch: getattr(ALL, switch)})
    changed = 0
    for creature in CREATURES:
        results = [augmented(creature.mesh, creature.rig, recipe, np.random.default_rng(4)) for _ in range(2)]
        assert same(*results)
        changed += not same(results[0], (creature.mesh, creature.rig))
    assert changed >= 3


def test_a_probability_is_one():
    recipe = AugmentRecipe(turn_probability=0.25)
    mesh, rig = CREATURES[0].mesh, CREATURES[0].rig
    rng = np.random.default_rng(0)
    turns = sum(augmented(mesh, rig, recipe, rng)[0] is not mesh for _ in range(400))
    # 400 draws of 0.25: 100, standard deviation sqrt(400 * 0.25 * 0.75) = 8.7.
    assert 70 < turns < 130


def test_noise_on_joints_comes_after_the_pose_and_leaves_the_mesh():
    creature = CREATURES[1]
    posed = AugmentRecipe(pose_probability=1.0)
    clean = augmented(creature.mesh, creature.rig, posed, np.random.default_rng(5))
    noisy = augmented(creature.mesh, creature.rig, replace(posed, joint_noise=1e-2), np.random.default_rng(5))
    np.testing.assert_array_equal(clean[0].vertices, noisy[0].vertices)
    offsets = noisy[1].joints - clean[1].joints
    assert 0.005 < offsets.std() < 0.015


@settings(deadline=None)
@given(
    which=st.integers(0, len(CREATURES) - 1),
    seed=st.integers(0, 2**32),
    on=st.sets(st.sampled_from(SWITCHES)),
)
def test_a_valid_rig_in_the_mesh_frame_whatever_is_on(which, seed, on):
    creature = CREATURES[which]
    recipe = replace(AugmentRecipe(), **{name: getattr(ALL, name) for name in on})
    mesh, rig = augmented(creature.mesh, creature.rig, recipe, np.random.default_rng(seed))
    assert rig.weights.shape == (len(mesh.vertices), len(rig.joints))
    assert len(rig.names) == len(set(rig.names)) == len(rig.joints) >= 1
    assert rig.names[0] == creature.rig.names[0]
    np.testing.assert_allclose(rig.weights.sum(axis=1), 1, atol=1e-5)
    low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
    np.testing.assert_allclose(low + high, 0, atol=1e-6)
    np.testing.assert_allclose((high - low).max(), 2, atol=1e-6)
    assert set(np.unique(mesh.faces)) == set(range(len(mesh.vertices))) or "deletion_probability" not in on
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    assert np.linalg.norm(
        np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1
    ).sum()
    if not on & {"subtree_probability", "deletion_probability"}:
        assert len(rig.joints) == len(creature.rig.joints)
    if on <= {"reparent_probability", "subtree_probability", "deletion_probability"}:
        # What stays did not move, but for the frame: the same shape at the places named alike.
        old = [creature.rig.names.index(name) for name in rig.names]
        kept = creature.rig.joints[old]
        again = in_mesh_frame(mesh, rig, np.float64(mesh.vertices), np.float64(rig.joints))[1].joints
        np.testing.assert_allclose(again, rig.joints, atol=1e-5)
        spread, before = rig.joints - rig.joints[0], kept - kept[0]
        scale = np.abs(spread).max() / max(np.abs(before).max(), 1e-9)
        np.testing.assert_allclose(spread, before * scale, atol=1e-4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"rotation_probability": 1.5},
            "'data.augment.rotation_probability' must be between 0 and 1, not 1.5",
        ),
        ({"joint_noise": -0.1}, "'data.augment.joint_noise' must be between 0 and 1, not -0.1"),
        ({"max_pose_deg": 181}, "'data.augment.max_pose_deg' must be between 0 and 180, not 181.0"),
        ({"max_deleted": float("nan")}, "'data.augment.max_deleted' must be a finite number, not .nan"),
        (
            {"scale_range": [1.2, 0.8]},
            "'data.augment.scale_range' must be two positive factors, smaller first",
        ),
        ({"scale_range": [0, 1]}, "'data.augment.scale_range' must be two positive factors"),
        ({"scale_range": [1]}, "'data.augment.scale_range' must have 2 entries, not 1"),
        (
            {"rotate_probability": 1},
            "unknown key 'data.augment.rotate_probability'; the nearest valid key is",
        ),
    ],
)
def test_recipes_that_cannot_be(values, message):
    with pytest.raises(RecipeError) as caught:
        build(AugmentRecipe, values, "data.augment")
    assert str(caught.value).startswith(message)


def test_a_recipe_comes_back_from_its_mapping():
    assert build(AugmentRecipe, to_mapping(ALL)) == ALL
