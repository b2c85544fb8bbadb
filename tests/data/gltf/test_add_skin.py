"""A skin is added to a document: what is in it stays, every vertex keeps its place, joints move it."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from data import MeshError, Rig, read_skinned_glb
from data.gltf.add_skin import SkinnedFile, add_skin
from data.gltf.document import read_gltf
from data.gltf.geometry import Flattened, flatten
from tests.data.gltf.viewer import parse, read, shown

pytestmark = pytest.mark.usefixtures("silent")

BOX = trimesh.creation.box()
TURN = [0.0, 0.0, np.sqrt(0.5), np.sqrt(0.5)]  # 90 degrees about z
PNG = b"\x89PNG\r\n\x1a\n and so on"


def a_rig(flat: Flattened, joints: int = 6) -> Rig:
    """Joints spread along the mesh's diagonal, each parent of the next; weights fall off with distance."""
    low, high = flat.vertices.min(axis=0), flat.vertices.max(axis=0)
    places = low + (high - low) * np.linspace(0.1, 0.9, joints)[:, None]
    away = np.linalg.norm(flat.vertices[:, None] - places[None], axis=2)
    weights = np.exp(-4 * away / np.linalg.norm(high - low)).astype(np.float32)
    return Rig(places.astype(np.float32), np.arange(joints) - 1, weights)


def add(path: Path, **options: Any) -> tuple[SkinnedFile, Flattened, Rig]:
    gltf = read_gltf(path)
    flat = flatten(gltf)
    rig = a_rig(flat)
    return add_skin(gltf, flat, rig, **options), flat, rig


def check(path: Path, folder: Path, **options: Any) -> dict[str, Any]:
    """Add a rig; vertices keep their places in a viewer and read back, with the rig. Returns the document."""
    written, flat, rig = add(path, **options)
    doc, binary = parse(written.glb)
    views = shown(doc, binary)
    # Nodes may have been renumbered, in their old order.
    old_nodes = read_gltf(path).items("nodes")
    new_index = dict(zip(mesh_nodes(old_nodes), mesh_nodes(doc["nodes"]), strict=True))
    start = 0
    size = np.ptp(flat.vertices, axis=0).max()
    for part in flat.parts:
        expected = flat.vertices[start : start + len(part.vertices)]
        start += len(part.vertices)
        view = views[new_index[part.node], part.primitive]
        np.testing.assert_allclose(view[part.vertices], expected, atol=1e-5 * size)
    back = folder / "back.glb"
    back.write_bytes(written.glb)
    mesh, found = read_skinned_glb(back)
    np.testing.assert_allclose(mesh.vertices / mesh.scale + mesh.centre, flat.vertices, atol=1e-5 * size)
    np.testing.assert_allclose(found.joints / mesh.scale + mesh.centre, rig.joints, atol=1e-5 * size)
    np.testing.assert_array_equal(found.parents, rig.parents)
    assert found.names == rig.names
    four = np.where(np.argsort(np.argsort(-rig.weights, axis=1), axis=1) < 4, rig.weights, 0)
    np.testing.assert_allclose(found.weights, four / four.sum(axis=1, keepdims=True), atol=1e-6)
    check_kept(path, written)
    return doc


def mesh_nodes(nodes: list[dict[str, Any]]) -> list[int]:
    return [index for index, node in enumerate(nodes) if "mesh" in node]


def check_kept(path: Path, written: SkinnedFile) -> None:
    """Every old buffer view has its old bytes, and entries that have no reason to change are equal."""
    gltf = read_gltf(path)
    old, new = gltf.json, parse(written.glb)[0]
    binary = parse(written.glb)[1]
    for before, after in zip(old.get("bufferViews", []), new["bufferViews"], strict=False):
        start, length = before.get("byteOffset", 0), before["byteLength"]
        content = gltf.buffer(before["buffer"])[start : start + length]
        assert binary[after.get("byteOffset", 0) :][:length] == content
    for key in ("accessors", "materials", "textures", "samplers", "cameras", "extensions", "extras", "asset"):
        if key in old:
            assert (
                new[key][: len(old[key])] == old[key] if isinstance(old[key], list) else new[key] == old[key]
            )


