"""Damage that trimesh would accept: truncated and malformed OBJ, PLY, STL and OFF files."""

from pathlib import Path

import numpy as np
import pytest

from data import MeshError, load_mesh
from tests.data.mesh_files import OBJ, OFF, PLY, STL, check_refused, exported

pytestmark = pytest.mark.usefixtures("silent")


def test_obj_of_several_objects_polygons_and_relative_indices(tmp_path: Path) -> None:
    path = tmp_path / "many.obj"
    path.write_text(
        "mtllib none.mtl\no a\nv 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0 0\nusemtl x\nf 1/1 2/1 \\\n 3/1 4/1\n"
        "o b\nv 0 0 1\nv 1 0 1\nv 0 1 1\nf -3 -2 -1 # behind\n"
        "v 9 9 9 0.5 0.5 0.5\nf -1 1 2\n"
    )
    mesh = load_mesh(path)
    assert mesh.vertices.shape == (8, 3)
    # The square in two, then the relative ones: counted back from where they stand.
    assert np.sort(mesh.faces, axis=1)[2:].tolist() == [[4, 5, 6], [0, 1, 7]]
    assert len(mesh.faces) == 4


def test_the_texts_are_valid_before_they_are_damaged(tmp_path: Path) -> None:
    for name, text in (
        ("a.ply", PLY + "3 0 1 2\n"),
        ("a.off", OFF + "3 0 1 2\n"),
        ("a.obj", OBJ + "f 1 2 3"),
        ("a.stl", STL + "endsolid\n"),
    ):
        (tmp_path / name).write_text(text)
        assert load_mesh(tmp_path / name).faces.shape == (1, 3), name


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.obj", OBJ, "no faces"),
        ("a.obj", OBJ + "f 1 2 9\n", "a face refers to vertex 9, but the mesh has only 3 vertices"),
        ("a.obj", OBJ + "f 0 1 2\n", "a face refers to vertex 0"),
        ("a.obj", OBJ + "f -1 -2 -5\n", "a face refers to vertex -1, but the mesh has only 3 vertices"),
        ("a.obj", OBJ + "f 1 2\n", "has too few vertices"),
        ("a.obj", OBJ + "f 1 2 x\n", "cannot be read"),
        ("a.obj", OBJ + "v 1\nf 1 2 3\n", "too few numbers"),
        ("a.ply", PLY.replace("face 1", "face 0"), "no faces"),
        ("a.ply", PLY, "3 of 4 lines"),
        ("a.ply", PLY[:40], "the header has no end_header line"),
        ("a.off", OFF.replace("3 1 0", "3 0 0", 1), "no faces"),
        ("a.off", OFF, "3 of 4 lines"),
        ("a.off", OFF + "3 0 1\n", "the last face is incomplete"),
        ("a.stl", STL, "truncated"),
        ("a.stl", STL[:60] + "endsolid", "truncated"),
    ],
)
def test_refusals(tmp_path: Path, name: str, content: bytes | str, reason: str) -> None:
    check_refused(tmp_path / name, content, reason)


@pytest.mark.parametrize("file_type", ["ply", "stl", "stl_ascii", "off"])
def test_truncation_anywhere_is_noticed(tmp_path: Path, file_type: str) -> None:
    content = exported(file_type)
    path = tmp_path / f"cut.{file_type.partition('_')[0]}"
    for part in (0.02, 0.1, 0.35, 0.5, 0.77, 0.9, 0.99):
        path.write_bytes(content[: int(len(content) * part)])
        with pytest.raises(MeshError):
            load_mesh(path)


def test_binary_stl_may_carry_trailing_bytes(tmp_path: Path) -> None:
    path = tmp_path / "tail.stl"
    path.write_bytes(exported("stl") + b"colours")
    assert load_mesh(path).faces.shape == (320, 3)
