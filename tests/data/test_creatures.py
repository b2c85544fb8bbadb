"""Properties of the procedural creatures: closed parts, joints inside, weights, seeds, kinds."""

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from data import CREATURE_KINDS, Creature, depth_first, make_creature


@pytest.fixture(scope="module", params=CREATURE_KINDS)
def herd(request: pytest.FixtureRequest) -> list[Creature]:
    return [make_creature(seed, request.param) for seed in range(12)]


def winding_number(points: np.ndarray, vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Generalised winding number (van Oosterom and Strackee): the number of closed parts around a point."""
    corners = vertices[faces].astype(np.float64)[None] - points[:, None, None].astype(np.float64)
    a, b, c = corners[:, :, 0], corners[:, :, 1], corners[:, :, 2]
    la, lb, lc = (np.linalg.norm(x, axis=2) for x in (a, b, c))
    above = (a * np.cross(b, c)).sum(axis=2)
    below = la * lb * lc + (a * b).sum(2) * lc + (b * c).sum(2) * la + (c * a).sum(2) * lb
    return 2 * np.arctan2(above, below).sum(axis=1) / (4 * np.pi)


def test_winding_number_of_a_box() -> None:
    box = trimesh.creation.box()
    points = np.array([[0.0, 0, 0], [0.4, 0.4, -0.4], [0.6, 0, 0]])
    np.testing.assert_allclose(winding_number(points, box.vertices, box.faces), [1, 1, 0], atol=1e-9)


def test_parts_are_closed_and_face_outward(herd: list[Creature]) -> None:
    for creature in herd:
        mesh = trimesh.Trimesh(creature.mesh.vertices, creature.mesh.faces, process=False)
        assert mesh.is_watertight
        assert mesh.is_winding_consistent
        assert mesh.area_faces.min() > 0
        parts = mesh.split(only_watertight=False)
        assert len(parts) >= 2
        assert min(part.volume for part in parts) > 0


def test_joints_lie_inside(herd: list[Creature]) -> None:
    for creature in herd:
        inside = winding_number(creature.rig.joints, creature.mesh.vertices, creature.mesh.faces)
        assert inside.min() > 0.9, creature.mesh.name


def test_joints_stay_away_from_the_surface(herd: list[Creature]) -> None:
    # "Well inside": a shift by 1/128 (one cell of 256 bins) in any axis direction does not leave the volume.
    shifts = np.concatenate([np.eye(3), -np.eye(3)]) / 128
    for creature in herd[:4]:
        points = (creature.rig.joints[:, None] + shifts).reshape(-1, 3)
        assert winding_number(points, creature.mesh.vertices, creature.mesh.faces).min() > 0.9, (
            creature.mesh.name
        )


def test_weights_are_a_distribution_over_few_joints(herd: list[Creature]) -> None:
    for creature in herd:
        weights = creature.rig.weights
        assert weights.shape == (len(creature.mesh.vertices), len(creature.rig.joints))
        np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
        assert (weights > 0).sum(axis=1).max() <= 4
        # Every joint owns some vertices: none of its tokens would be arbitrary.
        assert weights.max(axis=0).min() > 0.7


def test_bending_does_not_tear(herd: list[Creature]) -> None:
    """Every joint turned by 30 degrees about a random axis stretches no edge to more than three times."""
    for creature in herd:
        mesh, rig = creature.mesh, creature.rig
        rng = np.random.default_rng(0)
        axes = rng.normal(size=rig.joints.shape)
        turns = Rotation.from_rotvec(axes / np.linalg.norm(axes, axis=1)[:, None] * np.pi / 6).as_matrix()
        world = np.tile(np.eye(4), (len(turns), 1, 1))
        for joint, parent in enumerate(rig.parents):
            local = np.eye(4)
            local[:3, :3] = turns[joint]
            local[:3, 3] = rig.joints[joint] - (rig.joints[parent] if joint else 0)
            world[joint] = world[parent] @ local if joint else local
        moved = np.einsum("jab,vjb->vja", world[:, :3, :3], mesh.vertices[:, None] - rig.joints)
        posed = np.einsum("vj,vja->va", rig.weights, moved + world[:, :3, 3])
        edges = np.concatenate([mesh.faces[:, :2], mesh.faces[:, 1:], mesh.faces[:, ::2]])
        before = np.linalg.norm(np.diff(mesh.vertices[edges], axis=1)[:, 0], axis=1)
        after = np.linalg.norm(np.diff(posed[edges], axis=1)[:, 0], axis=1)
        assert (after / before).max() < 3, mesh.name


def test_sizes(herd: list[Creature]) -> None:
    for creature in herd:
        assert 5 <= len(creature.rig.joints) <= 24
        assert 600 <= len(creature.mesh.vertices) <= 2500
        assert len(creature.mesh.faces) > len(creature.mesh.vertices)


def test_mesh_frame_and_order(herd: list[Creature]) -> None:
    for creature in herd:
        low, high = creature.mesh.vertices.min(axis=0), creature.mesh.vertices.max(axis=0)
        np.testing.assert_allclose(low + high, 0, atol=1e-6)
        np.testing.assert_allclose((high - low).max(), 2, atol=1e-6)
        ordered = depth_first(creature.rig)
        np.testing.assert_array_equal(ordered.joints, creature.rig.joints)
        np.testing.assert_array_equal(ordered.parents, creature.rig.parents)


@given(seed=st.integers(0, 2**31 - 1), kind=st.sampled_from((None, *CREATURE_KINDS)))
@settings(max_examples=25, deadline=None)
def test_any_seed_gives_a_sound_and_repeatable_creature(seed: int, kind: str | None) -> None:
    creature, again = make_creature(seed, kind), make_creature(seed, kind)
    np.testing.assert_array_equal(creature.mesh.vertices, again.mesh.vertices)
    np.testing.assert_array_equal(creature.mesh.faces, again.mesh.faces)
    np.testing.assert_array_equal(creature.rig.joints, again.rig.joints)
    np.testing.assert_array_equal(creature.rig.weights, again.rig.weights)
    assert creature.kind == again.kind
    assert 5 <= len(creature.rig.joints) <= 24
    assert 600 <= len(creature.mesh.vertices) <= 2500
    assert winding_number(creature.rig.joints, creature.mesh.vertices, creature.mesh.faces).min() > 0.9


def test_different_seeds_differ() -> None:
    for kind in CREATURE_KINDS:
        seen = {make_creature(seed, kind).rig.joints.tobytes() for seed in range(40)}
        assert len(seen) == 40


def test_all_kinds_are_reachable_and_naming_one_changes_nothing() -> None:
    creatures = [make_creature(seed) for seed in range(40)]
    assert {creature.kind for creature in creatures} == set(CREATURE_KINDS)
    named = make_creature(3, creatures[3].kind)
    np.testing.assert_array_equal(named.mesh.vertices, creatures[3].mesh.vertices)


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown creature kind 'dog'; choose one of biped"):
        make_creature(0, "dog")
