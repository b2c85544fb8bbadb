"""Welding: places, vertex normals and faces with area by hand; however a file splits vertices, they agree."""

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from data import MeshError, make_creature
from data.welding import (
    COINCIDENT,
    coincident_distance,
    faces_with_area,
    mesh_places,
    vertex_normals,
    weld,
    weld_surface,
)
from tests.seams import flat_shaded, split_at_random

SQUARE = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]], dtype=np.float32)
SQUARE_FACES = np.array([[0, 1, 2], [1, 3, 2]])

# Units, noise and distance, both as shares of a grid of 5 points a side.
SCALES = ((1.0, 1e3, 1e-4), (0.0, 1e-6, 0.02), (0.0, 1e-6, 0.05, 0.3))


def plain_normals(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """The definition of `vertex_normals`, one face at a time."""
    sums = np.zeros((len(points), 3))
    for face in faces:
        a, b, c = points[face].astype(np.float64)
        for vertex in face:
            sums[vertex] += np.cross(b - a, c - a)
    return sums / np.linalg.norm(sums, axis=1, keepdims=True)


def test_welding_by_hand():
    points = np.array(
        [[9, 9, 9], [0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0], [-0.0, 1, 0], [1, 1, 0]], dtype=np.float32
    )
    first, place = weld(points)
    # 4 is at 2's position, 5 at 3's (-0 equals 0); 0, 1, 2, 3, 6 become 0, 1, 2, 3, 4
    assert first.tolist() == [0, 1, 2, 3, 6]
    assert place.tolist() == [0, 1, 2, 3, 2, 3, 4]
    assert place[np.array([[1, 2, 3], [4, 6, 5]])].tolist() == [[1, 2, 3], [2, 4, 3]]
    assert [array.tolist() for array in weld(points[:0])] == [[], []]


def test_welding_within_a_distance_by_hand():
    # Along x: 0 leads and takes 0.9. 1.8 is within 1 of 0.9 but not of its leader, so it leads and takes 2.7;
    # 1.0 is exactly at the distance from 0 and within it of 1.8: the first leader wins.
    points = np.array([[0, 0, 0], [0.9, 0, 0], [1.8, 0, 0], [2.7, 0, 0], [1, 0, 0]], dtype=np.float32)
    first, place = weld(points, 1.0)
    assert first.tolist() == [0, 2]
    assert place.tolist() == [0, 0, 1, 1, 0]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_welding_equals_the_plain_definition(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    scale, noise, distance = (data.draw(st.sampled_from(choice)) for choice in SCALES)
    points = rng.integers(0, 5, size=(data.draw(st.integers(0, 60)), 3)) / 4
    points = ((points + noise * rng.normal(size=points.shape)) * scale + 3 * scale).astype(np.float32)
    leaders, expected = [], []
    for vertex, point in enumerate(points.astype(np.float64)):
        within = [
            group
            for group, leader in enumerate(leaders)
            if ((point - points[leader].astype(np.float64)) ** 2).sum() <= (distance * scale) ** 2
        ]
        expected.append(within[0] if within else len(leaders))
        leaders += [] if within else [vertex]
    first, place = weld(points, distance * scale)
    assert first.tolist() == leaders
    assert place.tolist() == expected


def test_copies_that_differ_by_rounding_are_one_place():
    """Every seam copy is moved by less than half the distance: the places stay those of the exact mesh."""
    creature = make_creature(3)
    flat, _ = flat_shaded(creature.mesh, creature.rig)
    exact = weld_surface(flat.vertices, flat.faces)
    noise = np.random.default_rng(0).uniform(-1, 1, flat.vertices.shape) * 0.1 * COINCIDENT * 2
    moved = flat.vertices + noise.astype(np.float32)
    surface = weld_surface(moved, flat.faces)
    assert np.array_equal(surface.faces, exact.faces)
    assert np.array_equal(surface.source, exact.source)
    places = mesh_places(moved, flat.faces)
    assert np.array_equal(places.of_vertex, mesh_places(flat.vertices, flat.faces).of_vertex)
    assert np.abs(places.points[places.of_vertex] - moved).max() < coincident_distance(moved)


def test_faces_that_collapse_are_dropped():
    # The second triangle's corners 1 and 3 are one position; its tip, vertex 4, is then on no face.
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1 + 1e-6, 0, 0], [1, 0, 0.5]], dtype=np.float32)
    surface = weld_surface(vertices, np.array([[0, 1, 2], [1, 3, 4]]))
    assert surface.faces.tolist() == [[0, 1, 2]]
    assert surface.source.tolist() == [0, 1, 2]
    assert mesh_places(vertices, np.array([[0, 1, 2], [1, 3, 4]])).of_vertex.tolist() == [0, 1, 2, 1, 3]


