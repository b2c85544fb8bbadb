"""Pictures of rigs: a PNG with the mesh, its bones and its joints in it."""

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from data import make_creature
from data.mesh import Mesh
from data.rig import Rig
from rl.pictures import draw_rig

CRIMSON = np.array([220, 20, 60]) / 255


def pixels(path: Path) -> np.ndarray:
    """(H, W, 3) in [0, 1]."""
    return matplotlib.image.imread(path)[..., :3]


def near(image: np.ndarray, colour: np.ndarray) -> int:
    """How many pixels have about this colour."""
    return int((np.abs(image - colour).max(axis=-1) < 0.08).sum())


@pytest.fixture
def creature():
    return make_creature(0)


def test_a_picture_shows_mesh_joints_and_bones(creature, tmp_path):
    path = tmp_path / "rig.png"
    draw_rig(creature.mesh, creature.rig, path)
    image = pixels(path)
    assert image.shape[1] > 2 * image.shape[0]  # three views side by side
    assert (image < 0.98).any(axis=-1).mean() > 0.02  # not an empty page
    assert near(image, CRIMSON) > 20
    assert near(image, np.zeros(3)) > 100
    assert [file.name for file in tmp_path.iterdir()] == ["rig.png"]


def test_the_same_rig_gives_the_same_picture(creature, tmp_path):
    for name in ("a.png", "b.png"):
        draw_rig(creature.mesh, creature.rig, tmp_path / name)
    assert np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))


def test_up_is_up(tmp_path):
    """A tall thin pole along y: its drawing is taller than wide in each view."""
    height = np.linspace(-1, 1, 40)
    ring = np.array([[0.05, 0.05], [0.05, -0.05], [-0.05, -0.05], [-0.05, 0.05]])
    vertices = np.array([[x, y, z] for y in height for x, z in ring], dtype=np.float32)
    faces = []
    for level in range(39):
        for side in range(4):
            a, b = 4 * level + side, 4 * level + (side + 1) % 4
            faces += [[a, b, a + 4], [b, b + 4, a + 4]]
    mesh = Mesh(vertices, np.array(faces), "pole", np.zeros(3), 1.0)
    rig = Rig(np.array([[0, -1, 0], [0, 1, 0]], np.float32), np.array([-1, 0]), np.ones((160, 2), np.float32))
    draw_rig(mesh, rig, tmp_path / "pole.png")
    marks = np.abs(pixels(tmp_path / "pole.png") - CRIMSON).max(axis=-1) < 0.08  # the upper joint
    rows, _ = marks.nonzero()
    root = np.abs(pixels(tmp_path / "pole.png") - np.array([1.0, 215 / 255, 0])).max(axis=-1) < 0.08
    below, _ = root.nonzero()
    assert rows.mean() < below.mean() - 100  # further up on the page


def test_one_joint_and_many_faces(tmp_path):
    """A rig without a bone on a mesh beyond what is drawn whole."""
    side = 120
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side)), axis=-1).reshape(-1, 2)
    vertices = np.column_stack([grid, np.zeros(len(grid))]).astype(np.float32)
    corner = np.arange(side * (side - 1)).reshape(side - 1, side)[:, :-1].reshape(-1)
    faces = np.concatenate(
        [
            np.stack([corner, corner + 1, corner + side], axis=1),
            np.stack([corner + 1, corner + side + 1, corner + side], axis=1),
        ]
    )
    assert len(faces) > 20_000
    mesh = Mesh(vertices, faces, "sheet", np.zeros(3), 1.0)
    rig = Rig(np.zeros((1, 3), np.float32), np.array([-1]), np.ones((len(vertices), 1), np.float32))
    draw_rig(mesh, rig, tmp_path / "sheet.png")
    assert pixels(tmp_path / "sheet.png").size > 0
