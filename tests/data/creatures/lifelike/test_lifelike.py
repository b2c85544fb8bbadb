"""Lifelike creatures of every kind: valid rigs, sound meshes, mirrored limbs, the same for ever."""

import re

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from data import Creature, depth_first, make_creature
from data.creatures import LIFELIKE_KINDS
from tests.data.creatures.winding import winding_number

SEEDS = range(12)


@pytest.fixture(scope="module", params=LIFELIKE_KINDS)
def herd(request: pytest.FixtureRequest) -> list[Creature]:
    return [make_creature(seed, request.param) for seed in SEEDS]


def check(creature: Creature) -> None:
    """What holds for every seed."""
    mesh, rig = creature.mesh, creature.rig
    assert 3 <= len(rig.joints) <= 64
    assert 300 <= len(mesh.faces) <= 12_000
    assert rig.weights.shape == (len(mesh.vertices), len(rig.joints))
    np.testing.assert_allclose(rig.weights.sum(axis=1), 1, atol=1e-5)
    assert (rig.weights > 0).sum(axis=1).max() <= 4
    # Roots on the ground may lie below the mesh, nothing lies far from it.
    assert np.abs(rig.joints).max() <= 1.25
    followed = rig.weights.max(axis=0) > 0.05
    for joint in range(len(rig.joints) - 1, 0, -1):
        assert followed[joint], f"{mesh.name}: nothing follows {rig.names[joint]}"
        followed[rig.parents[joint]] = True
    ordered = depth_first(rig)
    np.testing.assert_array_equal(ordered.joints, rig.joints)
    np.testing.assert_array_equal(ordered.parents, rig.parents)
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    assert areas.min() > 0
    assert len(np.unique(mesh.faces)) == len(mesh.vertices)


@given(seed=st.integers(0, 2**31 - 1), kind=st.sampled_from(LIFELIKE_KINDS))
@settings(max_examples=60, deadline=None)
def test_any_seed_gives_a_valid_and_repeatable_creature(seed: int, kind: str) -> None:
    creature, again = make_creature(seed, kind), make_creature(seed, kind)
    check(creature)
    assert creature.kind == kind
    np.testing.assert_array_equal(creature.mesh.vertices, again.mesh.vertices)
    np.testing.assert_array_equal(creature.mesh.faces, again.mesh.faces)
    np.testing.assert_array_equal(creature.rig.joints, again.rig.joints)
    np.testing.assert_array_equal(creature.rig.weights, again.rig.weights)


def test_meshes_are_normalised_and_closed_surfaces_face_outward(herd: list[Creature]) -> None:
    closed = 0
    for creature in herd:
        low, high = creature.mesh.vertices.min(axis=0), creature.mesh.vertices.max(axis=0)
        np.testing.assert_allclose(low + high, 0, atol=1e-6)
        np.testing.assert_allclose((high - low).max(), 2, atol=1e-6)
        mesh = trimesh.Trimesh(creature.mesh.vertices, creature.mesh.faces, process=False)
        assert mesh.is_winding_consistent
        for part in mesh.split(only_watertight=True, repair=False):
            closed += 1
            assert part.volume > 0, creature.mesh.name
    assert closed >= len(herd)


def test_left_and_right_joints_are_mirrored(herd: list[Creature]) -> None:
    pairs = 0
    for creature in herd:
        names = list(creature.rig.names)
        middle = creature.rig.joints[0, 0]
        for index, name in enumerate(names):
            # What a character holds has a joint on one side only.
            if not re.search("left", name) or name == "left_slot":
                continue
            other = names.index(name.replace("left", "right"))
            here, there = creature.rig.joints[index], creature.rig.joints[other]
            np.testing.assert_allclose(
                [here[0] - middle, *here[1:]], [middle - there[0], *there[1:]], atol=1e-5, err_msg=name
            )
            assert here[0] > middle
            pairs += 1
    assert pairs >= len(herd) / 2


def test_most_joints_lie_inside(herd: list[Creature]) -> None:
    """At least 85 % of the joints other than roots, as in game packs (86 to 100 %, by category)."""
    inside = []
    for creature in herd[:6]:
        around = winding_number(creature.rig.joints[1:], creature.mesh.vertices, creature.mesh.faces)
        inside += (around > 0.3).tolist()
    assert np.mean(inside) >= 0.85


def test_a_vertex_follows_a_joint_near_it(herd: list[Creature]) -> None:
    """The joint a vertex mostly follows is nearly always closer to it than half of all joints."""
    for creature in herd:
        rig, vertices = creature.rig, creature.mesh.vertices
        away = np.linalg.norm(vertices[:, None] - rig.joints, axis=2)
        own = np.take_along_axis(away, rig.weights.argmax(axis=1)[:, None], axis=1)
        closer = (away < own).mean(axis=1)
        assert closer.mean() < 0.5, creature.mesh.name


def test_characters_come_in_all_proportions_and_rigs() -> None:
    made = [make_creature(seed, "character") for seed in range(60)]
    counts = [len(each.rig.joints) for each in made]
    assert min(counts) <= 12
    assert max(counts) >= 45

    def share(pattern: str) -> float:
        return float(np.mean([any(re.search(pattern, name) for name in each.rig.names) for each in made]))

    assert 0.25 < share("^root$") < 0.7
    assert 0.4 < share("clavicle") < 0.85
    assert 0.4 < share("neck") < 0.85
    assert 0.2 < share("finger") < 0.7
    assert 0.2 < share("toe") < 0.7
    assert 0.02 < share("slot") < 0.4
    feet_of_the_root = [
        each.rig.parents[each.rig.names.index("left_foot")] == 0
        for each in made
        if "left_foot" in each.rig.names
    ]
    assert 0.05 < np.mean(feet_of_the_root) < 0.5


def test_different_seeds_differ(herd: list[Creature]) -> None:
    assert len({each.rig.joints.tobytes() for each in herd}) == len(herd)
