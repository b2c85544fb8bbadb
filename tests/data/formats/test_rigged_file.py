"""Files of every format come back as one GLB with the rig, their materials, UVs and colours."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image
from scipy.spatial.distance import cdist

from data import Mesh, MeshError, Rig, load_mesh, read_skinned_glb
from data.formats.load import load_asset
from data.formats.rigged_file import rigged_file
from tests.data.gltf.test_old_skin import walker
from tests.data.gltf.viewer import parse, read

pytestmark = pytest.mark.usefixtures("silent")

# A square of two triangles, 20 x 10 around (110, 5, 3), and a triangle above it that shares one edge.
OBJ = r"""
mtllib two\
words.mtl
mtllib missing.mtl
o floor
v 100 0 3 1 0 0
v 120 0 3 0 1 0
v 120 10 3 0 0 1
v 100 10 3 1 1 1
vt 0 0
vt 1 0
vt 1 1
vt 0 1
vn 0 0 2
usemtl wood
f 1/1/1 2/2/1 3/3/1 4/4/1
o sail # a comment
v 110 20 3 0 0 0
vt 0.25 0.75
usemtl cloth
f -3/-2 -2/-3 -1/-1
"""
MTL = r"""
newmtl wood
Kd 0.5 0.5 0.5
map_Kd -s 1 1 1 -o 0 0 Textures\Wood Grain.PNG
norm bumps.jpg
newmtl cloth
Kd 0.2 0.4 0.6
Ns 198
d 0.5
Ke 0 0 2
map_Ke nowhere.png
newmtl unused
map_Kd photo.bmp
"""


def a_rig(mesh: Mesh) -> Rig:
    places = mesh.vertices[[0, -1]].astype(np.float32)
    weights = np.exp(-2 * cdist(mesh.vertices, places)).astype(np.float32)
    return Rig(places, np.array([-1, 0]), weights, ("left", "right"))


def check(path: Path, **options: Any) -> tuple[dict, bytes, tuple[str, ...]]:
    """Rig a file with weights that depend on the place alone; read back, every vertex has its own."""
    mesh = load_mesh(path)
    rig = a_rig(mesh)
    written = rigged_file(path, mesh, rig, **options)
    back = path.with_name("back.glb")
    back.write_bytes(written.glb)
    read_mesh, found = read_skinned_glb(back)
    here, there = (one.vertices / one.scale + one.centre for one in (mesh, read_mesh))
    nearest = cdist(there, here).argmin(axis=1)
    size = np.ptp(here, axis=0).max()
    np.testing.assert_allclose(there, here[nearest], atol=1e-6 * size)
    assert set(nearest.tolist()) == set(range(len(here)))
    expected = rig.weights / rig.weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.weights, expected[nearest], atol=1e-6)
    assert found.names == rig.names
    return *parse(written.glb), written.notes


def image_bytes(doc: dict, binary: bytes, texture: int) -> bytes:
    view = doc["bufferViews"][doc["images"][doc["textures"][texture]["source"]]["bufferView"]]
    return binary[view["byteOffset"] :][: view["byteLength"]]


def test_obj_with_materials_and_images(tmp_path: Path) -> None:
    (tmp_path / "textures").mkdir()
    wood, bumps = tmp_path / "textures" / "wood grain.png", tmp_path / "bumps.jpg"
    Image.new("RGB", (4, 4), (200, 100, 0)).save(wood)
    Image.new("RGB", (4, 4), (128, 128, 255)).save(bumps)
    Image.new("RGB", (2, 2), (1, 2, 3)).save(tmp_path / "photo.bmp")
    (tmp_path / "two words.mtl").write_text(MTL)
    (tmp_path / "ship.obj").write_text(OBJ)
    doc, binary, notes = check(tmp_path / "ship.obj")
    assert notes == ("the image file nowhere.png is missing", "the material file missing.mtl is missing")
    assert [(node["name"], node["mesh"]) for node in doc["nodes"][:2]] == [("floor", 0), ("sail", 1)]
    woods, cloth, unused = doc["materials"]
    assert woods["name"] == "wood"
    base = woods["pbrMetallicRoughness"]["baseColorTexture"]["index"]
    assert woods["pbrMetallicRoughness"]["baseColorFactor"] == [1, 1, 1, 1]
    assert image_bytes(doc, binary, base) == wood.read_bytes()
    assert image_bytes(doc, binary, woods["normalTexture"]["index"]) == bumps.read_bytes()
    assert [image["mimeType"] for image in doc["images"]] == ["image/png", "image/jpeg", "image/png"]
    assert cloth["pbrMetallicRoughness"] == {
        "metallicFactor": 0,
        "roughnessFactor": pytest.approx(0.1),  # sqrt(2 / (198 + 2))
        "baseColorFactor": [0.2, 0.4, 0.6, 0.5],
    }
    assert cloth["alphaMode"] == "BLEND"
    assert cloth["emissiveFactor"] == [0, 0, 1]
    assert unused["pbrMetallicRoughness"]["baseColorTexture"]["index"] == 2
    floor, sail = (mesh["primitives"][0] for mesh in doc["meshes"])
    assert (floor["material"], sail["material"]) == (0, 1)
    # glTF counts v from the image's upper edge.
    uv = read(doc, binary, floor["attributes"]["TEXCOORD_0"])
    places = read(doc, binary, floor["attributes"]["POSITION"])
    order = np.lexsort((places[:, 0], places[:, 1]))
    assert uv[order].tolist() == [[0, 1], [1, 1], [0, 0], [1, 0]]
    np.testing.assert_array_equal(read(doc, binary, floor["attributes"]["NORMAL"]), [[0, 0, 1]] * 4)
    # Negative indices count back from where they stand: corners 3, 4, 5 with UVs 4, 3, 5.
    places = read(doc, binary, sail["attributes"]["POSITION"])
    uv = read(doc, binary, sail["attributes"]["TEXCOORD_0"])
    order = np.argsort(places[:, 0])
    assert places[order].tolist() == [[100, 10, 3], [110, 20, 3], [120, 10, 3]]
    assert uv[order].tolist() == [[1, 0], [0.25, 0.25], [0, 0]]
    colours = read(doc, binary, sail["attributes"]["COLOR_0"])
    assert colours[order].tolist() == [[255, 255, 255, 255], [0, 0, 0, 255], [0, 0, 255, 255]]
    loaded = trimesh.load_scene(tmp_path / "back.glb")
    shades = {geometry.visual.material.name for geometry in loaded.geometry.values()}
    assert shades == {"wood", "cloth"}
    assert loaded.geometry["floor"].visual.material.baseColorTexture.size == (4, 4)


def test_obj_normals_are_smooth_across_uv_seams(tmp_path: Path) -> None:
    """A roof whose ridge is split by the UVs: both halves get the ridge's mean normal."""
    (tmp_path / "roof.obj").write_text(
        "v -1 0 0\nv -1 0 4\nv 0 1 0\nv 0 1 4\nv 1 0 0\nv 1 0 4\nvt 0 0\nvt 1 1\n"
        "f 1/1 2/1 4/1 3/1\nf 3/2 4/2 6/2 5/2\n"
    )
    doc, binary, notes = check(tmp_path / "roof.obj")
    assert notes == ()
    attributes = doc["meshes"][0]["primitives"][0]["attributes"]
    places = read(doc, binary, attributes["POSITION"])
    assert len(places) == 8
    # Sorted by place, then by UV.
    ridge = read(doc, binary, attributes["NORMAL"])[places[:, 1] == 1]
    np.testing.assert_allclose(ridge, [[0, 1, 0]] * 4, atol=0.35)
    np.testing.assert_array_equal(ridge[::2], ridge[1::2])