def box(builder: Any, **extra: Any) -> dict[str, Any]:
    attributes = {"POSITION": builder.accessor(BOX.vertices), **extra.pop("attributes", {})}
    indices = builder.accessor(BOX.faces.reshape(-1), "uint16")
    return {"attributes": attributes, "indices": indices, **extra}


def test_everything_in_the_file_stays(tmp_path: Path, builder: Any) -> None:
    doc = builder.doc
    attributes = {
        "NORMAL": builder.accessor(BOX.vertex_normals),
        "TEXCOORD_0": builder.accessor(BOX.vertices[:, :2]),
        "_TEMPERATURE": builder.accessor(BOX.vertices[:, 0]),
    }
    targets = [
        {"POSITION": builder.accessor(BOX.vertices * 0.5)},
        {"POSITION": builder.accessor(BOX.vertices)},
    ]
    mesh = builder.mesh(box(builder, attributes=attributes, targets=targets, material=0, extras={"a": 1}))
    doc["meshes"][mesh] |= {"name": "Körper", "weights": [0.5, 0.0], "extras": {"targetNames": ["x", "y"]}}
    doc["images"] = [{"name": "skin", "mimeType": "image/png", "bufferView": builder.view(PNG)}]
    doc["textures"] = [{"source": 0, "sampler": 0}]
    doc["samplers"] = [{"magFilter": 9728}]
    doc["materials"] = [{"name": "cloth", "pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}]
    doc["cameras"] = [{"type": "perspective", "perspective": {"yfov": 0.7, "znear": 0.01}}]
    doc["extensionsUsed"] = ["KHR_lights_punctual"]
    doc["extensions"] = {"KHR_lights_punctual": {"lights": [{"type": "point"}]}}
    doc["extras"] = {"author": "somebody"}
    doc["asset"]["copyright"] = "2020 somebody"
    body = builder.node(name="body", mesh=mesh, scale=[0.01] * 3, rotation=TURN, extras={"lod": 2})
    camera = builder.node(name="camera", camera=0)
    light = builder.node(name="light", extensions={"KHR_lights_punctual": {"light": 0}})
    builder.node(root=True, name="world", translation=[3, 0, 0], children=[body, camera, light])
    path = builder.glb(tmp_path / "whole.glb")
    before = copy.deepcopy(doc)
    after = check(path, tmp_path)
    for index, node in enumerate(before["nodes"]):
        changed = {key: value for key, value in after["nodes"][index].items() if key != "skin"}
        assert changed == node
        assert ("skin" in after["nodes"][index]) == (index == body)
    primitive = after["meshes"][0]["primitives"][0]
    added = {name: primitive["attributes"].pop(name) for name in ("JOINTS_0", "WEIGHTS_0")}
    assert after["meshes"] == before["meshes"]
    assert after["images"] == before["images"]
    assert after["accessors"][added["JOINTS_0"]]["componentType"] == 5121
    assert after["scenes"] == [{"nodes": [before["scenes"][0]["nodes"][0], len(before["nodes"])]}]
    assert after["skins"][0]["skeleton"] == after["skins"][0]["joints"][0] == len(before["nodes"])


@pytest.mark.parametrize(
    "transform",
    [
        {},
        {"translation": [5, -2, 1], "rotation": TURN, "scale": [0.01, 0.01, 0.01]},
        {"scale": [-2, 1, 1]},
        {"scale": [3, 1, 0.2], "rotation": TURN},
        {"matrix": [0, 0, 2, 0, 0, 3, 0, 0, 1, 0.5, 0, 0, 10, 20, 30, 1]},
    ],
)
def test_mesh_nodes_keep_their_transforms(tmp_path: Path, builder: Any, transform: dict) -> None:
    mesh = builder.mesh(box(builder))
    inner = builder.node(mesh=mesh, name="inner", **transform)
    builder.node(root=True, translation=[1, 2, 3], scale=[2, 2, 2], children=[inner])
    after = check(builder.glb(tmp_path / "a.glb"), tmp_path)
    assert after["nodes"][inner] == {"mesh": mesh, "name": "inner", "skin": 0, **transform}
    back, _ = read_skinned_glb(tmp_path / "back.glb")
    assert trimesh.Trimesh(back.vertices, back.faces, process=False).volume > 0


def test_one_skin_for_each_transform(tmp_path: Path, builder: Any) -> None:
    """Three meshes, two of them at the same place: two skins over the same joints."""
    for place in ([0, 0, 0], [2, 0, 0], [2, 0, 0]):
        builder.node(root=True, mesh=builder.mesh(box(builder)), translation=place)
    after = check(builder.glb(tmp_path / "a.glb"), tmp_path)
    assert [node["skin"] for node in after["nodes"][:3]] == [0, 1, 1]
    assert after["skins"][0]["joints"] == after["skins"][1]["joints"]
    assert len(after["nodes"]) == 3 + 6


def test_instances_get_meshes_of_their_own_only_if_their_weights_differ(tmp_path: Path, builder: Any) -> None:
    mesh = builder.mesh(box(builder))
    builder.doc["meshes"][mesh]["name"] = "wheel"
    for place in ([0, 0, 0], [2, 0, 0], [2, 0, 0]):
        builder.node(root=True, mesh=mesh, translation=place)
    outside = builder.node(mesh=mesh, name="in no scene")
    after = check(builder.glb(tmp_path / "a.glb"), tmp_path)
    # The node outside the scene keeps the original; the first node and the other two share a copy each.
    assert [node["mesh"] for node in after["nodes"][:4]] == [1, 2, 2, 0]
    assert after["meshes"][0] == builder.doc["meshes"][0]
    assert "skin" not in after["nodes"][outside]
    assert [one["name"] for one in after["meshes"]] == ["wheel"] * 3
    accessors = [one["primitives"][0]["attributes"] for one in after["meshes"][1:]]
    assert accessors[0]["POSITION"] == accessors[1]["POSITION"]
    assert accessors[0]["WEIGHTS_0"] != accessors[1]["WEIGHTS_0"]


def test_primitives_that_share_vertices_share_weights(tmp_path: Path, builder: Any) -> None:
    """Two primitives over one accessor, a line primitive, and a vertex that nothing uses."""
    points = np.vstack([BOX.vertices, [[0.5, 0.5, 0.9]]])
    shared = builder.accessor(points)
    halves = [builder.accessor(BOX.faces[part].reshape(-1), "uint16") for part in (slice(6), slice(6, 12))]
    lines = {"attributes": {"POSITION": builder.accessor([[0, 0, 9.0], [0.5, 0.5, 0.6]])}, "mode": 1}
    mesh = builder.mesh(*({"attributes": {"POSITION": shared}, "indices": half} for half in halves), lines)
    whiskers = builder.mesh(lines)
    builder.node(root=True, mesh=mesh)
    builder.node(root=True, mesh=whiskers, translation=[0, 0, 1])
    after = check(builder.glb(tmp_path / "a.glb"), tmp_path)
    one, other, line = (primitive["attributes"] for primitive in after["meshes"][mesh]["primitives"])
    assert one == other
    binary = parse((tmp_path / "back.glb").read_bytes())[1]
    weights = read(after, binary, one["WEIGHTS_0"])
    # The loose vertex hangs on the nearest corner, (0.5, 0.5, 0.5), and so do the ends of the line.
    (corner,) = np.flatnonzero((BOX.vertices == 0.5).all(axis=1))
    np.testing.assert_array_equal(weights[8], weights[corner])
    np.testing.assert_array_equal(read(after, binary, line["WEIGHTS_0"])[1], weights[corner])
    places = shown(after, binary)
    np.testing.assert_allclose(places[1, 0], [[0, 0, 10], [0.5, 0.5, 1.6]], atol=1e-5)
    assert after["nodes"][1]["skin"] == 1


def test_quantised_sparse_and_strided_positions_stay(tmp_path: Path, builder: Any) -> None:
    whole = np.round(BOX.vertices * 100).astype(np.int16)
    packed = builder.accessor(np.hstack([whole, whole[:, :1] * 0]).astype(np.int16), "int16", type="VEC3")
    builder.doc["accessors"][packed]["bufferView"] = builder.view(
        np.hstack([whole, whole[:, :1]]).tobytes(), byteStride=8
    )
    builder.doc["extensionsUsed"] = builder.doc["extensionsRequired"] = ["KHR_mesh_quantization"]
    indices = builder.accessor(BOX.faces.reshape(-1), "uint16")
    sparse = {
        "count": 1,
        "indices": {"bufferView": builder.view(b"\x03\x00\x00\x00"), "componentType": 5125},
        "values": {"bufferView": builder.view(np.array([0.5, 0.5, 4], "f4").tobytes())},
    }
    bumpy = builder.accessor(BOX.vertices, sparse=sparse)
    for position in (packed, bumpy):
        mesh = builder.mesh({"attributes": {"POSITION": position}, "indices": indices})
        builder.node(root=True, mesh=mesh, scale=[0.01] * 3 if position == packed else [1] * 3)
    written, flat, _ = add(builder.glb(tmp_path / "a.glb"))
    doc = parse(written.glb)[0]
    assert doc["accessors"][: len(builder.doc["accessors"])] == builder.doc["accessors"]
    (tmp_path / "back.glb").write_bytes(written.glb)
    mesh, _ = read_skinned_glb(tmp_path / "back.glb")
    np.testing.assert_allclose(mesh.vertices / mesh.scale + mesh.centre, flat.vertices, atol=1e-5)


def test_without_scenes_and_with_several(tmp_path: Path, builder: Any) -> None:
    body = builder.node(root=True, mesh=builder.mesh(box(builder)))
    other = builder.node(mesh=builder.mesh(box(builder)), name="elsewhere")
    builder.doc["scenes"] += [{"nodes": [body, other]}, {"nodes": [other], "name": "third"}]
    after = check(builder.glb(tmp_path / "many.glb"), tmp_path)
    # The root stands in every scene that shows the body; the mesh of the other scenes is left alone.
    assert [scene["nodes"] for scene in after["scenes"]] == [[body, 2], [body, other, 2], [other]]
    assert "skin" not in after["nodes"][other]
    del builder.doc["scenes"], builder.doc["scene"], builder.doc["buffers"][0]["byteLength"]
    after = check(builder.glb(tmp_path / "none.glb"), tmp_path)
    assert "scenes" not in after
    assert after["nodes"][other]["skin"] == 0


def test_side_files_are_embedded_unchanged(tmp_path: Path, builder: Any) -> None:
    """Two buffers and an image beside the .gltf; one image as a data URI; one missing."""
    mesh = builder.mesh(box(builder))
    builder.node(root=True, mesh=mesh)
    extra = np.arange(6, dtype="f4").tobytes() + b"odd"
    builder.doc["buffers"].append({"uri": "more%20data.bin", "byteLength": len(extra)})
    builder.doc["bufferViews"].append({"buffer": 1, "byteLength": 24})
    builder.doc["accessors"].append(
        {
            "bufferView": len(builder.doc["bufferViews"]) - 1,
            "componentType": 5126,
            "count": 6,
            "type": "SCALAR",
        }
    )
    data_uri = "data:image/png;base64,iVBORw0KGgo="
    builder.doc["images"] = [
        {"uri": "skin%20a.png", "name": "skin"},
        {"uri": data_uri},
        {"uri": "missing.png"},
        {"uri": "photo.jpeg"},
    ]
    (tmp_path / "more data.bin").write_bytes(extra)
    (tmp_path / "skin a.png").write_bytes(PNG)
    (tmp_path / "photo.jpeg").write_bytes(b"\xff\xd8\xff and so on")
    (tmp_path / "side.bin").write_bytes(bytes(builder.binary))
    path = builder.gltf(tmp_path / "a.gltf", "side.bin")
    after = check(path, tmp_path)
    written, _, _ = add(path)
    doc, binary = parse(written.glb)
    assert len(doc["buffers"]) == 1
    assert "uri" not in doc["buffers"][0]
    first, embedded, missing, photo = after["images"]
    for image, kind, content in ((first, "image/png", PNG), (photo, "image/jpeg", b"\xff\xd8\xff and so on")):
        view = doc["bufferViews"][image["bufferView"]]
        assert binary[view["byteOffset"] :][: view["byteLength"]] == content
        assert image["mimeType"] == kind
    assert first["name"] == "skin"
    assert embedded == {"uri": data_uri}
    assert missing == {"uri": "missing.png"}
    assert written.notes == (
        "the image file missing.png cannot be read (No such file or directory); put it next to the .gltf or "
        "export a single GLB",
    )
    np.testing.assert_array_equal(read(doc, binary, len(builder.doc["accessors"]) - 1)[:, 0], np.arange(6))


def test_joints_move_the_vertices_by_linear_blend_skinning(tmp_path: Path, builder: Any) -> None:
    """A joint turned by 90 degrees about z: v' = sum of w_j G_j (v - h_j), also for a scaled mesh node."""
    builder.node(root=True, mesh=builder.mesh(box(builder)), scale=[2, 1, 1], translation=[0, 3, 0])
    written, flat, rig = add(builder.glb(tmp_path / "a.glb"))
    doc, binary = parse(written.glb)
    joint = doc["skins"][0]["joints"][2]
    doc["nodes"][joint]["rotation"] = TURN
    posed = shown(doc, binary)[0, 0]
    weights = np.where(np.argsort(np.argsort(-rig.weights, axis=1), axis=1) < 4, rig.weights, 0)
    weights /= weights.sum(axis=1, keepdims=True)
    pivot = rig.joints[2]
    turned = (flat.vertices - pivot) @ np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]]) + pivot
    moved = weights[:, 2:].sum(axis=1)[:, None]  # the joint and all below it
    np.testing.assert_allclose(posed, (1 - moved) * flat.vertices + moved * turned, atol=1e-5)


