"""Parts of creatures: cross sections, sheets, and leaving out the faces that lie within other parts."""

import numpy as np
import pytest
import trimesh
from numpy.typing import ArrayLike

from data.creatures.swept_surfaces import Sheet, Tube, buried_points, ellipsoid, mesh_parts

X, Y, Z = np.eye(3)


def tube(path: ArrayLike, radius: float, owner: int = 0, **options: object) -> Tube:
    points = np.array(path, dtype=np.float64)
    radii = np.full((len(points), 2), radius)
    return Tube(points, radii, (owner,) * (len(points) - 1), X, 0.3, **options)  # type: ignore[arg-type]


def ball(centre: ArrayLike, radius: float, owner: int = 0, prop: bool = False) -> Tube:
    return ellipsoid(np.array(centre, dtype=np.float64), radius * Y, (radius, radius), owner, X, prop=prop)


def test_four_sides_and_no_caps_make_a_box() -> None:
    box = tube([[0, 0, 0], [0, 2, 0]], 0.5, sides=4, cap=0.0)
    vertices, faces, weights = mesh_parts([box], [], 1, 100, 10, 1000)
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    # Four corners make a square of half side 0.9 x 0.5 = 0.45: 0.9 x 2 x 0.9.
    np.testing.assert_allclose(mesh.extents, [0.9, 2, 0.9], atol=1e-9)
    assert mesh.is_watertight
    np.testing.assert_allclose(mesh.volume, 0.9 * 2 * 0.9, rtol=1e-9)
    np.testing.assert_array_equal(weights, np.ones((len(vertices), 1)))


def test_a_square_section_is_wider_than_an_ellipse_but_not_longer() -> None:
    path = np.array([[0.0, 0, 0], [0, 2, 0]])
    round_tube, square_tube = (
        trimesh.Trimesh(
            *mesh_parts([tube(path, 0.5, square=square)], [], 1, 300, 10, 3000)[:2], process=False
        )
        for square in (1.0, 0.5)
    )
    np.testing.assert_allclose(square_tube.extents, round_tube.extents, atol=0.01)
    # A superellipse |x|^4 + |z|^4 = 1 has area 3.708, the circle 3.142; caps and corners blur that a little.
    assert 1.1 < square_tube.volume / round_tube.volume < 1.25


def test_rounded_ends_reach_a_radius_beyond_the_path() -> None:
    vertices, _, _ = mesh_parts([tube([[0, 0, 0], [0, 2, 0]], 0.5)], [], 1, 200, 10, 3000)
    np.testing.assert_allclose([vertices[:, 1].min(), vertices[:, 1].max()], [-0.5, 2.5], atol=1e-9)


def test_sheets_are_open_and_carry_their_weights() -> None:
    points = np.stack(np.meshgrid([0.0, 1, 2], [0.0, 1], [0.0], indexing="ij"), axis=-1)[:, :, 0]
    weights = np.zeros((3, 2, 2))
    weights[..., 0] = np.array([[1, 1], [0.5, 0.5], [0, 0]])
    weights[..., 1] = 1 - weights[..., 0]
    body = ball([0, 5, 0], 1.0, owner=1)
    vertices, faces, skin = mesh_parts([body], [Sheet(points, (2, 0), weights)], 3, 100, 10, 1000)
    np.testing.assert_array_equal(vertices[-6:], points.reshape(-1, 3))
    # Joint 2 is the first owner, joint 0 the second, joint 1 has the ball alone.
    np.testing.assert_allclose(skin[-6:], [[0, 0, 1]] * 2 + [[0.5, 0, 0.5]] * 2 + [[1, 0, 0]] * 2)
    own = faces[(faces >= len(vertices) - 6).all(axis=1)]
    assert len(own) == 4  # two squares of two triangles
    mesh = trimesh.Trimesh(vertices, own, process=False)
    np.testing.assert_allclose(mesh.area, 2.0)  # 2 x 1