def test_a_surface_by_hand():
    # A square of two triangles with their own corners (3 and 5 repeat 1 and 2), after a vertex that no face
    # uses and one that only a face without area uses, both at the place of vertex 2.
    vertices = np.array(
        [[1, 0, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], np.float32
    )
    faces = np.array([[1, 2, 2], [2, 3, 4], [5, 6, 7]])
    surface = weld_surface(vertices, faces)
    assert surface.points.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]]
    assert surface.source.tolist() == [2, 3, 4, 6]
    assert surface.faces.tolist() == [[0, 1, 2], [1, 3, 2]]
    assert surface.normals.tolist() == [[0, 0, 1]] * 4
    places = mesh_places(vertices, faces)
    # Vertices 0 and 1 belong to the place of their coordinates.
    assert places.of_vertex.tolist() == [1, 1, 0, 1, 2, 1, 3, 2]
    assert np.array_equal(places.points, surface.points)
    assert np.array_equal(places.normals, surface.normals)


def test_places_away_from_the_surface_have_the_nearest_places_normal():
    # A floor (normal +y) and a wall far away (normal +x); a sliver beside the wall, loose points by both.
    vertices = np.array(
        [
            [9, 9.5, 9], [0, 0, 0], [0, 0, 1], [1, 0, 0], [9, 9, 9], [9, 10, 9], [9, 9, 10],
            [0, -0.5, 0], [9, 9.5, 9], [0, -0.5, 0],
        ],
        dtype=np.float32,
    )  # fmt: skip
    faces = np.array([[1, 2, 3], [4, 5, 6], [4, 0, 5]])
    places = mesh_places(vertices, faces)
    assert places.of_vertex.tolist() == [6, 0, 1, 2, 3, 4, 5, 7, 6, 7]
    assert places.points[6:].tolist() == [[9, 9.5, 9], [0, -0.5, 0]]
    assert places.normals.tolist() == [[0, 1, 0]] * 3 + [[1, 0, 0]] * 3 + [[1, 0, 0], [0, 1, 0]]
    assert np.array_equal(places.points[places.of_vertex], vertices)


def test_a_mesh_without_area_is_refused():
    line = np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0]], dtype=np.float32)
    for function in (weld_surface, mesh_places):
        with pytest.raises(MeshError, match="no triangle with area; pass a surface mesh"):
            function(line, np.array([[0, 1, 2]]))


def test_a_mesh_of_specks_is_refused():
    # Triangles with sides of 1e-7 of the box, and one with such a side: all would weld into points and lines.
    corner = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], dtype=np.float32) * np.float32(1e-7)
    vertices = np.concatenate([corner, corner + np.array([0, 0, 1e-6]), [[1, 1, 1]]]).astype(np.float32)
    for function in (weld_surface, mesh_places):
        with pytest.raises(
            MeshError, match="every triangle of the mesh has a side shorter than 2e-06 of its"
        ):
            function(vertices, np.array([[0, 1, 2], [3, 4, 5], [0, 1, 6]]))


def test_faces_with_area_by_hand():
    # Not: a repeated index, collinear corners, a repeated position.
    points = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0.5, 0, 0], [1, 0, 0]], dtype=np.float64)
    faces = np.array([[0, 1, 2], [0, 0, 1], [0, 1, 3], [0, 1, 4], [2, 1, 0]])
    assert faces_with_area(points, faces).tolist() == [True, False, False, False, True]
    assert faces_with_area(points * 1e-9 + 5, faces).tolist() == [True, False, False, False, True]


