"""Meshes: normalisation worked by hand, the way back, and every refusal."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import Mesh, MeshError, normalise

TRIANGLE = np.array([[0, 1, 2]])


def test_normalise_by_hand() -> None:
    # Box [0, 4] x [1, 2] x [-1, 1]: centre (2, 1.5, 0), longest side 4, so scale 2 / 4 = 0.5.
    vertices = np.array([[0.0, 1, -1], [4, 2, 0], [1, 1.5, 1]])
    mesh = normalise(vertices, TRIANGLE, "hand")
    np.testing.assert_allclose(mesh.centre, [2, 1.5, 0])
    assert mesh.scale == 0.5
    np.testing.assert_allclose(mesh.vertices, [[-1, -0.25, -0.5], [1, 0.25, 0], [-0.5, 0, 0.5]])
    assert (mesh.vertices.dtype, mesh.faces.dtype) == (np.float32, np.int64)
    np.testing.assert_allclose(mesh.vertices / mesh.scale + mesh.centre, vertices)


@given(
    offset=st.floats(-1e3, 1e3),
    size=st.floats(1e-3, 1e6),
    seed=st.integers(0, 10**6),
)
def test_normalise_fills_the_frame_and_leads_back(offset: float, size: float, seed: int) -> None:
    vertices = np.random.default_rng(seed).normal(size=(7, 3)) * size + offset
    mesh = normalise(vertices, TRIANGLE, "any")
    low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
    np.testing.assert_allclose(low, -high, atol=1e-6)
    assert abs(high.max() - 1) < 1e-6
    back = mesh.vertices.astype(np.float64) / mesh.scale + mesh.centre
    np.testing.assert_allclose(back, vertices, atol=1e-6 * size * 4)


def test_tiny_and_huge_meshes_keep_their_shape() -> None:
    shape = np.array([[0.0, 0, 0], [1, 0, 0], [0, 2, 0]])
    for size in (1e-12, 1.0, 1e30):
        np.testing.assert_allclose(
            normalise(shape * size, TRIANGLE, "x").vertices,
            [[-0.5, -1, 0], [0.5, -1, 0], [-0.5, 1, 0]],
            atol=1e-6,
        )


@pytest.mark.parametrize(
    ("vertices", "faces", "reason"),
    [
        (np.zeros((0, 3)), TRIANGLE, "the mesh has no vertices"),
        (np.eye(3), np.zeros((0, 3), int), "the mesh has no faces"),
        (np.eye(3)[:, :2], TRIANGLE, r"vertices have shape \(3, 2\)"),
        (np.eye(3), np.array([[0, 1, 2, 0]]), r"faces have shape \(1, 4\)"),
        (np.eye(3), np.array([[0.0, 1, 2]]), "dtype float64"),
        (np.eye(3) * np.nan, TRIANGLE, "3 vertices are not finite"),
        (np.diag([1, np.inf, 1]), TRIANGLE, "1 vertices are not finite"),
        (np.eye(3), np.array([[0, 1, 3]]), "a face refers to vertex 3, but the mesh has only 3 vertices"),
        (np.eye(3), np.array([[0, 1, -1]]), "a face refers to vertex -1"),
        (np.ones((3, 3)), TRIANGLE, "the extent is zero"),
        (np.full((3, 3), 1e9) + np.eye(3) * 1e-3, TRIANGLE, "the extent is zero"),
        (np.array([[0.0, 0, 0], [1, 1, 1], [2, 2, 2]]), TRIANGLE, "zero area"),
    ],
)
def test_refusals_name_the_mesh(vertices: np.ndarray, faces: np.ndarray, reason: str) -> None:
    with pytest.raises(MeshError, match=rf"^some.obj: .*{reason}.*; "):
        normalise(vertices, faces, "some.obj")


def test_mesh_checks_its_way_back() -> None:
    with pytest.raises(MeshError, match="do not define the original frame"):
        Mesh(np.eye(3), TRIANGLE, "x", np.zeros(3), 0.0)
    with pytest.raises(MeshError, match="do not define the original frame"):
        Mesh(np.eye(3), TRIANGLE, "x", np.zeros(2), 1.0)