def test_normals_are_smooth_across_copies_that_differ_by_rounding(tmp_path: Path) -> None:
    """A roof of two quads, each with its own ridge; the second ridge is one millionth of the box lower."""
    (tmp_path / "roof.off").write_text(
        "OFF\n8 4 0\n-1 0 0\n-1 0 4\n0 1 0\n0 1 4\n0 0.999999 0\n0 0.999999 4\n1 0 0\n1 0 4\n"
        "3 0 1 3\n3 0 3 2\n3 4 5 7\n3 4 7 6\n"
    )
    doc, binary, _ = check(tmp_path / "roof.off")
    attributes = doc["meshes"][0]["primitives"][0]["attributes"]
    places = read(doc, binary, attributes["POSITION"])
    normals = read(doc, binary, attributes["NORMAL"])
    for end in (0, 4):
        ridge = normals[(places[:, 1] > 0.9) & (places[:, 2] == end)]
        assert len(ridge) == 2
        assert ridge[0].tolist() == ridge[1].tolist()


@pytest.mark.parametrize("file_type", ["ply", "stl", "off"])
def test_plain_formats(tmp_path: Path, file_type: str) -> None:
    ball = trimesh.creation.icosphere(subdivisions=2)
    ball.apply_transform([[30, 0, 0, 500], [0, 10, 0, -3], [0, 0, 10, 1], [0, 0, 0, 1]])
    if file_type == "ply":
        ball.visual.vertex_colors = np.random.default_rng(0).integers(0, 255, (len(ball.vertices), 4))
    path = tmp_path / f"ball.{file_type}"
    ball.export(path)
    doc, binary, notes = check(path)
    assert notes == ()
    attributes = doc["meshes"][0]["primitives"][0]["attributes"]
    assert ("COLOR_0" in attributes) == (file_type == "ply")
    assert ("NORMAL" in attributes) == (file_type != "stl"), "viewers shade an STL flat"
    if file_type == "ply":
        places = read(doc, binary, attributes["POSITION"])
        nearest = cdist(places, ball.vertices).argmin(axis=1)
        colours = read(doc, binary, attributes["COLOR_0"])
        np.testing.assert_array_equal(colours, ball.visual.vertex_colors[nearest])
    bounds = trimesh.load_scene(path.with_name("back.glb")).bounds
    np.testing.assert_allclose(bounds, ball.bounds, rtol=1e-5)


