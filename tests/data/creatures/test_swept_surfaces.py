"""Swept surfaces and grid patches: profiles, caps, weights, and culling of interior faces."""

import numpy as np
import trimesh
from numpy.typing import ArrayLike

from data.creatures.swept_surfaces import GridPatch, SweptSurface, ellipsoid, tessellate

X, Y, Z = np.eye(3)


def sweep(spine: ArrayLike, radius: float, joint: int = 0, **options: object) -> SweptSurface:
    points = np.array(spine, dtype=np.float64)
    radii = np.full((len(points), 2), radius)
    return SweptSurface(points, radii, (joint,) * (len(points) - 1), X, 0.3, **options)  # type: ignore[arg-type]


def ball(centre: ArrayLike, radius: float, joint: int = 0, prop: bool = False) -> SweptSurface:
    return ellipsoid(np.array(centre, dtype=np.float64), radius * Y, (radius, radius), joint, X, prop=prop)


def test_four_corners_and_flat_caps_make_a_box() -> None:
    box = sweep([[0, 0, 0], [0, 2, 0]], 0.5, corners=4, cap_length=0.0)
    vertices, faces, weights = tessellate([box], [], 1, 100, 10, 1000)
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    # Four corners make a square of half side 0.9 x 0.5 = 0.45: 0.9 x 2 x 0.9.
    np.testing.assert_allclose(mesh.extents, [0.9, 2, 0.9], atol=1e-9)
    assert mesh.is_watertight
    np.testing.assert_allclose(mesh.volume, 0.9 * 2 * 0.9, rtol=1e-9)
    np.testing.assert_array_equal(weights, np.ones((len(vertices), 1)))


def test_a_square_profile_is_wider_than_an_ellipse_but_not_longer() -> None:
    spine = np.array([[0.0, 0, 0], [0, 2, 0]])
    round_sweep, square_sweep = (
        trimesh.Trimesh(
            *tessellate([sweep(spine, 0.5, squareness=squareness)], [], 1, 300, 10, 3000)[:2], process=False
        )
        for squareness in (1.0, 0.5)
    )
    np.testing.assert_allclose(square_sweep.extents, round_sweep.extents, atol=0.01)
    # A superellipse |x|^4 + |z|^4 = 1 has area 3.708, the circle 3.142; caps and corners blur that a little.
    assert 1.1 < square_sweep.volume / round_sweep.volume < 1.25


def test_rounded_caps_reach_a_radius_beyond_the_spine() -> None:
    vertices, _, _ = tessellate([sweep([[0, 0, 0], [0, 2, 0]], 0.5)], [], 1, 200, 10, 3000)
    np.testing.assert_allclose([vertices[:, 1].min(), vertices[:, 1].max()], [-0.5, 2.5], atol=1e-9)


def test_patches_are_open_and_keep_their_weights() -> None:
    points = np.stack(np.meshgrid([0.0, 1, 2], [0.0, 1], [0.0], indexing="ij"), axis=-1)[:, :, 0]
    weights = np.zeros((3, 2, 2))
    weights[..., 0] = np.array([[1, 1], [0.5, 0.5], [0, 0]])
    weights[..., 1] = 1 - weights[..., 0]
    body = ball([0, 5, 0], 1.0, joint=1)
    vertices, faces, skin = tessellate([body], [GridPatch(points, (2, 0), weights)], 3, 100, 10, 1000)
    np.testing.assert_array_equal(vertices[-6:], points.reshape(-1, 3))
    # The patch's joints are 2 and 0, in this order; joint 1 has only the ball.
    np.testing.assert_allclose(skin[-6:], [[0, 0, 1]] * 2 + [[0.5, 0, 0.5]] * 2 + [[1, 0, 0]] * 2)
    own = faces[(faces >= len(vertices) - 6).all(axis=1)]
    assert len(own) == 4  # two squares of two triangles
    mesh = trimesh.Trimesh(vertices, own, process=False)
    np.testing.assert_allclose(mesh.area, 2.0)  # 2 x 1


def test_a_closed_patch_joins_its_last_column_to_the_first() -> None:
    angle = np.arange(8) * np.pi / 4
    rows = [np.stack([np.cos(angle), np.full(8, y), np.sin(angle)], axis=-1) for y in (1.0, 0.0)]
    skirt = GridPatch(np.array(rows), (0,), np.ones((2, 8, 1)), closed=True)
    vertices, faces, _ = tessellate([ball([0, 5, 0], 1.0)], [skirt], 1, 100, 10, 1000)
    own = faces[(faces >= len(vertices) - 16).all(axis=1)]
    assert len(own) == 16  # 8 squares
    edges = np.sort(np.concatenate([own[:, :2], own[:, 1:], own[:, ::2]]), axis=1)
    _, uses = np.unique(edges, axis=0, return_counts=True)
    assert (uses == 1).sum() == 16  # 8 edges of the upper and 8 of the lower rim are open


def test_culling_drops_faces_inside_another_surface() -> None:
    centres = np.array([[0.0, 0, 0], [1.0, 0, 0]])
    sweeps = [ball(centre, 1.0, joint) for joint, centre in enumerate(centres)]
    whole, whole_faces, _ = tessellate(sweeps, [], 2, 1500, 1000, 3000)
    vertices, faces, weights = tessellate(sweeps, [], 2, 1500, 1000, 3000, cull_interior=True)
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


def test_props_neither_cull_nor_are_culled() -> None:
    sweeps = [ball([0, 0, 0], 1.0), ball([1, 0, 0], 1.0, joint=1, prop=True)]
    whole, culled = (tessellate(sweeps, [], 2, 800, 500, 3000, cull_interior=cull) for cull in (False, True))
    for a, b in zip(whole, culled, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_joint_keeps_its_surface_if_all_of_it_is_interior() -> None:
    sweeps = [ball([0, 0, 0], 1.0), ball([0.2, 0, 0], 0.3, joint=1)]
    vertices, _, weights = tessellate(sweeps, [], 2, 800, 500, 3000, cull_interior=True)
    assert (weights[:, 1] == 1).any()
    assert np.linalg.norm(vertices - [0.2, 0, 0], axis=1).min() < 0.31
