"""Scalings, turns and noise: hand-worked cases."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import Mesh, Rig, make_creature
from data.transforms import (
    jittered,
    mirrored,
    quarter_turned,
    random_rotations,
    rotated,
    rotations_about,
    scaled,
    turned,
)
from data.welding import weld
from tests.seams import flat_shaded

CREATURE = make_creature(5, "quadruped")


class Fixed:
    """A generator that returns what it was given."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def uniform(self, low: float, high: float, size: int | None = None) -> Any:
        return self.value

    integers = uniform


def case() -> tuple[Mesh, Rig]:
    vertices = np.array([[1.0, 0, 0], [-1, 0, 0], [0, 0.5, 0.25], [0, -0.5, -0.25]])
    mesh = Mesh(vertices.astype(np.float32), np.array([[0, 1, 2], [0, 3, 1]]), "case", np.ones(3), 3.0)
    return mesh, Rig(np.array([[0.5, 0.1, 0.2]]), np.array([-1]), np.ones((4, 1)))


def test_a_quarter_of_the_circle_about_the_up_axis():
    # x -> -z, z -> x; the longest side stays 2, so nothing else changes.
    expected = [[0, 0, -1], [0, 0, 1], [0.25, 0.5, 0], [-0.25, -0.5, 0]]
    for mesh, rig in (turned(*case(), Fixed(np.pi / 2), 4.0), quarter_turned(*case(), Fixed(1))):  # type: ignore[arg-type]
        np.testing.assert_allclose(mesh.vertices, expected, atol=1e-7)
        np.testing.assert_allclose(rig.joints, [[0.2, 0.1, -0.5]], atol=1e-7)
        assert mesh.scale == 1  # the way back to the file's frame is gone
        np.testing.assert_array_equal(mesh.centre, 0)


def test_left_and_right_swapped():
    mesh, rig = mirrored(*case())
    np.testing.assert_allclose(mesh.vertices, case()[0].vertices * [-1, 1, 1], atol=1e-7)
    np.testing.assert_allclose(rig.joints, [[-0.5, 0.1, 0.2]], atol=1e-7)
    np.testing.assert_array_equal(mesh.faces, [[2, 1, 0], [1, 3, 0]])


def test_a_mirrored_creature_still_faces_outwards():
    def volume(mesh: Mesh) -> float:
        a, b, c = (mesh.vertices[mesh.faces[:, k]].astype(np.float64) for k in range(3))
        return float((a * np.cross(b, c)).sum() / 6)

    assert volume(mirrored(CREATURE.mesh, CREATURE.rig)[0]) == pytest.approx(volume(CREATURE.mesh), rel=1e-5)
    assert volume(CREATURE.mesh) > 0


def test_half_and_three_quarter_turns():
    np.testing.assert_array_equal(
        quarter_turned(*case(), Fixed(2))[1].joints, np.float32([[-0.5, 0.1, -0.2]])
    )  # type: ignore[arg-type]
    np.testing.assert_array_equal(quarter_turned(*case(), Fixed(3))[1].joints, np.float32([[-0.2, 0.1, 0.5]]))  # type: ignore[arg-type]


def test_scaled_by_hand():
    # Factors 0.25, 1, 2: sides 0.5, 1, 1 (z: 0.5 * 2), so the frame doubles all of it.
    mesh, rig = scaled(*case(), Fixed(np.log([0.25, 1, 2])), (0.1, 5.0))  # type: ignore[arg-type]
    np.testing.assert_allclose(mesh.vertices, [[0.5, 0, 0], [-0.5, 0, 0], [0, 1, 1], [0, -1, -1]], atol=1e-6)
    np.testing.assert_allclose(rig.joints, [[0.25, 0.2, 0.8]], atol=1e-6)


def test_factors_stay_in_their_range_and_reach_its_ends():
    mesh, rig = CREATURE.mesh, CREATURE.rig
    factors = np.array([
        np.ptp(scaled(mesh, rig, np.random.default_rng(seed), (0.5, 2.0))[0].vertices, axis=0)
        / np.ptp(mesh.vertices, axis=0)
        for seed in range(100)
    ])  # fmt: skip
    ratios = factors / factors[:, :1]  # the frame's own factor cancels
    assert (ratios > 0.25 - 1e-5).all()
    assert (ratios < 4 + 1e-5).all()
    assert ratios.min() < 0.5
    assert ratios.max() > 2


def test_rotations_about_the_axes():
    quarter = np.full(3, np.pi / 2)
    about = rotations_about(np.eye(3), quarter)
    # Right-handed: about x y -> z, about y z -> x, about z x -> y.
    np.testing.assert_allclose(about[0] @ [0, 1, 0], [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(about[1] @ [0, 0, 1], [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(about[2] @ [1, 0, 0], [0, 1, 0], atol=1e-12)


@given(seed=st.integers(0, 10**6), limit=st.floats(0, np.pi))
def test_random_rotations_are_rotations_up_to_the_angle(seed, limit):
    turns = random_rotations(np.random.default_rng(seed), 7, limit)
    np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1), np.tile(np.eye(3), (7, 1, 1)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(turns), 1, atol=1e-12)
    # trace = 1 + 2 cos(angle)
    assert (turns.trace(axis1=1, axis2=2) >= 1 + 2 * np.cos(limit) - 1e-9).all()


@pytest.mark.parametrize("change", [rotated, turned])
def test_a_turn_keeps_distances_up_to_the_frame(change):
    mesh, rig = change(CREATURE.mesh, CREATURE.rig, np.random.default_rng(2), 1.0)
    old = np.concatenate([CREATURE.mesh.vertices, CREATURE.rig.joints]).astype(np.float64)
    new = np.concatenate([mesh.vertices, rig.joints]).astype(np.float64)
    before = np.linalg.norm(old - old[::-1], axis=1)
    after = np.linalg.norm(new - new[::-1], axis=1)
    scale = after.sum() / before.sum()
    np.testing.assert_allclose(after, before * scale, atol=1e-5)
    assert abs(scale - 1) > 1e-4
    np.testing.assert_allclose(mesh.vertices.max(axis=0) + mesh.vertices.min(axis=0), 0, atol=1e-6)


def test_noise_has_the_asked_size():
    mesh, rig = CREATURE.mesh, CREATURE.rig
    moved, noisy = jittered(mesh, rig, np.random.default_rng(0), 0.02, 0.001)
    # The frame takes back what the noise did to the box: a few standard deviations over all vertices.
    offsets = moved.vertices - mesh.vertices
    assert 0.0008 < (offsets - offsets.mean(axis=0)).std() < 0.0025
    assert 0.01 < (noisy.joints - rig.joints).std() < 0.03
    still, only = jittered(mesh, rig, np.random.default_rng(0), 0.02, 0.0)
    assert still is mesh
    assert not np.array_equal(only.joints, rig.joints)
    _, follow = jittered(mesh, rig, np.random.default_rng(0), 0.0, 0.001)
    assert np.abs(follow.joints - rig.joints).max() < 0.01


def test_noise_opens_no_seam() -> None:
    flat, rig = flat_shaded(CREATURE.mesh, CREATURE.rig)
    noisy, _ = jittered(flat, rig, np.random.default_rng(0), 0.0, 0.01)
    assert np.array_equal(weld(flat.vertices)[1], weld(noisy.vertices)[1])
    assert np.abs(noisy.vertices - flat.vertices).mean() > 0.001
