"""Mesh edges by hand."""

import numpy as np
import pytest

from rewards import MeshRewardError, mesh_edges


def test_two_triangles_share_an_edge():
    assert mesh_edges([[0, 1, 2], [2, 1, 3]]).tolist() == [[0, 1], [0, 2], [1, 2], [1, 3], [2, 3]]


def test_an_edge_to_itself_is_none():
    assert mesh_edges([[5, 5, 2], [7, 7, 7]]).tolist() == [[2, 5]]


def test_order_and_direction_of_faces_do_not_matter():
    faces = np.random.default_rng(0).integers(0, 30, (50, 3))
    edges = mesh_edges(faces)
    assert (mesh_edges(faces[::-1, ::-1].astype(np.int32)) == edges).all()
    # every pair of every face, as sets of two
    pairs = {
        frozenset((int(f[i]), int(f[j]))) for f in faces for i, j in ((0, 1), (1, 2), (2, 0)) if f[i] != f[j]
    }
    assert {frozenset(edge) for edge in edges.tolist()} == pairs
    assert len(edges) == len(pairs)


def test_large_indices_do_not_collide():
    # as products of 32-bit indices these would overflow
    assert mesh_edges(np.array([[0, 1, 2**31 - 1]], dtype=np.int32)).tolist() == [
        [0, 1],
        [0, 2**31 - 1],
        [1, 2**31 - 1],
    ]


def test_no_faces_and_bad_faces():
    assert mesh_edges(np.zeros((0, 3), dtype=int)).shape == (0, 2)
    for faces in (np.zeros((2, 4), dtype=int), np.zeros((2, 3)), np.zeros(3, dtype=int), [[0, 1, -1]]):
        with pytest.raises(MeshRewardError):
            mesh_edges(faces)
