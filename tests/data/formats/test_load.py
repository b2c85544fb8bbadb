"""Loading mesh files: every format, limits, refusals, and no warnings or output."""

import json
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from data import MeshError, find_meshes, load_asset, load_mesh, load_meshes

TRIANGLE = [[0.0, 0, 0], [1, 0, 0], [0, 2, 0]]


@pytest.fixture(autouse=True)
def _no_noise(capfd: pytest.CaptureFixture[str]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    assert capfd.readouterr() == ("", "")


def bumpy() -> trimesh.Trimesh:
    sphere = trimesh.creation.icosphere(subdivisions=2)
    sphere.vertices *= [1.0, 2.0, 0.5]
    sphere.vertices += [3.0, 0.0, 1.0]
    return sphere


def exported(file_type: str) -> bytes:
    content = bumpy().export(file_type=file_type)
    return content.encode() if isinstance(content, str) else content


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


def test_mirrored_node_still_faces_outward(tmp_path: Path, builder: Any) -> None:
    box = trimesh.creation.box()
    mesh = builder.mesh(
        {
            "attributes": {"POSITION": builder.accessor(box.vertices)},
            "indices": builder.accessor(box.faces.reshape(-1), "uint8"),
        }
    )
    inner = builder.node(mesh=mesh, translation=[1, 0, 0])
    builder.node(root=True, scale=[-2, 1, 1], children=[inner])
    loaded = load_mesh(builder.glb(tmp_path / "mirror.glb"))
    np.testing.assert_allclose(loaded.centre, [-2, 0, 0])
    assert trimesh.Trimesh(loaded.vertices, loaded.faces, process=False).volume > 0


@pytest.mark.parametrize(
    ("mode", "faces"), [(5, [[0, 1, 2], [1, 3, 2], [2, 3, 4]]), (6, [[1, 2, 0], [2, 3, 0], [3, 4, 0]])]
)
def test_strips_and_fans(tmp_path: Path, builder: Any, mode: int, faces: list) -> None:
    # glTF 2.0, section 3.7.2.1: strip p_i = {v_i, v_(i+1+i%2), v_(i+2-i%2)},
    # fan p_i = {v_(i+1), v_(i+2), v_0}.
    points = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 2, 0.5]]
    mesh = builder.mesh({"attributes": {"POSITION": builder.accessor(points)}, "mode": mode})
    builder.node(root=True, mesh=mesh)
    assert load_mesh(builder.glb(tmp_path / "a.glb")).faces.tolist() == faces


def test_accessors_of_every_kind(tmp_path: Path, builder: Any) -> None:
    """A strided view, normalised integers, a sparse accessor without a view, a data URI and a side file."""
    corners = np.array(TRIANGLE, dtype=np.float32)
    rows = np.zeros((3, 5), dtype=np.float32)
    rows[:, 1:4] = corners
    view = builder.view(rows.tobytes(), byteStride=20)
    builder.doc["accessors"].append(
        {"bufferView": view, "byteOffset": 4, "componentType": 5126, "count": 3, "type": "VEC3"}
    )
    strided = builder.mesh({"attributes": {"POSITION": 0}})
    # int8 / 127: (127, -127, 0) means (1, -1, 0); -128 is clamped to -1.
    packed = builder.accessor([[127, -127, 0], [-128, 0, 0], [0, 127, 0]], "int8", normalized=True)
    normalised = builder.mesh({"attributes": {"POSITION": packed}})
    builder.doc["accessors"].append(
        {
            "componentType": 5126,
            "count": 3,
            "type": "VEC3",
            "sparse": {
                "count": 2,
                "indices": {
                    "bufferView": builder.view(np.array([1, 2], "u2").tobytes()),
                    "componentType": 5123,
                },
                "values": {"bufferView": builder.view(np.array([[9, 0, 0], [0, 9, 0]], "f4").tobytes())},
            },
        }
    )
    sparse = builder.mesh({"attributes": {"POSITION": len(builder.doc["accessors"]) - 1}})
    for mesh in (strided, normalised, sparse):
        builder.node(root=True, mesh=mesh)
    side = tmp_path / "a b.bin"
    side.write_bytes(bytes(builder.binary))
    expected = [*TRIANGLE, [1, -1, 0], [-1, 0, 0], [0, 1, 0], [0, 0, 0], [9, 0, 0], [0, 9, 0]]
    for path in (
        builder.glb(tmp_path / "a.glb"),
        builder.gltf(tmp_path / "embedded.gltf"),
        builder.gltf(tmp_path / "side.gltf", "a%20b.bin"),
    ):
        mesh = load_mesh(path)
        np.testing.assert_allclose(mesh.vertices / mesh.scale + mesh.centre, expected, atol=1e-6)


