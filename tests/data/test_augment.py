"""Augmentation: what a turn and a stretch must keep."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data import augment, make_creature, vertex_normals

CREATURE = make_creature(5, "quadruped")


def test_half_turn_by_hand() -> None:
    class Half:
        def uniform(self, low: float, high: float, size: int | None = None) -> object:
            return high / 2 if size is None else np.zeros(size)

    # A quarter of the full circle (pi / 2 about y): x -> -z, z -> x.
    vertices = np.array([[1.0, 0, 0], [-1, 0, 0], [0, 0.5, 0.25], [0, -0.5, -0.25]])
    turned, normals, joints = augment(vertices, np.array([[0.0, 0, 1]]), np.array([[0.5, 0.1, 0.2]]), Half())  # type: ignore[arg-type]
    np.testing.assert_allclose(turned, [[0, 0, -1], [0, 0, 1], [0.25, 0.5, 0], [-0.25, -0.5, 0]], atol=1e-7)
    np.testing.assert_allclose(normals, [[1, 0, 0]], atol=1e-7)
    np.testing.assert_allclose(joints, [[0.2, 0.1, -0.5]], atol=1e-7)


@given(seed=st.integers(0, 10**6), stretch=st.sampled_from([0.0, 0.2]))
def test_result_is_in_the_mesh_frame_and_consistent(seed: int, stretch: float) -> None:
    mesh, rig = CREATURE.mesh, CREATURE.rig
    normals = vertex_normals(mesh.vertices, mesh.faces)
    everything = np.concatenate([mesh.vertices, rig.joints])
    moved, turned, all_moved = augment(
        mesh.vertices, normals, everything, np.random.default_rng(seed), max_stretch=stretch
    )
    low, high = moved.min(axis=0), moved.max(axis=0)
    np.testing.assert_allclose(low + high, 0, atol=1e-6)
    np.testing.assert_allclose((high - low).max(), 2, atol=1e-6)
    # Joints move with the vertices.
    np.testing.assert_allclose(all_moved[: len(moved)], moved, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=1), 1, atol=1e-5)
    if not stretch:
        np.testing.assert_allclose(turned, vertex_normals(moved, mesh.faces), atol=1e-3)


def test_stretched_plane_normals_stay_perpendicular() -> None:
    rng = np.random.default_rng(3)
    corners = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    normal = np.ones((1, 3)) / np.sqrt(3)
    moved, turned, _ = augment(corners, normal, corners, rng, max_stretch=0.5)
    assert abs(float((moved[1] - moved[0]) @ turned[0])) < 1e-6
    assert abs(float((moved[2] - moved[0]) @ turned[0])) < 1e-6