def test_a_closed_sheet_joins_its_last_column_to_the_first() -> None:
    angle = np.arange(8) * np.pi / 4
    rows = [np.stack([np.cos(angle), np.full(8, y), np.sin(angle)], axis=-1) for y in (1.0, 0.0)]
    skirt = Sheet(np.array(rows), (0,), np.ones((2, 8, 1)), closed=True)
    vertices, faces, _ = mesh_parts([ball([0, 5, 0], 1.0)], [skirt], 1, 100, 10, 1000)
    own = faces[(faces >= len(vertices) - 16).all(axis=1)]
    assert len(own) == 16  # 8 squares
    edges = np.sort(np.concatenate([own[:, :2], own[:, 1:], own[:, ::2]]), axis=1)
    _, uses = np.unique(edges, axis=0, return_counts=True)
    assert (uses == 1).sum() == 16  # 8 edges of the upper and 8 of the lower rim are open


def test_trimming_leaves_out_what_lies_within_another_part() -> None:
    centres = np.array([[0.0, 0, 0], [1.0, 0, 0]])
    parts = [ball(centre, 1.0, owner) for owner, centre in enumerate(centres)]
    whole, whole_faces, _ = mesh_parts(parts, [], 2, 1500, 1000, 3000)
    vertices, faces, weights = mesh_parts(parts, [], 2, 1500, 1000, 3000, trim=True)
    other = 1 - weights.argmax(axis=1)
    depth = np.linalg.norm(vertices - centres[other], axis=1)  # from the centre of the ball it is not part of
    # No face is left with all corners well within the other ball, and whatever is out of it is still there.
    assert (depth[faces].max(axis=1) > 0.93).all()
    assert (depth > 1 + 1e-9).sum() == (
        np.linalg.norm(whole[:, None] - centres, axis=2).max(axis=1) > 1.0 + 1e-9
    ).sum()
    # A quarter of each ball lies within the other, less the faces that cross its surface.
    assert 0.75 * len(whole_faces) < len(faces) < 0.9 * len(whole_faces)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    assert set(np.unique(faces)) == set(range(len(vertices)))


def test_props_neither_cut_nor_are_cut() -> None:
    parts = [ball([0, 0, 0], 1.0), ball([1, 0, 0], 1.0, owner=1, prop=True)]
    whole, trimmed = (mesh_parts(parts, [], 2, 800, 500, 3000, trim=trim) for trim in (False, True))
    for a, b in zip(whole, trimmed, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_joint_whose_part_is_hidden_keeps_it() -> None:
    parts = [ball([0, 0, 0], 1.0), ball([0.2, 0, 0], 0.3, owner=1)]
    vertices, _, weights = mesh_parts(parts, [], 2, 800, 500, 3000, trim=True)
    assert (weights[:, 1] == 1).any()
    assert np.linalg.norm(vertices - [0.2, 0, 0], axis=1).min() < 0.31


@pytest.mark.parametrize("seed", range(4))
def test_buried_points_as_plainly_computed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes, rings = np.array([9, 14, 11]), np.array([4, 5, 3])
    starts, ring_starts = np.append(0, np.cumsum(sizes)), np.append(0, np.cumsum(rings))
    points = rng.normal(size=(sizes.sum(), 3))
    centres = rng.normal(size=(rings.sum(), 3)) * 0.5
    frames = rng.normal(size=(rings.sum(), 3, 3)) * 0.6
    frames[ring_starts[:-1]] = 0  # poles
    ignored = np.array([False, False, seed == 3])
    expected = np.zeros(len(points), dtype=bool)
    for own in range(3):
        for other in range(3):
            if own == other or ignored[own] or ignored[other]:
                continue
            box = points[starts[other] : starts[other + 1]]
            span = np.arange(ring_starts[other] + 1, ring_starts[other + 1])
            for vertex in range(starts[own], starts[own + 1]):
                p = points[vertex]
                if ((p <= box.min(axis=0)) | (p >= box.max(axis=0))).any():
                    continue
                nearest = span[np.linalg.norm(centres[span] - p, axis=1).argmin()]
                across, over, along = frames[nearest] @ (p - centres[nearest])
                expected[vertex] |= across**2 + over**2 < 1 and abs(along) < 1
    np.testing.assert_array_equal(
        buried_points(points, starts, centres, frames, ring_starts, ignored), expected
    )
    assert expected.any()