def test_unreferenced_vertices_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "stray.obj"
    path.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nv 100 0 0\nf 1 2 3\n")
    mesh = load_mesh(path)
    assert mesh.vertices.shape == (3, 3)
    assert mesh.scale == 2.0


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


PLY = (
    "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
    "element face 1\nproperty list uchar int vertex_indices\nend_header\n0 0 0\n1 0 0\n0 1 0\n"
)
OFF = "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n"
OBJ = "v 0 0 0\nv 1 0 0\nv 0 1 0\n"
STL = "solid x\nfacet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nvertex 0 1 0\nendloop\nendfacet\n"


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
        ("a.fbx", b"Kaydara", "FBX is not supported; convert it to GLB"),
        ("a.blend", b"x", r"unknown format .blend; convert it to one of GLB, GLTF, OBJ, PLY, STL, OFF"),
        ("noext", b"x", "unknown format \\(no extension\\)"),
        *((f"a.{kind}", b"", "the file is empty") for kind in ("glb", "gltf", "obj", "ply", "stl", "off")),
        *((f"a.{kind}", b"hello world\n" * 30, "; ") for kind in ("glb", "gltf", "obj", "ply", "stl", "off")),
        *((f"a.{kind}", bytes(range(256)) * 3, "; ") for kind in ("glb", "gltf", "obj", "ply", "stl", "off")),
        ("a.obj", OBJ, "no faces"),
        ("a.obj", OBJ + "f 1 2 9\n", "a face refers to vertex 9 but there are only 3"),
        ("a.obj", OBJ + "f 0 1 2\n", "a face refers to vertex 0"),
        ("a.obj", OBJ + "f -1 -2 -5\n", "a face refers to vertex -1 but there are only 3"),
        ("a.obj", OBJ + "f 1 2\n", "has too few vertices"),
        ("a.obj", OBJ + "f 1 2 x\n", "cannot be read"),
        ("a.obj", OBJ + "v 1\nf 1 2 3\n", "too few numbers"),
        ("a.obj", OBJ + "v 0 nan 0\nf 1 2 4\n", "not finite"),
        ("a.obj", "v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n", "its extent is zero"),
        ("a.obj", "v 0 0 0\nv 1 1 1\nv 2 2 2\nf 1 2 3\n", "zero area"),
        ("a.ply", PLY.replace("face 1", "face 0"), "no faces"),
        ("a.ply", PLY, "3 of 4 lines"),
        ("a.ply", PLY[:40], "its header does not end"),
        ("a.ply", PLY + "3 0 1 9\n", "a face refers to vertex 9"),
        ("a.ply", PLY + "3 0 1 -1\n", "a face refers to vertex -1"),
        ("a.ply", PLY.replace("0 1 0", "0 inf 0") + "3 0 1 2\n", "not finite"),
        ("a.off", OFF.replace("3 1 0", "3 0 0", 1), "no faces"),
        ("a.off", OFF, "3 of 4 lines"),
        ("a.off", OFF + "3 0 1\n", "its last face is incomplete"),
        ("a.off", OFF + "3 0 1 9\n", "face index outside"),
        ("a.off", OFF + "3 0 1 -1\n", "face index outside"),
        ("a.stl", STL, "truncated"),
        ("a.stl", STL[:60] + "endsolid", "truncated"),
    ],
)
def test_refusals(tmp_path: Path, name: str, content: bytes | str, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(MeshError, match=reason) as caught:
        load_mesh(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "; " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file_type", ["glb", "ply", "stl", "stl_ascii", "off"])
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


def test_missing_folder_and_limits(tmp_path: Path) -> None:
    with pytest.raises(MeshError, match="No such file"):
        load_mesh(tmp_path / "none.glb")
    (tmp_path / "folder.glb").mkdir()
    with pytest.raises(MeshError, match="Is a directory"):
        load_mesh(tmp_path / "folder.glb")
    path = tmp_path / "ball.ply"
    path.write_bytes(exported("ply"))
    with pytest.raises(MeshError, match="it has 320 faces, the limit is 319; simplify"):
        load_mesh(path, max_faces=319)
    assert len(load_mesh(path, max_faces=320).faces) == 320
    with pytest.raises(MeshError, match="MiB large, the limit is"):
        load_mesh(path, max_bytes=path.stat().st_size - 1)


def good_glb(builder: Any) -> Any:
    attributes = {"POSITION": builder.accessor(TRIANGLE)}
    mesh = builder.mesh({"attributes": attributes, "indices": builder.accessor([0, 1, 2], "uint16")})
    builder.node(root=True, mesh=mesh)
    return builder


def test_the_undamaged_glb_loads(tmp_path: Path, builder: Any) -> None:
    mesh = load_mesh(good_glb(builder).glb(tmp_path / "good.glb"))
    np.testing.assert_allclose(mesh.vertices / mesh.scale + mesh.centre, TRIANGLE)


@pytest.mark.parametrize("extension", ["KHR_draco_mesh_compression", "EXT_meshopt_compression"])
@pytest.mark.parametrize("place", ["extensionsUsed", "extensionsRequired", "inside"])
@pytest.mark.parametrize("suffix", ["glb", "gltf"])
def test_compressed_files_are_refused_by_name(
    tmp_path: Path, builder: Any, extension: str, place: str, suffix: str
) -> None:
    doc = good_glb(builder).doc
    if place != "inside":
        doc[place] = ["KHR_materials_unlit", extension]
    elif "draco" in extension:
        doc["meshes"][0]["primitives"][0]["extensions"] = {extension: {}}
    else:
        doc["bufferViews"][0]["extensions"] = {extension: {}}
    path = getattr(builder, suffix)(tmp_path / f"small.{suffix}")
    scheme = "Draco" if "draco" in extension else "meshopt"
    with pytest.raises(MeshError, match=rf"{scheme}-compressed \({extension}\); export it without"):
        load_mesh(path)


def damage(path: str, value: Any) -> Any:
    """Set an entry of the document, e.g. "accessors.0.count"; None removes it."""

    def act(doc: dict) -> None:
        *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        for part in way:
            doc = doc[part]
        if value is None:
            del doc[last]
        else:
            doc[last] = value

    return act


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("accessors.0.count", 4, "bufferViews.0. is truncated"),
        ("accessors.0.count", 10**9, "claims 1000000000 elements"),
        ("accessors.0.count", -1, "not an integer >= 0"),
        ("accessors.0.count", None, "not an integer >= 0"),
        ("accessors.0.type", "VEC7", "unknown type"),
        ("accessors.0.type", "SCALAR", "positions with 1 components"),
        ("accessors.0.bufferView", 9, r"bufferViews\[9\] but has only 2"),
        ("accessors.0.byteOffset", 1000, "bufferViews.0. is truncated"),
        ("accessors.1.componentType", 5126, "."),
        ("bufferViews.0.byteLength", 8, "bufferViews.0. is truncated"),
        ("bufferViews.0.byteOffset", 10**6, "bufferViews.0. is truncated"),
        ("buffers.0.byteLength", 10**6, "has 44 of its 1000000 bytes"),
        ("buffers.0.uri", "data:;base64,@@", "data URI of buffers.0. is damaged"),
        ("buffers.0.uri", "https://example.org/a.bin", "which is not downloaded"),
        ("buffers.0.uri", "missing.bin", "missing.bin cannot be read"),
        ("meshes.0.primitives.0.mode", 0, "no triangles"),
        ("meshes.0.primitives", "x", "malformed"),
        ("meshes.0.primitives", None, "malformed"),
        ("meshes.0", 7, '"meshes" entry of its JSON is not a list of objects'),
        ("nodes.0.mesh", 3, r"meshes\[3\] but has only 1"),
        ("nodes.0.mesh", None, "no triangles"),
        ("nodes.0.children", [0], "two parents or is part of a cycle"),
        ("nodes.0.matrix", [1, 2], r"transform of nodes\[0\] cannot be read"),
        ("nodes.0.scale", [float("inf"), 1, 1], "not finite"),
        ("nodes.0.scale", [0, 0, 0], "extent is zero"),
        ("nodes.0.scale", [1e300, 1e300, 1e300], "."),
        ("nodes.0.rotation", "abcd", "cannot be read"),
        ("scene", 4, r"scenes\[4\]"),
        ("asset.version", "1.0", "glTF version 1.0 is not supported"),
        ("asset", [], "glTF version unknown"),
    ],
)
def test_damaged_gltf(tmp_path: Path, builder: Any, path: str, value: Any, reason: str) -> None:
    damage(path, value)(good_glb(builder).doc)
    file = builder.glb(tmp_path / "bad.glb")
    if path == "nodes.0.scale" and value == [1e300] * 3:
        # Extreme but finite: loads like any other size.
        assert load_mesh(file).faces.shape == (1, 3)
        return
    with pytest.raises(MeshError, match=reason) as caught:
        load_mesh(file)
    assert str(caught.value).startswith(f"{file}: ")


