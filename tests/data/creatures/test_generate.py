"""Properties of procedural creatures: surfaces, joints inside, weights, joint counts, seeds, kinds."""

from collections import Counter

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from data import CREATURE_KINDS, Creature, depth_first, make_creature
from tests.data.creatures.winding import winding_number


@pytest.fixture(scope="module", params=CREATURE_KINDS)
def herd(request: pytest.FixtureRequest) -> list[Creature]:
    return [make_creature(seed, request.param) for seed in range(8)]


def test_winding_number_of_a_box() -> None:
    box = trimesh.creation.box()
    points = np.array([[0.0, 0, 0], [0.4, 0.4, -0.4], [0.6, 0, 0]])
    np.testing.assert_allclose(winding_number(points, box.vertices, box.faces), [1, 1, 0], atol=1e-9)


def open_edges(faces: np.ndarray) -> np.ndarray:
    """Edges (E, 2) that only one face has."""
    edges = np.sort(np.concatenate([faces[:, :2], faces[:, 1:], faces[:, ::2]]), axis=1)
    unique, uses = np.unique(edges, axis=0, return_counts=True)
    return unique[uses == 1]


def components_of(creature: Creature) -> list[trimesh.Trimesh]:
    return list(
        trimesh.Trimesh(creature.mesh.vertices, creature.mesh.faces, process=False).split(
            only_watertight=False, repair=False
        )
    )


def left_and_right(creature: Creature) -> tuple[np.ndarray, np.ndarray]:
    """Joints whose names have "left", and those of the same names with "right"; relative to the root."""
    names = creature.rig.names
    left = [i for i, name in enumerate(names) if "left" in name]
    right = [names.index(names[i].replace("left", "right")) for i in left]
    away = creature.rig.joints - creature.rig.joints[0]
    return away[left], away[right]


def test_no_face_is_degenerate_and_no_vertex_is_unused(herd: list[Creature]) -> None:
    for creature in herd:
        mesh = trimesh.Trimesh(creature.mesh.vertices, creature.mesh.faces, process=False)
        assert mesh.area_faces.min() > 0
        assert mesh.is_winding_consistent
        assert len(np.unique(creature.mesh.faces)) == len(creature.mesh.vertices)


def test_closed_components_face_outward(herd: list[Creature]) -> None:
    closed = [part for creature in herd for part in components_of(creature) if part.is_watertight]
    assert len(closed) >= 1
    assert min(part.volume for part in closed) > 0


def test_joints_lie_inside_or_on_a_patch(herd: list[Creature]) -> None:
    # The joint in the middle of an insect's wing lies on an open patch; all others lie inside the surface.
    for creature in herd:
        vertices, faces = creature.mesh.vertices, creature.mesh.faces
        inside = winding_number(creature.rig.joints, vertices, faces) > 0.5
        wing = np.array([creature.kind == "insect" and "wing" in name for name in creature.rig.names])
        assert (inside | wing).all(), creature.mesh.name
        distance, _ = cKDTree(vertices).query(creature.rig.joints[wing])
        assert np.all(distance < 0.1), creature.mesh.name


def test_weights_are_a_distribution_over_few_joints(herd: list[Creature]) -> None:
    for creature in herd:
        weights = creature.rig.weights
        assert weights.shape == (len(creature.mesh.vertices), len(creature.rig.joints))
        np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
        assert (weights > 0).sum(axis=1).max() <= 4
        # Every joint dominates some vertices, so none of its SkinTokens is arbitrary.
        assert weights.max(axis=0).min() > 0.5


def test_left_and_right_are_named_alike(herd: list[Creature]) -> None:
    for creature in herd:
        left, _ = left_and_right(creature)
        assert len(left) == sum("right" in name for name in creature.rig.names)


