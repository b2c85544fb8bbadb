"""Surface sampling: area weighting, normals, barycentric coordinates, vertex normals."""

import numpy as np
import pytest

from data import MeshError, make_creature, sample_surface, sample_surface_indexed
from data.sampling import face_areas

# Two right triangles of area 0.5 and 1.5 in the planes z = 0 and x = 5, and a degenerate one first and last.
VERTICES = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 0, 0], [5, 3, 0], [5, 0, 1]], dtype=np.float32)
FACES = np.array([[0, 0, 1], [0, 1, 2], [1, 1, 1], [3, 4, 5], [3, 3, 4]])


def test_points_follow_area_and_normals_are_flat() -> None:
    points, normals, index, weights = sample_surface_indexed(VERTICES, FACES, 20000, np.random.default_rng(0))
    assert set(np.unique(index)) == {1, 3}
    # Share of the larger triangle: 1.5 / 2 = 0.75; standard error sqrt(0.75 * 0.25 / 20000) = 0.003.
    assert abs((index == 3).mean() - 0.75) < 0.012
    np.testing.assert_array_equal(normals[index == 1], np.tile([0, 0, 1], ((index == 1).sum(), 1)))
    # (0, 3, 0) x (0, 0, 1) = (3, 0, 0).
    np.testing.assert_array_equal(normals[index == 3], np.tile([1, 0, 0], ((index == 3).sum(), 1)))
    # Uniform in a triangle: the mean of the points is the centroid.
    np.testing.assert_allclose(points[index == 3].mean(axis=0), [5, 1, 1 / 3], atol=0.03)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    assert weights.min() >= 0
    rebuilt = np.einsum("nk,nkd->nd", weights, VERTICES[FACES[index]])
    np.testing.assert_allclose(rebuilt, points, atol=1e-5)
    assert points.dtype == normals.dtype == weights.dtype == np.float32


def test_density_multiplies_area() -> None:
    rng = np.random.default_rng(0)
    _, _, index, _ = sample_surface_indexed(VERTICES, FACES, 20000, rng, np.array([9, 3, 9, 0.5, 9]))
    # 0.5 * 3 against 1.5 * 0.5: two thirds on the smaller triangle; standard error 0.0033.
    assert set(np.unique(index)) == {1, 3}
    assert abs((index == 1).mean() - 2 / 3) < 0.014
    _, _, index, _ = sample_surface_indexed(VERTICES, FACES, 50, rng, np.array([1, 1, 1, 0, 1]))
    assert set(index) == {1}
    with pytest.raises(MeshError, match="all faces have zero area"):
        sample_surface_indexed(VERTICES, FACES, 5, rng, np.zeros(5))
    with pytest.raises(ValueError, match=r"density \(4,\) must have one entry for each of 5 faces"):
        sample_surface_indexed(VERTICES, FACES, 5, rng, np.ones(4))


def test_areas() -> None:
    np.testing.assert_allclose(face_areas(VERTICES, FACES), [0, 0.5, 0, 1.5, 0], atol=1e-12)
    mesh = make_creature(1).mesh
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    plain = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    np.testing.assert_allclose(face_areas(mesh.vertices, mesh.faces), plain, rtol=1e-6, atol=1e-12)


def test_sampling_is_deterministic_and_both_forms_agree() -> None:
    first = sample_surface(VERTICES, FACES, 50, np.random.default_rng(7))
    again = sample_surface_indexed(VERTICES, FACES, 50, np.random.default_rng(7))
    other = sample_surface(VERTICES, FACES, 50, np.random.default_rng(8))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_no_points_and_no_area() -> None:
    assert sample_surface(VERTICES, FACES, 0, np.random.default_rng(0))[0].shape == (0, 3)
    with pytest.raises(MeshError, match="all faces have zero area"):
        sample_surface(VERTICES, FACES[[0, 2]], 5, np.random.default_rng(0))
    with pytest.raises(ValueError, match="must be"):
        sample_surface(VERTICES[:, :2], FACES, 5, np.random.default_rng(0))
