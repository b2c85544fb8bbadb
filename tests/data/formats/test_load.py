"""Loading mesh files: every format, limits, refusals, and no warnings or output."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from hypothesis import given
from hypothesis import strategies as st

from data import MeshError, find_meshes, load_asset, load_mesh, load_meshes
from data.formats.load import unique_names
from tests.data.mesh_files import OBJ, OFF, PLY, bumpy, check_refused, exported

pytestmark = pytest.mark.usefixtures("silent")


@pytest.mark.parametrize("file_type", ["glb", "obj", "ply", "stl", "stl_ascii", "off", "ply_ascii"])
def test_formats(tmp_path: Path, file_type: str) -> None:
    kind = file_type.partition("_")[0]
    path = tmp_path / f"Ball.{kind.upper()}"
    content = (
        bumpy().export(file_type="ply", encoding="ascii") if file_type == "ply_ascii" else exported(file_type)
    )
    path.write_bytes(content)
    mesh = load_mesh(path)
    assert mesh.name == "Ball"
    # STL's corners are joined again: the icosphere's 162 vertices, not 3 * 320.
    assert mesh.vertices.shape == (162, 3)
    assert mesh.faces.shape == (320, 3)
    # Longest side: y from -2 to 2, so scale 1/2.
    np.testing.assert_allclose(mesh.scale, 0.5, rtol=1e-5)
    np.testing.assert_allclose(mesh.centre, [3, 0, 1], atol=1e-5)
    np.testing.assert_allclose(np.abs(mesh.vertices).max(axis=0), [0.5, 1, 0.25], atol=1e-5)
    volume = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).volume
    np.testing.assert_allclose(volume, bumpy().volume * 0.5**3, rtol=1e-4)


def test_scene_is_flattened_with_its_transforms(tmp_path: Path) -> None:
    scene = trimesh.Scene()
    box = trimesh.creation.box()
    scene.add_geometry(box, transform=trimesh.transformations.translation_matrix([10, 0, 0]))
    turn = trimesh.transformations.rotation_matrix(np.pi / 2, [0, 0, 1])
    scene.add_geometry(trimesh.creation.box(extents=[2, 6, 1]), transform=turn)
    path = tmp_path / "two.glb"
    path.write_bytes(scene.export(file_type="glb"))
    mesh = load_mesh(path)
    expected = trimesh.load_scene(path).to_mesh()
    original = mesh.vertices / mesh.scale + mesh.centre
    # Turned, the long box spans x in [-3, 3]; the other one reaches x = 10.5.
    np.testing.assert_allclose(original.min(axis=0), [-3, -1, -0.5], atol=1e-5)
    np.testing.assert_allclose(original.max(axis=0), [10.5, 1, 0.5], atol=1e-5)
    np.testing.assert_allclose(np.sort(original, axis=0), np.sort(expected.vertices, axis=0), atol=1e-5)
    np.testing.assert_allclose(trimesh.Trimesh(original, mesh.faces, process=False).volume, 13, rtol=1e-5)


def test_unreferenced_vertices_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "stray.obj"
    path.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nv 100 0 0\nf 1 2 3\n")
    mesh = load_mesh(path)
    assert mesh.vertices.shape == (3, 3)
    assert mesh.scale == 2.0


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.fbx", b"Kaydara", "FBX is not supported; convert it to GLB"),
        ("a.blend", b"x", r"unknown format .blend; convert it to one of GLB, GLTF, VRM, OBJ, PLY, STL, OFF"),
        ("a.zip", b"PK", "the file is an archive; unpack it"),
        ("noext", b"x", "unknown format \\(no extension\\)"),
        *((f"a.{kind}", b"", "the file is empty") for kind in ("glb", "gltf", "obj", "ply", "stl", "off")),
        *((f"a.{kind}", b"hello world\n" * 30, "; ") for kind in ("glb", "gltf", "obj", "ply", "stl", "off")),
        *((f"a.{kind}", bytes(range(256)) * 3, "; ") for kind in ("glb", "gltf", "obj", "ply", "stl", "off")),
        ("a.obj", OBJ + "v 0 nan 0\nf 1 2 4\n", "not finite"),
        ("a.obj", "v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n", "the extent is zero"),
        ("a.obj", "v 0 0 0\nv 1 1 1\nv 2 2 2\nf 1 2 3\n", "zero area"),
        (
            "a.ply",
            PLY.replace("ascii", "binary_little_endian").replace("property float", "roperty float"),
            "the header gives the element 'vertex' no properties",
        ),
        (
            "a.ply",
            PLY.replace("ascii", "binary_little_endian").replace(
                "property float x", "property foperty float z"
            ),
            "the header line 'property foperty float z' cannot be read",
        ),
        ("a.ply", PLY + "3 0 1 9\n", "a face refers to vertex 9"),
        ("a.ply", PLY + "3 0 1 -1\n", "a face refers to vertex -1"),
        ("a.ply", PLY.replace("0 1 0", "0 inf 0") + "3 0 1 2\n", "not finite"),
        ("a.off", OFF + "3 0 1 9\n", "face index outside"),
        ("a.off", OFF + "3 0 1 -1\n", "face index outside"),
    ],
)
def test_refusals(tmp_path: Path, name: str, content: bytes | str, reason: str) -> None:
    check_refused(tmp_path / name, content, reason)


def test_missing_folder_and_limits(tmp_path: Path) -> None:
    with pytest.raises(MeshError, match="this is a folder; name a mesh file in it"):
        load_mesh(tmp_path)
    with pytest.raises(MeshError, match="No such file"):
        load_mesh(tmp_path / "none.glb")
    (tmp_path / "folder.glb").mkdir()
    with pytest.raises(MeshError, match="this is a folder; name a mesh file in it"):
        load_mesh(tmp_path / "folder.glb")
    path = tmp_path / "ball.ply"
    path.write_bytes(exported("ply"))
    with pytest.raises(MeshError, match="the mesh has 320 faces, over the limit of 319; simplify"):
        load_mesh(path, max_faces=319)
    assert len(load_mesh(path, max_faces=320).faces) == 320
    with pytest.raises(MeshError, match="MiB, over the limit of"):
        load_mesh(path, max_bytes=path.stat().st_size - 1)


def test_find_meshes(tmp_path: Path) -> None:
    for name in ("b.obj", "a.glb", "sub/deep/c.PLY", "sub/notes.txt", "sub/d.fbx", "odd[1].stl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")

    def names(pattern: Any) -> list[str]:
        return [path.relative_to(tmp_path).as_posix() for path in find_meshes(pattern)]

    assert names(tmp_path) == ["a.glb", "b.obj", "odd[1].stl", "sub/d.fbx", "sub/deep/c.PLY"]
    assert names(f"{tmp_path}/**/*.PLY") == ["sub/deep/c.PLY"]
    assert names(f"{tmp_path}/**/*") == [
        "a.glb",
        "b.obj",
        "odd[1].stl",
        "sub/d.fbx",
        "sub/deep/c.PLY",
        "sub/notes.txt",
    ]
    assert names(tmp_path / "odd[1].stl") == ["odd[1].stl"]
    assert names([tmp_path / "b.obj", f"{tmp_path}/*.glb", tmp_path / "b.obj"]) == ["a.glb", "b.obj"]
    assert names(tmp_path / "nothing*") == []


def test_load_meshes_reports_and_continues(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "ball.ply").write_bytes(exported("ply"))
    (tmp_path / "y" / "ball_2.ply").write_bytes(exported("ply"))
    (tmp_path / "bad.obj").write_text(OBJ)
    (tmp_path / "bad.fbx").write_text("x")
    meshes, refusals = load_meshes(tmp_path)
    assert [mesh.name for mesh in meshes] == ["ball", "ball_3", "ball_2"]
    assert [str(refusal) for refusal in refusals] == [
        f"{tmp_path}/bad.fbx: FBX is not supported; convert it to GLB, for example with Blender",
        f"{tmp_path}/bad.obj: the mesh has no faces (a point cloud?); export a triangle mesh",
    ]
    assert refusals[0].file == f"{tmp_path}/bad.fbx"
    assert load_meshes(tmp_path / "nothing*") == ([], [])


@pytest.mark.parametrize("file_type", ["obj", "ply", "stl", "off"])
def test_z_up_files_are_turned(tmp_path: Path, file_type: str) -> None:
    """(x, y, z) -> (x, z, -y): 4 high along z becomes y, the front at y = -1 becomes z = 1.

    The turned box reaches from 0 to (2, 4, 1), so its centre is (1, 2, 0.5) and its scale 2 / 4.
    """
    points = np.array([[0.0, 0, 0], [2, 0, 0], [0, -1, 0], [0, 0, 4]])
    turned = np.array([[0.0, 0, 0], [2, 0, 0], [0, 0, 1], [0, 4, 0]])
    faces = [[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]]
    for name, vertices in (("z", points), ("y", turned)):
        trimesh.Trimesh(vertices, faces, process=False).export(tmp_path / f"{name}.{file_type}")
    lying = load_mesh(tmp_path / f"z.{file_type}", up="z")
    corners = lying.vertices[lying.faces]
    np.testing.assert_allclose(corners, (turned[faces] - [1, 2, 0.5]) / 2, atol=1e-6)
    np.testing.assert_array_equal(lying.centre, [1, 2, 0.5])
    assert lying.scale == 0.5
    for up in (None, "y"):
        standing = load_mesh(tmp_path / f"y.{file_type}", up=up)  # type: ignore[arg-type]
        np.testing.assert_array_equal(standing.vertices[standing.faces], corners)


def test_gltf_files_are_y_up(tmp_path: Path) -> None:
    """One file is refused; in a folder only the other formats are turned."""
    for name in ("a.glb", "b.ply"):
        (tmp_path / name).write_bytes(exported(name[2:]))
    with pytest.raises(
        MeshError, match=r"a\.glb: glTF files are y-up by their standard, so up=z does not apply"
    ):
        load_mesh(tmp_path / "a.glb", up="z")
    load_mesh(tmp_path / "a.glb", up="y")
    (first, second), refusals = load_meshes(tmp_path, up="z")
    assert not refusals
    np.testing.assert_array_equal(first.vertices, load_mesh(tmp_path / "a.glb").vertices)
    plain = load_mesh(tmp_path / "b.ply").vertices
    np.testing.assert_array_equal(second.vertices, plain[:, [0, 2, 1]] * [1, 1, -1])


def test_only_skinned_files_have_a_rig(tmp_path: Path) -> None:
    path = tmp_path / "ball.glb"
    path.write_bytes(exported("glb"))
    assert load_asset(path).rig is None
    assert load_asset(path).notes == ()
    assert load_asset(path).note == ""


@given(st.lists(st.sampled_from(["a", "a_2", "a_2_2", "a_3", "b"]), max_size=12))
def test_unique_names(names: list[str]) -> None:
    unique = unique_names(names)
    assert len(set(unique)) == len(names)
    for place, name in enumerate(names):
        assert unique[place].startswith(name)
        if name not in names[:place]:
            assert unique[place] == name