@pytest.mark.parametrize("kind", ["dragon", "insect"])
def test_limbs_are_mirrored_from_left_to_right(kind: str) -> None:
    for seed in range(8):
        creature = make_creature(seed, kind)
        left, right = left_and_right(creature)
        if kind == "dragon":  # the legs may be in mid-stride: the wings and ears are not
            keep = [i for i, n in enumerate(n for n in creature.rig.names if "left" in n) if "leg" not in n]
            left, right = left[keep], right[keep]
        assert len(left) >= 2
        np.testing.assert_allclose(left, right * [-1, 1, 1], atol=1e-5)
        assert left[:, 0].min() > 0  # facing +z with y up, left is +x


def test_some_components_are_open_patches() -> None:
    # A cape or skirt has as many vertices as its grid, and is a component with a border.
    patches = [
        part
        for seed in range(40)
        for part in components_of(make_creature(seed, "biped"))
        if len(part.vertices) in (9 * 7, 7 * 20) and len(open_edges(part.faces))
    ]
    assert len(patches) >= 5


def test_some_components_float() -> None:
    for kind in ("biped", "tree"):
        floating = 0
        for seed in range(30):
            components = components_of(make_creature(seed, kind))
            clouds = [part.vertices for part in components]
            for index, cloud in enumerate(clouds):
                rest = np.concatenate([*clouds[:index], *clouds[index + 1 :]])
                floating += bool(np.min(cKDTree(rest).query(cloud)[0]) > 0.03)
        assert floating >= 2, kind


def test_some_creatures_have_their_interior_faces_culled() -> None:
    # A snake has no patches: an open border can only come from culling interior faces.
    borders = [len(open_edges(make_creature(seed, "snake").mesh.faces)) > 0 for seed in range(24)]
    assert 8 <= sum(borders) <= 22


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
        assert 5 <= len(creature.rig.joints) <= 60
        assert 400 <= len(creature.mesh.vertices) <= 4600
        assert len(creature.mesh.faces) > len(creature.mesh.vertices)
    assert np.median([len(creature.mesh.vertices) for creature in herd]) < 3000


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
def test_any_seed_gives_a_valid_and_repeatable_creature(seed: int, kind: str | None) -> None:
    creature, again = make_creature(seed, kind), make_creature(seed, kind)
    np.testing.assert_array_equal(creature.mesh.vertices, again.mesh.vertices)
    np.testing.assert_array_equal(creature.mesh.faces, again.mesh.faces)
    np.testing.assert_array_equal(creature.rig.joints, again.rig.joints)
    np.testing.assert_array_equal(creature.rig.weights, again.rig.weights)
    assert creature.kind == again.kind
    assert 5 <= len(creature.rig.joints) <= 60
    assert 400 <= len(creature.mesh.vertices) <= 4600
    assert creature.rig.weights.max(axis=0).min() > 0.5
    np.testing.assert_allclose(creature.rig.weights.sum(axis=1), 1, atol=1e-6)


def test_the_whole_range_of_joint_counts_occurs() -> None:
    few = [len(make_creature(seed, "snake").rig.joints) for seed in range(60)]
    many = [len(make_creature(seed, "centipede").rig.joints) for seed in range(60)]
    assert min(few) == 5
    assert max(many) == 60
    common = [len(make_creature(seed).rig.joints) for seed in range(200)]
    assert 18 <= np.mean(common) <= 27
    assert np.mean([8 <= count <= 35 for count in common]) > 0.75


def test_different_seeds_differ() -> None:
    for kind in CREATURE_KINDS:
        seen = {make_creature(seed, kind).rig.joints.tobytes() for seed in range(15)}
        assert len(seen) == 15


def test_all_kinds_are_reachable_and_naming_one_changes_nothing() -> None:
    kinds = Counter(make_creature(seed).kind for seed in range(200))
    assert set(kinds) == set(CREATURE_KINDS)
    # About one in four stands upright, one in five on four legs (standard errors 3 %).
    assert 0.16 < (kinds["biped"] + kinds["humanoid"]) / 200 < 0.37
    assert 0.13 < (kinds["quadruped"] + kinds["dragon"]) / 200 < 0.32
    chosen = make_creature(3)
    named = make_creature(3, chosen.kind)
    np.testing.assert_array_equal(named.mesh.vertices, chosen.mesh.vertices)


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown creature kind 'dog'; choose one of biped"):
        make_creature(0, "dog")
