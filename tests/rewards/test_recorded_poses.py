"""Recorded poses: the file's three forms, mapping to a rig by name and by depth, errors."""

import numpy as np
import pytest

from rewards import RewardSettings, random_rotations
from rewards.poses import rotation_matrices
from rewards.recorded_poses import (
    SMPL22_NAMES,
    SMPL22_PARENTS,
    PoseFileError,
    load_recorded_poses,
    map_joints,
    matrices_from_6d,
    recorded_rotations,
)

TURN_Z = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
# A recording with a root, two children and a grandchild under the first child.
PARENTS = np.array([-1, 0, 0, 1])
NAMES = ("Hips", "Spine", "Left_Leg", "Head")


def recording(tmp_path, frames=4, **extra):
    path = tmp_path / "poses.npz"
    rotations = random_rotations(frames, 4, 40, seed=1)
    np.savez(path, **({"rotations": rotations, "parents": PARENTS, "names": NAMES} | extra))
    return path, rotations


def test_six_numbers_are_two_rows_orthonormalised():
    # Rows (0, -1, 0) and (1, 0, 0): the third is their cross product (0, 0, 1).
    assert (matrices_from_6d(np.array([0, -1.0, 0, 1, 0, 0])) == TURN_Z).all()
    # Scaled and skewed: the second loses its part along the first.
    assert np.allclose(matrices_from_6d(np.array([0, -3.0, 0, 5, 2, 0])), TURN_Z)


def test_the_three_forms_of_a_file_agree(tmp_path):
    turns = random_rotations(3, 22, 60, seed=5)
    rows = turns[:, :, :2].reshape(3, 22, 6)
    columns = turns[:, :, :, :2].swapaxes(2, 3).reshape(3, 22, 6)
    frames = np.random.default_rng(0).normal(size=(3, 272))
    frames[:, -132:] = rows.reshape(3, 132)
    both = {"names": SMPL22_NAMES, "parents": SMPL22_PARENTS}
    for number, content in enumerate(
        (
            {"rotations": turns, **both},
            {"rotations_6d": rows, **both},
            {"rotations_6d": columns, "layout": "columns", **both},
            {"smpl_272": frames.astype(np.float32)},
        )
    ):
        path = tmp_path / f"{number}.npz"
        np.savez(path, **content)
        poses = load_recorded_poses(path)
        assert np.allclose(poses.rotations, turns, atol=1e-5)
        assert poses.names == SMPL22_NAMES
        assert poses.parents.tolist() == SMPL22_PARENTS.tolist()


def test_mapping_by_name_ignores_spelling(tmp_path):
    poses = load_recorded_poses(recording(tmp_path)[0])
    names = ("hips", "leftLEG", "tail", "HEAD")
    assert map_joints(poses, np.array([-1, 0, 0, 1]), names).tolist() == [0, 2, -1, 3]


def test_mapping_by_depth(tmp_path):
    poses = load_recorded_poses(recording(tmp_path)[0])
    # Our rig: a root, three children, two grandchildren, one great-grandchild. Recorded: root 0; 1 and 2; 3.
    parents = np.array([-1, 0, 0, 0, 1, 3, 4])
    expected = [0, 1, 2, 1, 3, 3, -1]  # the third child starts over; the deepest has no counterpart
    assert map_joints(poses, parents).tolist() == expected
    assert map_joints(poses, parents, ("a", "b", "c", "d", "e", "f", "g")).tolist() == expected


def test_poses_come_from_frames_of_the_file(tmp_path):
    path, turns = recording(tmp_path)
    poses = load_recorded_poses(path)
    parents = np.array([-1, 0, 0, 0, 1, 3, 4])
    chosen = recorded_rotations(poses, 3, parents, seed=9)
    assert chosen.shape == (3, 7, 3, 3)
    frames = [next(t for t in range(4) if (turns[t, 0] == pose[0]).all()) for pose in chosen]
    assert len(set(frames)) == 3  # no frame twice while there are enough
    for frame, pose in zip(frames, chosen, strict=True):
        assert (pose[[1, 2, 3, 4]] == turns[frame][[1, 2, 1, 3]]).all()
        assert (pose[6] == np.eye(3)).all()
    # the group shares its frames, also with another rig
    assert (recorded_rotations(poses, 3, np.array([-1, 0]), seed=9) == chosen[:, :2]).all()
    assert not (recorded_rotations(poses, 3, parents, seed=10) == chosen).all()
    assert recorded_rotations(poses, 9, parents, seed=9).shape[0] == 9  # more poses than frames: some repeat


def test_settings_use_the_file(tmp_path):
    path, _ = recording(tmp_path)
    settings = RewardSettings(pose_file=str(path), poses=2)
    expected = recorded_rotations(load_recorded_poses(path), 2, np.array([-1, 0, 1]), seed=3)
    assert (settings.rotations(3, 3, np.array([-1, 0, 1], dtype=np.int32)) == expected).all()
    with pytest.raises(ValueError, match="pass the rig's parents"):
        settings.rotations(3, 3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rotations": np.zeros((0, 4, 3, 3))}, "shape"),
        ({"rotations": np.eye(3)}, "shape"),
        ({"rotations": np.full((2, 4, 3, 3), np.nan)}, "frame 0 has a matrix that is not a rotation"),
        ({"rotations": np.tile(-np.eye(3), (2, 4, 1, 1))}, "not a rotation"),  # a reflection
        ({"rotations": np.tile(2 * np.eye(3), (2, 4, 1, 1))}, "not a rotation"),
        ({"names": ("a", "b")}, "2 names for 4 joints"),
        ({"parents": np.array([-1, 0, 0])}, "4 indices"),
        ({"parents": np.array([-1, 2, 1, 0])}, "each below its own"),
    ],
)
def test_unusable_files_are_reported(tmp_path, change, reason):
    path, _ = recording(tmp_path, **change)
    with pytest.raises(PoseFileError, match=reason) as caught:
        load_recorded_poses(path)
    assert str(path) in str(caught.value)


def test_more_unusable_files(tmp_path):
    def load(name, content):
        np.savez(tmp_path / name, **content)
        return load_recorded_poses(tmp_path / name)

    turns = rotation_matrices(np.zeros((2, 4, 3)))
    with pytest.raises(PoseFileError, match="store one of them"):
        load("a.npz", {"rotations": turns})
    with pytest.raises(PoseFileError, match="store them as"):
        load("b.npz", {"poses": turns, "parents": PARENTS})
    with pytest.raises(PoseFileError, match=r"\(T, 272\)"):
        load("c.npz", {"smpl_272": np.zeros((2, 263))})
    with pytest.raises(PoseFileError, match="not a rotation"):
        load("d.npz", {"smpl_272": np.zeros((2, 272))})
    with pytest.raises(PoseFileError, match="rows or columns"):
        load("e.npz", {"rotations_6d": np.zeros((2, 4, 5)), "parents": PARENTS})
    with pytest.raises(PoseFileError, match="cannot be read"):
        load("f.npz", {"rotations": np.array([object()]), "parents": PARENTS})
    with pytest.raises(PoseFileError, match="cannot be read"):
        load_recorded_poses(tmp_path / "missing.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(PoseFileError, match="cannot be read"):
        load_recorded_poses(tmp_path / "text.npz")
    names_only = load("g.npz", {"rotations": turns, "names": NAMES})
    with pytest.raises(PoseFileError, match="names no joint of this rig"):
        map_joints(names_only, np.array([-1, 0]), ("arm", "hand"))
