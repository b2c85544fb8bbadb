"""Blended surfaces: closed, outward, of the right size; weights and hidden vertices worked out by hand."""

import numpy as np
import pytest
import trimesh

from data.creatures.lifelike.blended_surfaces import (
    blended_mesh,
    bounds,
    hidden_vertices,
    solid,
    solid_weights,
)

X = np.array([1.0, 0, 0])


def ball(x: float, radius: float, flush: bool = False) -> np.ndarray:
    return solid(np.array([x, 0, 0]), np.array([x, 0, 0]), (radius, radius), X, flush=flush)


def meshed(rows: list[np.ndarray], starts: list[int], cell: float, blend: float = 0.001):  # type: ignore[no-untyped-def]
    pieces = len(starts) - 1
    return blended_mesh(np.stack(rows), np.array(starts), np.full(pieces, cell), np.full(pieces, blend))


def test_a_ball_is_a_closed_sphere_that_faces_outward() -> None:
    points, faces, owner = meshed([ball(0.3, 0.5)], [0, 1], 0.06)
    mesh = trimesh.Trimesh(points, faces, process=False)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 0.125, rel=0.03)
    np.testing.assert_allclose(np.linalg.norm(points - [0.3, 0, 0], axis=1), 0.5, atol=0.002)
    assert not owner.any()


def test_a_tapered_capsule_has_its_radii_at_both_ends() -> None:
    # 1 long along y, 0.2 thick at the start and 0.1 at the end, three times as wide along x.
    row = solid(np.zeros(3), np.array([0, 1.0, 0]), (0.2, 0.1), X, (3.0, 1.0, 1.0))
    np.testing.assert_allclose(bounds(row[None])[0], [-0.6, -0.2, -0.2, 0.6, 1.1, 0.2], atol=1e-12)
    points, _, _ = meshed([row], [0, 1], 0.02)
    np.testing.assert_allclose(points.min(axis=0), [-0.6, -0.2, -0.2], atol=0.02)
    np.testing.assert_allclose(points.max(axis=0), [0.6, 1.1, 0.2], atol=0.02)


def test_square_solids_fill_their_box() -> None:
    volumes = []
    for square in (0, 1, 2):
        row = solid(np.zeros(3), np.zeros(3), (0.5, 0.5), X, square=square)
        points, faces, _ = meshed([row], [0, 1], 0.05)
        volumes.append(trimesh.Trimesh(points, faces, process=False).volume)
    # A ball fills 52 % of its box; |x|^8 + |y|^8 + |z|^8 = 1 fills 93 %.
    assert volumes[0] == pytest.approx(0.52, abs=0.02)
    assert 0.75 < volumes[1] < 0.85
    assert volumes[2] == pytest.approx(0.93, abs=0.02)


def test_solids_of_one_piece_melt_and_pieces_stay_apart() -> None:
    rows = [ball(-0.3, 0.4), ball(0.3, 0.4)]
    for starts, components in (([0, 2], 1), ([0, 1, 2], 2)):
        points, faces, owner = meshed(rows, starts, 0.06)
        mesh = trimesh.Trimesh(points, faces, process=False)
        assert mesh.is_watertight
        assert mesh.body_count == components
        assert set(owner.tolist()) == set(range(components))


def test_a_blend_fills_the_crease_unless_a_solid_is_flush() -> None:
    waists = []
    for blend, flush in ((0.001, False), (0.3, False), (0.3, True)):
        rows = [ball(-0.35, 0.4), ball(0.35, 0.4, flush)]
        points, _, _ = meshed(rows, [0, 2], 0.02, blend)
        waists.append(points[np.abs(points[:, 0]) < 0.02, 1].max())
    # Without a blend the balls meet in a circle of radius sqrt(0.4^2 - 0.35^2) = 0.19.
    assert waists[0] == pytest.approx(0.19, abs=0.04)
    assert waists[1] > waists[0] + 0.05
    assert waists[2] == pytest.approx(waists[0], abs=0.01)


def test_a_mesh_is_symmetric_about_the_middle_of_its_piece() -> None:
    rows = [ball(-0.41, 0.2), ball(0.41, 0.2), ball(0.0, 0.37)]
    points, _, _ = meshed(rows, [0, 3], 0.07, 0.05)
    mirrored = points * [-1, 1, 1]
    for one in points:
        assert np.abs(mirrored - one).sum(axis=1).min() < 1e-3


def capsules() -> np.ndarray:
    """An upper arm from 0 to 1 and a forearm from 1 to 2 along x, 0.1 thick."""
    y = np.array([0, 1.0, 0])
    return np.stack([solid(k * X, (k + 1) * X, (0.1, 0.1), y) for k in range(2)])


def weights_at(x: float, softness: float, sides: tuple[int, int] = (0, 0)) -> list[float]:
    made = solid_weights(
        np.array([[x, 0.1, 0]]),
        np.array([0]),
        capsules(),
        np.array([0, 2]),
        np.array([0, 1]),
        np.array(sides),
        np.array([softness]),
    )
    return [round(float(w), 6) for w in made[0]]


def test_weights_change_over_at_the_joint() -> None:
    assert weights_at(0.5, 1.0) == [1.0, 0.0]
    assert weights_at(1.0, 1.0) == [0.5, 0.5]
    # 0.05 before the joint the forearm is sqrt(0.1^2 + 0.05^2) - 0.1 = 0.0118 farther away than the upper
    # arm: t = 0.118, and the forearm has 1 - 3 t^2 + 2 t^3 = 0.9615 against 1.
    assert weights_at(0.95, 1.0) == pytest.approx([1 / 1.9615, 0.9615 / 1.9615], abs=1e-3)
    assert weights_at(0.95, 0.1) == [1.0, 0.0]


def test_left_and_right_joints_share_no_vertex() -> None:
    assert weights_at(1.0 - 1e-6, 1.0, (1, -1)) == [1.0, 0.0]
    assert weights_at(1.0 - 1e-6, 1.0, (1, 0)) == pytest.approx([0.5, 0.5], abs=1e-3)


def test_solids_that_do_not_touch_share_no_vertex() -> None:
    rows = np.stack([ball(0.0, 0.3), ball(0.7, 0.3)])
    made = solid_weights(
        np.array([[0.34, 0.0, 0]]),
        np.array([0]),
        rows,
        np.array([0, 2]),
        np.array([0, 1]),
        np.array([0, 0]),
        np.array([5.0]),
    )
    assert made.tolist() == [[1.0, 0.0]]


def test_hidden_vertices_lie_inside_another_piece() -> None:
    rows = np.stack([ball(0.0, 0.3), ball(1.0, 0.5)])
    points = np.array([[0.55, 0, 0], [0.45, 0, 0], [1.0, 0, 0]])
    # The third is inside its own piece only; 0.55 is 0.05 deep in the other ball, 0.45 outside.
    hidden = hidden_vertices(points, np.array([0, 0, 1]), rows, np.array([0, 1, 2]), 0.01)
    assert hidden.tolist() == [True, False, False]
    deeper = hidden_vertices(points, np.array([0, 0, 1]), rows, np.array([0, 1, 2]), 0.06)
    assert not deeper.any()