def test_gltf_indices_and_positions_are_checked(tmp_path: Path, builder: Any) -> None:
    attributes = {"POSITION": builder.accessor(TRIANGLE)}
    indices = builder.accessor([0, 1, 3], "uint16")
    builder.node(root=True, mesh=builder.mesh({"attributes": attributes, "indices": indices}))
    with pytest.raises(MeshError, match="refers to vertex 3 but has only 3"):
        load_mesh(builder.glb(tmp_path / "range.glb"))
    builder.doc["accessors"][indices]["bufferView"] = builder.view(np.array([0, 1, 2], "u2").tobytes())
    builder.doc["accessors"][0]["bufferView"] = builder.view(np.full((3, 3), np.nan, "f4").tobytes())
    del builder.doc["buffers"][0]["byteLength"]
    with pytest.raises(MeshError, match="non-finite positions"):
        load_mesh(builder.glb(tmp_path / "nan.glb"))


def test_glb_container(tmp_path: Path, builder: Any) -> None:
    whole = good_glb(builder).glb(tmp_path / "good.glb").read_bytes()
    path = tmp_path / "bad.glb"
    for content, reason in (
        (b"glTF" + struct.pack("<II", 1, 20) + b"\0" * 20, "GLB version 1"),
        (whole[:12] + struct.pack("<I4s", 10**6, b"JSON") + whole[20:], "a GLB chunk is truncated"),
        (whole[:16] + b"BIN\0" + whole[20:], "no JSON chunk"),
        (b"[1, 2]", "not a glTF document"),
        (b'{"asset": ', "its JSON cannot be parsed"),
        (b"[" * 100000, "its JSON cannot be parsed"),
        (json.dumps({"asset": {"version": "2.0"}}).encode(), "no triangles"),
    ):
        path.write_bytes(content)
        with pytest.raises(MeshError, match=reason):
            load_mesh(path)


def test_random_damage_never_escapes_as_another_error(tmp_path: Path, builder: Any) -> None:
    whole = bytearray(good_glb(builder).glb(tmp_path / "good.glb").read_bytes())
    rng = np.random.default_rng(0)
    path = tmp_path / "noise.glb"
    refused = 0
    for _ in range(300):
        content = whole.copy()
        for place in rng.integers(12, len(whole), size=rng.integers(1, 6)):
            content[place] = rng.integers(32, 127)
        path.write_bytes(content)
        try:
            load_mesh(path)
        except MeshError:
            refused += 1
    assert refused > 100


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
        f"{tmp_path}/bad.fbx: FBX is not supported; convert it to GLB, for instance with Blender",
        f"{tmp_path}/bad.obj: it has no faces (a point cloud?); export a triangle mesh",
    ]
    assert refusals[0].file == f"{tmp_path}/bad.fbx"
    assert load_meshes(tmp_path / "nothing*") == ([], [])


def test_only_skinned_files_have_a_rig(tmp_path: Path) -> None:
    path = tmp_path / "ball.glb"
    path.write_bytes(exported("glb"))
    assert load_asset(path)[1] is None
