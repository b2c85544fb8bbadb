"""Random poses: what their seed depends on, and that they are rotations within the angle."""

import numpy as np
import pytest

from rewards import RewardSettings, pose_seed, random_rotations
from rewards.poses import rotation_matrices


def test_rotation_vectors_by_hand():
    # 90 degrees about z takes x to y.
    quarter = rotation_matrices(np.array([[0, 0, np.pi / 2]]))[0]
    assert np.allclose(quarter, [[0, -1, 0], [1, 0, 0], [0, 0, 1]], atol=1e-15)
    assert (rotation_matrices(np.zeros((2, 3))) == np.eye(3)).all()
    # 180 degrees about (1, 1, 0) / sqrt 2 swaps x and y and flips z.
    half = rotation_matrices(np.pi * np.array([2**-0.5, 2**-0.5, 0]))
    assert np.allclose(half, [[0, 1, 0], [1, 0, 0], [0, 0, -1]], atol=1e-15)


def test_rotation_vectors_against_scipy():
    rotation = pytest.importorskip("scipy.spatial.transform").Rotation
    vectors = np.random.default_rng(0).normal(size=(50, 3))
    assert np.allclose(rotation_matrices(vectors), rotation.from_rotvec(vectors).as_matrix(), atol=1e-12)


def test_random_rotations_are_rotations_within_the_angle():
    turns = random_rotations(50, 40, 30.0, seed=3)
    assert turns.shape == (50, 40, 3, 3)
    assert np.allclose(turns @ turns.swapaxes(-1, -2), np.eye(3), atol=1e-12)
    assert np.allclose(np.linalg.det(turns), 1)
    angles = np.degrees(np.arccos(np.clip((np.trace(turns, axis1=2, axis2=3) - 1) / 2, -1, 1)))
    assert angles.max() <= 30 + 1e-6
    # 2,000 uniform angles in [0, 30]: mean 15 within 5 standard errors of 30 / sqrt(12 * 2000) = 0.19
    assert angles.mean() == pytest.approx(15, abs=1)
    # uniform axes: each coordinate of the axis has mean 0 (standard error 1 / sqrt(3 * 2000) = 0.013) and
    # mean square 1/3
    axes = np.stack([turns[..., 2, 1] - turns[..., 1, 2], turns[..., 0, 2] - turns[..., 2, 0],
                     turns[..., 1, 0] - turns[..., 0, 1]], axis=-1).reshape(-1, 3)  # fmt: skip
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    assert np.abs(axes.mean(axis=0)).max() < 0.065
    assert np.abs((axes**2).mean(axis=0) - 1 / 3).max() < 0.05


def test_joint_j_gets_the_same_rotation_in_every_rig_of_a_group():
    many = random_rotations(5, 30, 30, seed=11)
    assert (random_rotations(5, 7, 30, seed=11) == many[:, :7]).all()
    assert not np.allclose(random_rotations(5, 7, 30, seed=12), many[:, :7])


def test_seed_depends_on_run_mesh_and_step_and_on_nothing_else():
    assert pose_seed(0, "fox", 7) == pose_seed(0, "fox", 7)
    seeds = {
        pose_seed(run, mesh, step) for run in (0, 1) for mesh in ("fox", "cat", 3) for step in (0, 1, 10)
    }
    assert len(seeds) == 18
    # pinned for all versions and machines: blake2b-64 of "0/fox/7"
    import hashlib

    digest = hashlib.blake2b(b"0/fox/7", digest_size=8).digest()
    assert pose_seed(0, "fox", 7) == int.from_bytes(digest, "little")


def test_settings_determine_the_poses():
    turns = RewardSettings(poses=2, max_angle_deg=10).rotations(4, 99)
    assert (turns == random_rotations(2, 4, 10, 99)).all()
    assert (random_rotations(2, 4, 0, 99) == np.eye(3)).all()


@pytest.mark.parametrize("arguments", [(0, 1, 30, 0), (1, 0, 30, 0), (1, 1, -1, 0), (1, 1, 181, 0)])
def test_errors(arguments):
    with pytest.raises(ValueError, match="must be"):
        random_rotations(*arguments)


def test_wide_poses_follow_the_others_and_leave_them_as_they_are():
    plain = RewardSettings().rotations(8, seed=5)
    wide = RewardSettings(wide_poses=20).rotations(8, seed=5)
    assert plain.shape == (5, 8, 3, 3)
    assert wide.shape == (25, 8, 3, 3)
    assert (wide[:5] == plain).all()
    angles = np.degrees(np.arccos((np.trace(wide[5:], axis1=2, axis2=3) - 1) / 2))
    assert 85 < angles.max() <= 90 + 1e-6
    # 160 uniform angles in [0, 90]: mean 45 within 5 standard errors of 90 / sqrt(12 · 160) = 2.05
    assert angles.mean() == pytest.approx(45, abs=10)
    # A group shares them too, and another angle only scales the same draws.
    assert (RewardSettings(wide_poses=20).rotations(3, seed=5) == wide[:, :3]).all()
    flat = RewardSettings(wide_poses=2, wide_angle_deg=0).rotations(8, seed=5)
    assert np.allclose(flat[5:], np.eye(3), atol=1e-15)


def test_wide_poses_also_follow_recorded_ones(tmp_path):
    recorded = random_rotations(3, 4, 30.0, seed=1)
    np.savez(tmp_path / "poses.npz", rotations=recorded, parents=np.array([-1, 0, 1, 2]))
    settings = RewardSettings(pose_file=str(tmp_path / "poses.npz"), poses=2, wide_poses=1)
    poses = settings.rotations(4, 7, np.array([-1, 0, 1, 2]))
    assert poses.shape == (3, 4, 3, 3)
    assert (poses[2] == RewardSettings(wide_poses=1).rotations(4, 7)[5]).all()


@pytest.mark.parametrize(
    ("name", "value"), [("wide_poses", -1), ("wide_angle_deg", 181), ("wide_angle_deg", float("nan"))]
)
def test_settings_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        RewardSettings(**{name: value})