# ---------------------------------------------------------------- vertex normals


def test_vertex_normals_by_hand() -> None:
    # Vertex 0 in a face of normal +z and double area 1 and one of normal +x and double area 2:
    # (2, 0, 1) / sqrt(5).
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 2, 0], [0, 0, 1], [9, 9, 9]], dtype=float)
    normals = vertex_normals(vertices, np.array([[0, 1, 2], [0, 3, 4]]))
    assert normals.dtype == np.float32
    np.testing.assert_allclose(normals[0], np.array([2, 0, 1]) / np.sqrt(5), atol=1e-7)
    np.testing.assert_allclose(normals[1], [0, 0, 1])
    np.testing.assert_array_equal(normals[5], [0, 0, 1])  # in no face


def test_where_faces_cancel_the_first_one_with_area_counts() -> None:
    vertices = np.array([[0, 0, 0], [0, 2, 0], [0, 0, 2]], dtype=np.float32)
    faces = np.array([[0, 1, 1], [0, 1, 2], [2, 1, 0]])
    assert vertex_normals(vertices, faces).tolist() == [[1, 0, 0]] * 3
    assert vertex_normals(vertices, faces[[2, 1]]).tolist() == [[-1, 0, 0]] * 3
    assert vertex_normals(vertices, faces[:1]).tolist() == [[0, 0, 1]] * 3


def test_vertex_normals_of_a_sphere_point_outward() -> None:
    sphere = trimesh.creation.icosphere(subdivisions=2)
    normals = vertex_normals(sphere.vertices, sphere.faces)
    assert (normals * sphere.vertices).sum(axis=1).min() > 0.99


def test_vertex_normals_are_those_of_the_definition() -> None:
    rng = np.random.default_rng(1)
    points = rng.uniform(-1, 1, (20, 3)).astype(np.float32)
    faces = np.concatenate(
        [[[k, (k + 1) % 20, (k + 7) % 20] for k in range(20)], rng.integers(0, 20, (9, 3))]
    )
    np.testing.assert_allclose(vertex_normals(points, faces), plain_normals(points, faces), atol=1e-6)


# ---------------------------------------------------------------- however vertices are split


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_splitting_vertices_changes_no_place(seed, flat):
    """Seams, flat shading, order: the same places, with the same normals up to the order of the sum."""
    rng = np.random.default_rng(seed)
    vertices = np.round(rng.uniform(-1, 1, (9, 3)), 1).astype(np.float32)
    faces = rng.integers(0, 9, (12, 3))
    if not faces_with_area(vertices.astype(np.float64), faces).any():
        return
    whole = mesh_places(vertices, faces)
    if flat:
        original = faces.ravel()
        other, split = vertices[original], np.arange(len(original)).reshape(-1, 3)
    else:
        other, split, original = split_at_random(vertices, faces, rng)
    again = mesh_places(other, split)
    assert np.array_equal(again.points[again.of_vertex], other)
    assert len(np.unique(again.points, axis=0)) == len(again.points)
    known = {tuple(point + 0.0): normal for point, normal in zip(whole.points, whole.normals, strict=True)}
    surface = weld_surface(other, split)
    for point, normal in zip(surface.points, surface.normals, strict=True):
        np.testing.assert_allclose(normal, known[tuple(point + 0.0)], atol=1e-6)
    assert np.array_equal(again.points[: len(surface.points)], surface.points)
    assert np.array_equal(again.normals[: len(surface.points)], surface.normals)


def test_a_flat_shaded_creature_welds_to_the_creature():
    creature = make_creature(5)
    soup, _ = flat_shaded(creature.mesh, creature.rig)
    assert len(soup.vertices) > 4 * len(creature.mesh.vertices)
    smooth, flat = (weld_surface(mesh.vertices, mesh.faces) for mesh in (creature.mesh, soup))
    order, other = (np.lexsort(surface.points.T) for surface in (smooth, flat))
    assert np.array_equal(smooth.points[order], flat.points[other])
    assert np.array_equal(smooth.normals[order], flat.normals[other])  # the faces are in the same order
