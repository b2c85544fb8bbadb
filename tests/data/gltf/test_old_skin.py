"""Files that have a skin already: it is replaced, kept on request, or its joints get new weights."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import read_skinned_glb
from data.gltf.add_skin import add_skin
from data.gltf.document import read_gltf
from data.gltf.geometry import flatten
from data.rig import Rig
from tests.data.gltf.test_add_skin import BOX, TURN, a_rig, add, box, check
from tests.data.gltf.viewer import parse, read, shown

pytestmark = pytest.mark.usefixtures("silent")

# Node indices of `walker`.
ARMATURE, BODY, HIP, CHEST, HAND, SWORD, TIP, LAMP = range(8)


def walker(builder: Any) -> Any:
    """A skinned box on hip and chest, a hand joint with a sword mesh, an end without anything.

    The file shows another pose than the bind pose (the chest is turned), and the mesh node is stale.
    """
    skin = {
        "JOINTS_0": builder.accessor([[0, 1, 0, 0]] * 8, "uint8"),
        "WEIGHTS_0": builder.accessor([[0.5, 0.5, 0, 0]] * 4 + [[1.0, 0, 0, 0]] * 4),
    }
    body = builder.mesh(box(builder, attributes=skin))
    blade = builder.mesh(box(builder))
    builder.node(root=True, name="Armature", children=[BODY, HIP])
    builder.node(name="body", mesh=body, skin=0, translation=[50, 0, 0])
    builder.node(name="hip", translation=[0, -0.5, 0], children=[CHEST], extras={"ik": 1})
    builder.node(name="chest", translation=[0, 0.5, 0], rotation=TURN, children=[HAND, TIP])
    builder.node(name="hand", translation=[0.5, 0, 0], children=[SWORD])
    builder.node(name="sword", mesh=blade, translation=[1, 0, 0], scale=[2, 0.1, 0.1])
    builder.node(name="chest_end", translation=[0, 1, 0])
    builder.node(root=True, name="lamp", children=[])
    del builder.doc["nodes"][LAMP]["children"]
    bind = np.tile(np.eye(4), (3, 1, 1))
    bind[:, :3, 3] = [[0, 0.5, 0], [0, 0, 0], [-0.5, 0, 0]]
    builder.doc["skins"] = [
        {
            "name": "Bones",
            "joints": [HIP, CHEST, HAND],
            "skeleton": HIP,
            "inverseBindMatrices": builder.matrices(bind),
        }
    ]
    times, moves = builder.accessor([0.0, 1.0]), builder.accessor([[0, 0, 0], [1, 0, 0.0]])

    def animation(*nodes: int) -> dict[str, Any]:
        channels = [{"sampler": 0, "target": {"node": node, "path": "translation"}} for node in nodes]
        return {"samplers": [{"input": times, "output": moves}], "channels": channels}

    builder.doc["animations"] = [animation(HIP, TIP), animation(CHEST, LAMP), animation(LAMP)]
    return builder


def names(doc: dict[str, Any]) -> list[str]:
    return [node["name"] for node in doc["nodes"]]


def test_the_old_skin_is_replaced(tmp_path: Path, builder: Any) -> None:
    path = walker(builder).glb(tmp_path / "a.glb")
    doc = check(path, tmp_path)
    # The sword's skin places it: its node moves up to the armature, and nothing is left of the skeleton.
    kept = ["Armature", "body", "sword", "lamp"]
    assert names(doc) == [*kept, *(f"bone_{index}" for index in range(6))]
    assert doc["nodes"][0] == {"name": "Armature", "children": [1, 2]}
    assert {**doc["nodes"][2], "skin": 1} == {**builder.doc["nodes"][SWORD], "skin": 1}
    assert len(doc["skins"]) == 2, "body and sword lie in the world by different transforms"
    assert doc["skins"][0]["joints"] == doc["skins"][1]["joints"] == [*range(4, 10)]
    assert doc["nodes"][1] == {"name": "body", "mesh": 0, "translation": [50, 0, 0], "skin": 0}
    assert doc["scenes"] == [{"nodes": [ARMATURE, 3, 4]}]
    # Of the animations, only what moves the lamp is left.
    assert [[channel["target"]["node"] for channel in one["channels"]] for one in doc["animations"]] == [
        [3],
        [3],
    ]
    written, _, _ = add(path)
    assert written.replaced == (
        "the file's skin 'Bones' (3 joints), 1 animation and the joints' channels of 1 animation"
    )
    assert written.notes == ()


def test_a_skeleton_without_attachments_disappears(tmp_path: Path, builder: Any) -> None:
    walker(builder)
    del builder.doc["nodes"][HAND]["children"]
    builder.doc["nodes"][ARMATURE]["children"] = [HIP]
    builder.doc["scenes"][0]["nodes"] = [BODY, ARMATURE, LAMP]
    doc = check(builder.glb(tmp_path / "a.glb"), tmp_path)
    # Also the armature, which had nothing but joints below it; the sword, in no scene, keeps its node.
    assert names(doc) == ["body", "sword", "lamp", *(f"bone_{index}" for index in range(6))]
    assert doc["scenes"] == [{"nodes": [0, 2, 3]}]
    assert [one["channels"][0]["target"]["node"] for one in doc["animations"]] == [2, 2]


@pytest.mark.parametrize(
    ("node", "content"),
    [
        (HAND, {"camera": 0}),
        (TIP, {"extras": {"socket": "shield"}}),
        (CHEST, {"extensions": {"KHR_lights_punctual": {"light": 0}}}),
        (CHEST, {"scale": [-1, 1, 1]}),
    ],
)
def test_joints_that_carry_something_stay_as_plain_nodes(
    tmp_path: Path, builder: Any, node: int, content: dict
) -> None:
    doc = walker(builder).doc
    doc["cameras"] = [{"type": "perspective", "perspective": {"yfov": 0.7, "znear": 0.01}}]
    doc["extensionsUsed"] = ["KHR_lights_punctual"]
    doc["extensions"] = {"KHR_lights_punctual": {"lights": [{"type": "point"}]}}
    doc["nodes"][node] |= content
    after = check(builder.glb(tmp_path / "a.glb"), tmp_path)
    way = ["hip", "chest", *({HAND: ["hand"], TIP: ["chest_end"]}.get(node, []))]
    if "scale" in content:
        # Out of the mirrored chest, viewers would show the sword inside out: it stays where it is.
        way = ["hip", "chest", "hand"]
    assert [one for one in names(after) if one in ("hip", "chest", "hand", "chest_end")] == way
    assert all("bone" in after["nodes"][joint]["name"] for skin in after["skins"] for joint in skin["joints"])


def test_nodes_are_not_renumbered_under_an_unknown_extension(tmp_path: Path, builder: Any) -> None:
    walker(builder).doc["extensions"] = {"VRM": {"humanoid": {"humanBones": [{"node": CHEST}]}}}
    builder.doc["extensionsUsed"] = ["VRM"]
    path = builder.glb(tmp_path / "a.glb")
    doc = check(path, tmp_path)
    assert names(doc)[:8] == [node["name"] for node in builder.doc["nodes"]]
    assert doc["nodes"][ARMATURE]["children"] == [BODY, SWORD], "the skeleton is in no scene"
    assert doc["extensions"] == builder.doc["extensions"]
    (note,) = add(path)[0].notes
    assert note.startswith(
        "kept 4 nodes of the old skeleton in the list of nodes, outside every scene, because an extension"
    )


def test_the_old_skin_is_kept_on_request(tmp_path: Path, builder: Any) -> None:
    path = walker(builder).glb(tmp_path / "a.glb")
    before = copy.deepcopy(builder.doc)
    doc = check(path, tmp_path, keep_skin=True)
    assert doc["skins"][0] == before["skins"][0]
    assert doc["animations"] == before["animations"]
    for index, node in enumerate(before["nodes"]):
        assert {**doc["nodes"][index], "skin": 0} == {**node, "skin": 0}
    assert doc["nodes"][BODY]["skin"] == 1
    old, new = before["meshes"][0]["primitives"][0], doc["meshes"][0]["primitives"][0]
    assert new["attributes"]["_JOINTS_0"] == old["attributes"]["JOINTS_0"]
    assert new["attributes"]["_WEIGHTS_0"] == old["attributes"]["WEIGHTS_0"]
    assert new["attributes"]["JOINTS_0"] not in old["attributes"].values()
    assert add(path, keep_skin=True)[0].replaced is None


def test_own_joints_get_new_weights_only(tmp_path: Path, builder: Any) -> None:
    """Joints, names, hierarchy and animations stay; the file shows its pose of the same bind pose."""
    path = walker(builder).glb(tmp_path / "a.glb")
    gltf = read_gltf(path)
    flat = flatten(gltf)
    assert flat.joints is not None
    assert flat.parents is not None
    assert flat.joint_nodes is not None
    assert flat.bind is not None
    assert flat.names == ("hip", "chest", "hand")
    weights = a_rig(flat, 3).weights
    rig = Rig(flat.joints.astype(np.float32), flat.parents, weights, flat.names)
    written = add_skin(gltf, flat, rig, False, flat.joint_nodes.tolist(), flat.bind)
    doc, binary = parse(written.glb)
    assert doc["animations"] == builder.doc["animations"]
    for node, old in zip(doc["nodes"], builder.doc["nodes"], strict=True):
        assert {**node, "skin": 0} == {**old, "skin": 0}
    assert [skin["joints"] for skin in doc["skins"]] == [[HIP, CHEST, HAND]] * 2
    back = tmp_path / "back.glb"
    back.write_bytes(written.glb)
    mesh, found = read_skinned_glb(back)
    assert found.names == rig.names
    np.testing.assert_allclose(found.joints / mesh.scale + mesh.centre, flat.joints, atol=1e-5)
    np.testing.assert_allclose(found.weights, weights / weights.sum(axis=1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(mesh.vertices / mesh.scale + mesh.centre, flat.vertices, atol=1e-5)
    # In the file's pose the chest and what hangs on it are turned by 90 degrees about the chest, the origin.
    posed = shown(doc, binary)[BODY, 0]
    expected = flat.vertices[:8]
    turned = expected @ np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    still = (weights / weights.sum(axis=1, keepdims=True))[:8, :1]
    np.testing.assert_allclose(posed, still * expected + (1 - still) * turned, atol=1e-5)


def test_a_skin_without_a_bind_pose_is_written_where_it_was_shown(tmp_path: Path, builder: Any) -> None:
    """Vertices posed one by one get new positions; normals, tangents and morphs turn with them."""
    attributes = {
        "JOINTS_0": builder.accessor([[0, 0, 0, 0]] * 4 + [[1, 0, 0, 0]] * 4, "uint8"),
        "WEIGHTS_0": builder.accessor([[1.0, 0, 0, 0]] * 8),
        "NORMAL": builder.accessor(np.tile([1.0, 0, 0], (8, 1))),
        "TANGENT": builder.accessor(np.tile([0, 0, 1.0, -1], (8, 1))),
        "TEXCOORD_0": builder.accessor(BOX.vertices[:, :2]),
    }
    targets = [{"POSITION": builder.accessor(np.tile([1.0, 0, 0], (8, 1)))}]
    mesh = builder.mesh(box(builder, attributes=attributes, targets=targets))
    builder.doc["meshes"][mesh]["weights"] = [0.25]
    builder.node(root=True, mesh=mesh, skin=0)
    builder.node(root=True, name="a", children=[2], translation=[0, 0, 5])
    builder.node(name="b", rotation=TURN, scale=[2, 1, 1])
    builder.doc["skins"] = [{"joints": [1, 2]}]
    doc = check(builder.glb(tmp_path / "a.glb"), tmp_path)
    binary = parse((tmp_path / "back.glb").read_bytes())[1]
    attributes, old = (one["meshes"][0]["primitives"][0]["attributes"] for one in (doc, builder.doc))
    assert attributes["TEXCOORD_0"] == old["TEXCOORD_0"]
    # x is doubled and turned to y for the vertices of b.
    np.testing.assert_allclose(
        read(doc, binary, attributes["NORMAL"])[3:5], [[1, 0, 0], [0, 1, 0]], atol=1e-6
    )
    np.testing.assert_allclose(read(doc, binary, attributes["TANGENT"])[4], [0, 0, 1, -1], atol=1e-6)
    morph = doc["meshes"][0]["primitives"][0]["targets"][0]["POSITION"]
    np.testing.assert_allclose(read(doc, binary, morph)[3:5], [[1, 0, 0], [0, 2, 0]], atol=1e-6)


def test_damaged_skins_are_replaced_too(tmp_path: Path, builder: Any) -> None:
    walker(builder).doc["skins"][0]["joints"] = [HIP, 99]
    doc = check(builder.glb(tmp_path / "a.glb"), tmp_path)
    assert len(doc["skins"]) == 2
    builder.doc["nodes"][BODY]["skin"] = 7
    del builder.doc["buffers"][0]["byteLength"]
    doc = check(builder.glb(tmp_path / "b.glb"), tmp_path)
    assert "JOINTS_0" in doc["meshes"][0]["primitives"][0]["attributes"]


def test_another_scene_keeps_its_skin(tmp_path: Path, builder: Any) -> None:
    """A second node outside the default scene uses the same skin: skin, joints and mesh stay for it."""
    walker(builder)
    twin = builder.node(name="twin", mesh=0, skin=0)
    builder.doc["scenes"].append({"nodes": [ARMATURE, twin]})
    before = copy.deepcopy(builder.doc)
    doc = check(builder.glb(tmp_path / "a.glb"), tmp_path)
    assert doc["skins"][0] == before["skins"][0]
    assert doc["meshes"][0] == before["meshes"][0]
    assert doc["nodes"][twin] == before["nodes"][twin]
    assert doc["nodes"][BODY]["mesh"] != 0
    assert doc["animations"] == before["animations"]