def test_ply_with_an_image_and_with_face_colours(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (200, 100, 0)).save(tmp_path / "skin.png")
    header = "ply\nformat ascii 1.0\ncomment TextureFile skin.png\nelement vertex 3\n"
    body = "".join(f"property float {name}\n" for name in ("x", "y", "z", "s", "t"))
    face = "element face 1\nproperty list uchar int vertex_indices\n"
    rows = "0 0 0 0 0\n1 0 0 1 0\n0 1 0 0 0.25\n"
    (tmp_path / "a.ply").write_text(f"{header}{body}{face}end_header\n{rows}3 0 1 2\n")
    doc, binary, notes = check(tmp_path / "a.ply")
    assert notes == ()
    assert image_bytes(doc, binary, 0) == (tmp_path / "skin.png").read_bytes()
    uv = read(doc, binary, doc["meshes"][0]["primitives"][0]["attributes"]["TEXCOORD_0"])
    np.testing.assert_allclose(uv, [[0, 1], [1, 1], [0, 0.75]])
    ball = trimesh.creation.icosphere(subdivisions=1)
    ball.visual.face_colors = np.tile([10, 20, 30, 255], (len(ball.faces), 1))
    ball.export(tmp_path / "faces.ply")
    doc, binary, _ = check(tmp_path / "faces.ply")
    colours = read(doc, binary, doc["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"])
    np.testing.assert_array_equal(np.unique(colours, axis=0), [[10, 20, 30, 255]])


def test_own_joints(tmp_path: Path, builder: Any) -> None:
    path = walker(builder).glb(tmp_path / "a.glb")
    asset = load_asset(path)
    assert asset.rig is not None
    uniform = np.full_like(asset.rig.weights, 1 / 3)
    rig = Rig(asset.rig.joints, asset.rig.parents, uniform, asset.rig.names)
    doc = parse(rigged_file(path, asset.mesh, rig, own_joints=True).glb)[0]
    assert len(doc["nodes"]) == len(builder.doc["nodes"])
    assert doc["animations"] == builder.doc["animations"]
    with pytest.raises(MeshError, match="the rig's joints are not those of the file"):
        rigged_file(path, asset.mesh, a_rig(asset.mesh), own_joints=True)


def test_another_file_than_the_mesh_came_from(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        ball = trimesh.creation.icosphere(subdivisions=2)
        ball.vertices += np.random.default_rng(seed).normal(size=ball.vertices.shape) * 0.1
        for file_type in ("glb", "ply"):
            ball.export(tmp_path / f"{name}.{file_type}")
    for file_type, reason in (("glb", "does not hold the mesh"), ("ply", "vertices are not on the mesh")):
        mesh = load_mesh(tmp_path / f"a.{file_type}")
        path = tmp_path / f"b.{file_type}"
        with pytest.raises(MeshError, match=rf"^{path}: .*{reason} that was rigged; load it again"):
            rigged_file(path, mesh, a_rig(mesh))


@pytest.mark.parametrize("loose", ["nan nan nan", "inf 0 0", "9 9 9"])
def test_vertices_without_a_face_are_dropped_whatever_they_hold(tmp_path: Path, loose: str) -> None:
    corners = ["0 0 0", "2 0 0", loose, "0 2 0", "0 0 2"]
    faces = ["3 0 3 1", "3 0 1 4", "3 0 4 3", "3 1 3 4"]
    path = tmp_path / "a.off"
    path.write_text("\n".join(["OFF", "5 4 0", *corners, *faces]) + "\n")
    mesh = load_mesh(path)
    (tmp_path / "out.glb").write_bytes(rigged_file(path, mesh, a_rig(mesh)).glb)
    again, _ = read_skinned_glb(tmp_path / "out.glb")
    assert np.array_equal(again.vertices, mesh.vertices)
    assert np.array_equal(again.faces, mesh.faces)