def test_names_that_mean_nothing_give_way(tmp_path: Path, builder: Any) -> None:
    builder.node(root=True, name="bone_1", mesh=builder.mesh(box(builder)))
    builder.node(root=True, name="hip")
    gltf = read_gltf(builder.glb(tmp_path / "a.glb"))
    flat = flatten(gltf)
    rig = a_rig(flat, 3)
    doc = parse(add_skin(gltf, flat, rig).glb)[0]
    assert [node["name"] for node in doc["nodes"]] == ["bone_1", "hip", "bone_0", "bone_1.001", "bone_2"]
    named = Rig(rig.joints, rig.parents, rig.weights, ("hip", "knee", "bone_1"))
    doc = parse(add_skin(gltf, flat, named).glb)[0]
    assert [node["name"] for node in doc["nodes"]][2:] == ["hip", "knee", "bone_1"]


def test_animations_of_rigid_meshes_are_noted(tmp_path: Path, builder: Any) -> None:
    inner = builder.node(mesh=builder.mesh(box(builder)))
    top = builder.node(root=True, children=[inner])
    times = builder.accessor([0.0, 1.0])
    moves = builder.accessor([[0, 0, 0], [1, 0, 0.0]])
    builder.doc["animations"] = [
        {
            "samplers": [{"input": times, "output": moves}],
            "channels": [{"sampler": 0, "target": {"node": top, "path": "translation"}}],
        }
    ]
    written, _, _ = add(builder.glb(tmp_path / "a.glb"))
    assert written.notes == (
        "animations that move nodes no longer move 1 mesh: a skin moves a mesh by joints",
    )
    assert parse(written.glb)[0]["animations"] == builder.doc["animations"]


def test_a_rig_of_another_mesh_is_refused(tmp_path: Path, builder: Any) -> None:
    builder.node(root=True, mesh=builder.mesh(box(builder)))
    path = builder.glb(tmp_path / "a.glb")
    gltf = read_gltf(path)
    rig = Rig(np.zeros((1, 3)), np.array([-1]), np.ones((5, 1)))
    with pytest.raises(MeshError, match=rf"^{path}: 5 rows of weights for 8 vertices; pass one row"):
        add_skin(gltf, flatten(gltf), rig)
