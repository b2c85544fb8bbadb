"""Geometry of the page: meshes with fewer faces, and arrays in a block of text."""

import base64
import zlib

import numpy as np
import pytest
import trimesh
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from data import make_creature
from rewards import RewardSettings
from rl.report.packing import Block, quantised_positions, quantised_weights
from rl.report.simplify import reduced
from rl.report.viewer_data import reward_poses, viewer_data
from tests.rl.report.pages import views


def test_a_mesh_within_the_limit_keeps_its_faces():
    ball = trimesh.creation.icosphere(subdivisions=2)
    source, faces = reduced(ball.vertices, ball.faces, 10_000)
    assert len(faces) == len(ball.faces)
    assert (np.sort(source) == np.arange(len(ball.vertices))).all()
    assert trimesh.Trimesh(ball.vertices[source], faces).is_watertight


def test_copies_of_a_vertex_merge():
    ball = trimesh.creation.icosphere(subdivisions=1)
    corners = ball.vertices[ball.faces.reshape(-1)]
    source, faces = reduced(corners, np.arange(len(corners)).reshape(-1, 3), 10_000)
    assert (len(source), len(faces)) == (len(ball.vertices), len(ball.faces))


@pytest.mark.parametrize("most", [1000, 4000])
def test_a_large_mesh_is_reduced_and_keeps_its_shape(most):
    ball = trimesh.creation.icosphere(subdivisions=5)  # 20,480 faces
    source, faces = reduced(ball.vertices, ball.faces, most)
    assert most * 0.5 < len(faces) <= most
    small = trimesh.Trimesh(ball.vertices[source], faces)
    assert small.volume == pytest.approx(ball.volume, rel=0.15)


def test_a_flat_mesh_and_faces_without_area():
    points = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0.0]])
    source, faces = reduced(points, np.array([[0, 1, 2], [1, 3, 2], [1, 1, 2], [2, 1, 0]]), 100)
    assert len(source) == 4
    assert len(faces) == 2  # the third has no area, the fourth is the first from behind


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4).filter(lambda row: sum(row) > 0.01))
def test_quantised_weights_sum_to_one(row):
    weights = np.sort(np.array([row]))[:, ::-1]
    weights = weights / weights.sum()
    found = quantised_weights(weights)
    assert found.sum() == 255
    assert np.abs(found / 255 - weights).max() < 0.01


def test_positions_keep_a_hundredth_of_a_percent():
    points = np.array([[-1, 0.33333, 1], [0.5, -0.25, 1.2]])
    assert np.abs(quantised_positions(points) / 32767 - np.clip(points, -1, 1)).max() < 1e-4


def test_arrays_come_back_from_their_places():
    block = Block()
    first = block.add(np.array([1, 2, 3], dtype=np.uint8))
    second = block.add(np.array([[1.5, -2.5]], dtype=np.float32))
    data = zlib.decompress(base64.b64decode(block.text()))
    assert first == ["Uint8Array", 0, 3]
    assert second == ["Float32Array", 4, 2]  # aligned
    assert np.frombuffer(data, "<f4", 2, 4).tolist() == [1.5, -2.5]


def test_a_mesh_is_stored_once():
    data, _ = viewer_data(views(), ["a"])
    assert [mesh["name"] for mesh in data["meshes"]] == ["mesh 0", "mesh 1"]
    assert [rig["mesh"] for rig in data["rigs"]] == [0, 0, 0, 1, 1, 1]
    first, after, _ = data["rigs"][:3]
    assert len(first["parents"]) == len(after["parents"]) + 1
    assert first["poses"][2] == 3 * 3 * len(first["parents"])
    assert first["poseDegrees"] == [30, 30, 90]
    assert viewer_data(views(), ["a"]) == viewer_data(views(), ["a"])  # byte for byte


def test_recorded_poses_follow_the_rig_and_have_no_angle(tmp_path):
    """Frames of one joint that turns by 0.5 about x: the root, as the reward maps them by depth."""
    turn = Rotation.from_rotvec([[0.5, 0, 0]]).as_matrix()
    np.savez(tmp_path / "poses.npz", rotations=turn[None], parents=np.array([-1]))
    settings = RewardSettings(pose_file=str(tmp_path / "poses.npz"), poses=1, wide_poses=1)
    rig = make_creature(0).rig
    poses = reward_poses(settings, rig, 3)
    assert poses.degrees == [None, 90]
    expected = np.zeros((len(rig.joints), 3))
    expected[rig.parents < 0] = [0.5, 0, 0]
    assert poses.vectors[0] == pytest.approx(expected)
    assert np.abs(poses.vectors[1]).max() > 0.5
