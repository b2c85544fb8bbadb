"""Geometry of glTF scenes: node transforms, strips and fans, bind poses, joint order and weights of skins."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from data import MeshError, Refusal, Rig, load_asset, load_mesh, read_rigs, read_skinned_glb
from tests.data.mesh_files import TRIANGLE

pytestmark = pytest.mark.usefixtures("silent")


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


def test_gltf_indices_and_positions_are_checked(tmp_path: Path, builder: Any) -> None:
    attributes = {"POSITION": builder.accessor(TRIANGLE)}
    indices = builder.accessor([0, 1, 3], "uint16")
    builder.node(root=True, mesh=builder.mesh({"attributes": attributes, "indices": indices}))
    with pytest.raises(MeshError, match="refers to vertex 3, but has only 3"):
        load_mesh(builder.glb(tmp_path / "range.glb"))
    builder.doc["accessors"][indices]["bufferView"] = builder.view(np.array([0, 1, 2], "u2").tobytes())
    builder.doc["accessors"][0]["bufferView"] = builder.view(np.full((3, 3), np.nan, "f4").tobytes())
    del builder.doc["buffers"][0]["byteLength"]
    with pytest.raises(MeshError, match="non-finite positions"):
        load_mesh(builder.glb(tmp_path / "nan.glb"))


# A strip of two triangles along x; joints at x = 0 and x = 1 in bind pose.
POINTS = np.array([[0.0, 0, 0], [0, 1, 0], [2, 0, 0], [2, 1, 0]])


FACES = np.array([[0, 2, 1], [1, 2, 3]])


SLOTS = np.array([[0, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]])


WEIGHTS = np.array([[0.75, 0.25, 0, 0], [0.5, 0.5, 0, 0], [1, 0, 0, 0], [0.5, 0, 0, 0]])


DENSE = np.array([[0.75, 0.25], [0.5, 0.5], [0, 1], [0, 0.5]])


def shift(*offset: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = offset
    return matrix


def moved(*offset: float) -> np.ndarray:
    return POINTS + np.array(offset)


def primitive(
    builder: Any, points: Any = POINTS, slots: Any = SLOTS, weights: Any = WEIGHTS, **extra: Any
) -> dict:
    return {
        "attributes": {
            "POSITION": builder.accessor(points),
            "JOINTS_0": builder.accessor(slots, "uint8"),
            "WEIGHTS_0": builder.accessor(weights),
            **extra,
        },
        "indices": builder.accessor(FACES.reshape(-1), "uint16"),
    }


def two_bones(builder: Any, **mesh_node: Any) -> Any:
    """Mesh node 0, root joint 1 ("hip"), its child 2 ("knee"); nodes in bind pose."""
    mesh = builder.mesh(primitive(builder))
    builder.node(root=True, mesh=mesh, skin=0, **mesh_node)
    builder.node(root=True, name="hip", children=[2])
    builder.node(name="knee", translation=[1, 0, 0])
    bind = builder.matrices([np.eye(4), shift(-1, 0, 0)])
    builder.doc["skins"] = [{"joints": [1, 2], "inverseBindMatrices": bind}]
    return builder


def original(mesh: Any, points: np.ndarray) -> np.ndarray:
    return points / mesh.scale + mesh.centre


def check_strip(path: Path) -> tuple[Any, Rig]:
    mesh, rig = read_skinned_glb(path)
    np.testing.assert_allclose(original(mesh, mesh.vertices), POINTS, atol=1e-6)
    np.testing.assert_array_equal(mesh.faces, FACES)
    np.testing.assert_allclose(original(mesh, rig.joints), [[0, 0, 0], [1, 0, 0]], atol=1e-6)
    assert rig.parents.tolist() == [-1, 0]
    np.testing.assert_allclose(rig.weights, DENSE, atol=1e-6)
    np.testing.assert_array_equal(load_mesh(path).vertices, mesh.vertices)
    return mesh, rig


def test_two_bones(tmp_path: Path, builder: Any) -> None:
    mesh, rig = check_strip(two_bones(builder).glb(tmp_path / "strip.glb"))
    assert rig.names == ("hip", "knee")
    assert mesh.name == "strip"
    # The box is 2 x 1 x 0 around (1, 0.5, 0): scale 1, so the joints lie at x = -1 and 0.
    np.testing.assert_allclose(rig.joints, [[-1, -0.5, 0], [0, -0.5, 0]], atol=1e-6)
    # As .gltf with a data URI.
    check_strip(builder.gltf(tmp_path / "strip.gltf"))


def test_bind_pose_is_read_regardless_of_the_node_pose(tmp_path: Path, builder: Any) -> None:
    """A knee bent by 90 degrees leaves the bind pose as it is; a moved hip, the root, moves all of it."""
    two_bones(builder).doc["nodes"][2]["rotation"] = [0, 0, np.sqrt(0.5), np.sqrt(0.5)]
    check_strip(builder.glb(tmp_path / "bent.glb"))
    builder.doc["nodes"][1]["translation"] = [0, 7, 0]
    mesh, rig = read_skinned_glb(builder.glb(tmp_path / "moved.glb"))
    np.testing.assert_allclose(original(mesh, mesh.vertices), moved(0, 7, 0), atol=1e-6)
    np.testing.assert_allclose(original(mesh, rig.joints), [[0, 7, 0], [1, 7, 0]], atol=1e-6)


def test_the_nodes_above_the_joints_turn_the_bind_pose_upright(tmp_path: Path, builder: Any) -> None:
    """A z-up file: mesh and root are below a node that rotates z up to y up, (x, y, z) -> (x, z, -y)."""
    two_bones(builder)
    upright = [1, 0, 0, 0, 0, 0, -1, 0, 0, 1, 0, 0, 0, 0, 0, 1]
    builder.node(root=True, matrix=upright, children=[0, 1])
    builder.doc["scenes"][0]["nodes"] = [3]
    mesh, rig = read_skinned_glb(builder.glb(tmp_path / "zup.glb"))
    expected = np.stack([POINTS[:, 0], POINTS[:, 2], -POINTS[:, 1]], axis=1)
    np.testing.assert_allclose(original(mesh, mesh.vertices), expected, atol=1e-6)
    np.testing.assert_allclose(original(mesh, rig.joints), [[0, 0, 0], [1, 0, 0]], atol=1e-6)


def test_a_stale_mesh_node_transform_is_ignored(tmp_path: Path, builder: Any) -> None:
    """Viewers ignore the skinned node's transform; one that is 180 degrees off is ignored."""
    two_bones(builder, rotation=[1, 0, 0, 0])
    check_strip(builder.glb(tmp_path / "stale.glb"))


@pytest.mark.parametrize("joint_type", ["uint8", "uint16"])
@pytest.mark.parametrize(("weight_type", "full"), [("uint8", 255), ("uint16", 65535)])
@pytest.mark.parametrize("flag", [True, False])
def test_integer_weights(
    tmp_path: Path, builder: Any, joint_type: str, weight_type: str, full: int, flag: bool
) -> None:
    two_bones(builder)
    attributes = builder.doc["meshes"][0]["primitives"][0]["attributes"]
    attributes["JOINTS_0"] = builder.accessor(SLOTS, joint_type)
    # 0.2 and 0.8 are exact in 255ths and 65535ths.
    weights = np.array([[0.2, 0.8, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0.6, 0.4, 0, 0]])
    extra = {"normalized": True} if flag else {}
    attributes["WEIGHTS_0"] = builder.accessor(np.rint(weights * full), weight_type, **extra)
    _, rig = read_skinned_glb(builder.glb(tmp_path / "int.glb"))
    np.testing.assert_allclose(rig.weights, [[0.2, 0.8], [1, 0], [1, 0], [0.4, 0.6]], atol=1e-6)


def test_more_than_four_influences_and_repeated_joints_add_up(tmp_path: Path, builder: Any) -> None:
    mesh = builder.mesh(
        primitive(
            builder,
            slots=[[0, 1, 2, 3]] * 4,
            weights=[[0.1, 0.2, 0.1, 0.1]] * 4,
            JOINTS_1=builder.accessor([[4, 5, 0, 99]] * 4, "uint16"),
            WEIGHTS_1=builder.accessor([[0.25, 0.15, 0.1, 0]] * 4),
        )
    )
    builder.node(root=True, mesh=mesh, skin=0)
    for index in range(6):
        builder.node(root=index == 0, children=[index + 2] if index < 5 else [])
    bind = builder.matrices([np.eye(4)] * 6)
    builder.doc["skins"] = [{"joints": [1, 2, 3, 4, 5, 6], "inverseBindMatrices": bind}]
    _, rig = read_skinned_glb(builder.glb(tmp_path / "eight.glb"))
    np.testing.assert_allclose(rig.weights[0], [0.2, 0.2, 0.1, 0.1, 0.25, 0.15], atol=1e-6)
    assert rig.names == tuple(f"node{index}" for index in range(1, 7))


def test_joint_order_roots_and_nodes_in_between(tmp_path: Path, builder: Any) -> None:
    """Skin order child, root, second root; an ordinary node between the root and its child."""
    mesh = builder.mesh(primitive(builder))
    builder.node(root=True, mesh=mesh, skin=0)
    builder.node(root=True, name="root", children=[2])
    builder.node(name="between", children=[3])
    builder.node(name="child")
    builder.node(root=True, name="root")
    bind = builder.matrices([shift(-1, 0, 0), np.eye(4), shift(0, -5, 0)])
    builder.doc["skins"] = [{"joints": [3, 1, 4], "inverseBindMatrices": bind}]
    mesh, rig = read_skinned_glb(builder.glb(tmp_path / "order.glb"))
    assert rig.names == ("root", "child", "root.001")
    assert rig.parents.tolist() == [-1, 0, 0]
    np.testing.assert_allclose(original(mesh, rig.joints), [[0, 0, 0], [1, 0, 0], [0, 5, 0]], atol=1e-5)
    # Slot 0 is the child, slot 1 the root.
    np.testing.assert_allclose(rig.weights[:, :2], DENSE[:, ::-1], atol=1e-6)


def test_the_root_with_most_descendants_becomes_the_root(tmp_path: Path, builder: Any) -> None:
    mesh = builder.mesh(primitive(builder))
    builder.node(root=True, mesh=mesh, skin=0)
    builder.node(root=True, name="target")
    builder.node(root=True, name="hips", children=[3])
    builder.node(name="spine")
    builder.doc["skins"] = [{"joints": [1, 2, 3], "inverseBindMatrices": builder.matrices([np.eye(4)] * 3)}]
    _, rig = read_skinned_glb(builder.glb(tmp_path / "roots.glb"))
    assert rig.names == ("hips", "target", "spine")
    assert rig.parents.tolist() == [-1, 0, 0]


def test_missing_inverse_bind_matrices_mean_the_node_pose(tmp_path: Path, builder: Any) -> None:
    """Without them a vertex lies in its joints' own frames: the knee's vertices move by (1, 0, 0)."""
    del two_bones(builder).doc["skins"][0]["inverseBindMatrices"]
    mesh, rig = read_skinned_glb(builder.glb(tmp_path / "none.glb"))
    posed = POINTS + np.array([[0.25, 0, 0], [0.5, 0, 0], [1, 0, 0], [1, 0, 0]])
    np.testing.assert_allclose(original(mesh, mesh.vertices), posed, atol=1e-6)
    np.testing.assert_allclose(original(mesh, rig.joints), [[0, 0, 0], [1, 0, 0]], atol=1e-6)


def test_several_meshes_share_a_skin_and_props_are_attached_to_joints(tmp_path: Path, builder: Any) -> None:
    """A second skinned mesh, a hat on the knee (which the node pose moves), a stage attached to no joint."""
    two_bones(builder).doc["nodes"][2]["translation"] = [1, 3, 0]
    second = builder.mesh(primitive(builder, points=moved(0, 0, 5)))
    builder.node(root=True, mesh=second, skin=0)
    hat = builder.mesh({"attributes": {"POSITION": builder.accessor(POINTS[:3])}})
    builder.node(mesh=hat, translation=[0, 0, 1])
    builder.doc["nodes"][2]["children"] = [4]
    stage = builder.mesh({"attributes": {"POSITION": builder.accessor(POINTS[:3] * 100)}})
    builder.node(root=True, mesh=stage)
    mesh, rig = read_skinned_glb(builder.glb(tmp_path / "all.glb"))
    # The hat in bind pose: knee at (1, 0, 0) plus its own (0, 0, 1).
    expected = np.concatenate([POINTS, moved(0, 0, 5), moved(1, 0, 1)[:3]])
    np.testing.assert_allclose(original(mesh, mesh.vertices), expected, atol=1e-5)
    np.testing.assert_allclose(rig.weights, np.concatenate([DENSE, DENSE, [[0, 1]] * 3]), atol=1e-6)


def test_two_skins_over_one_skeleton(tmp_path: Path, builder: Any) -> None:
    """The second skin's mesh space is shifted by (0, 0, 4); the shared knee ties the two together."""
    two_bones(builder)
    second = builder.mesh(primitive(builder, slots=SLOTS * 0, points=moved(0, 0, 4)))
    builder.node(root=True, mesh=second, skin=1)
    bind = builder.matrices([shift(-1, 0, -4)])
    builder.doc["skins"].append({"joints": [2], "inverseBindMatrices": bind})
    mesh, rig = read_skinned_glb(builder.glb(tmp_path / "skins.glb"))
    np.testing.assert_allclose(original(mesh, mesh.vertices), np.concatenate([POINTS, POINTS]), atol=1e-5)
    np.testing.assert_allclose(rig.weights[4:], [[0, 1], [0, 1], [0, 1], [0, 0.5]], atol=1e-6)
    assert rig.names == ("hip", "knee")


def test_unreferenced_vertices_are_dropped_with_their_weights(tmp_path: Path, builder: Any) -> None:
    two_bones(builder)
    part = builder.doc["meshes"][0]["primitives"][0]
    part["indices"] = builder.accessor([1, 2, 3], "uint16")
    _, rig = read_skinned_glb(builder.glb(tmp_path / "part.glb"))
    np.testing.assert_allclose(rig.weights, DENSE[1:], atol=1e-6)


def bad_weights(value: float) -> Any:
    def act(builder: Any) -> None:
        weights = WEIGHTS.copy()
        weights[2, 0] = value
        builder.doc["meshes"][0]["primitives"][0]["attributes"]["WEIGHTS_0"] = builder.accessor(weights)

    return act


def bad_matrix(matrix: np.ndarray) -> Any:
    def act(builder: Any) -> None:
        builder.doc["skins"][0]["inverseBindMatrices"] = builder.matrices([np.eye(4), matrix])

    return act


def all_matrices(matrix: np.ndarray) -> Any:
    def act(builder: Any) -> None:
        builder.doc["skins"][0]["inverseBindMatrices"] = builder.matrices([matrix, matrix])

    return act


def attribute(name: str, make: Any) -> Any:
    def act(builder: Any) -> None:
        attributes = builder.doc["meshes"][0]["primitives"][0]["attributes"]
        attributes.pop(name)
        if make:
            attributes[name] = make(builder)

    return act


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (bad_weights(np.nan), "some skinning weights are NaN"),
        (bad_weights(np.inf), "some skinning weights are NaN or infinite"),
        (bad_weights(-0.5), "some skinning weights are negative"),
        (lambda b: b.doc["skins"][0].update(joints=[]), "has no joints"),
        (lambda b: b.doc["skins"][0].update(joints=[1, 77]), r"refers to nodes\[77\], but has only 3 nodes"),
        (lambda b: b.doc["skins"][0].pop("joints"), "malformed"),
        (lambda b: b.doc["skins"].clear(), r"skins\[0\], but has only 0 skins"),
        (attribute("WEIGHTS_0", None), "only one of JOINTS_0 and WEIGHTS_0"),
        (
            attribute("JOINTS_0", lambda b: b.accessor(SLOTS + 5, "uint8")),
            "bound to joint 6 of a skin that has only 2",
        ),
        (attribute("JOINTS_0", lambda b: b.accessor(SLOTS[:3], "uint8")), "wrong shape"),
        (attribute("JOINTS_0", lambda b: b.accessor(SLOTS, "float32")), "wrong shape or type"),
        (all_matrices(np.zeros((4, 4))), r"skins\[0\] has no invertible inverse bind matrix"),
        (all_matrices(np.full((4, 4), np.nan)), r"skins\[0\] has no invertible inverse bind matrix"),
        (lambda b: b.doc["nodes"][2].update(translation=[0, "up", 0]), r"nodes\[2\] cannot be read"),
        (lambda b: b.doc["nodes"][1].update(scale=[1, np.nan, 1]), r"nodes\[1\] is not finite"),
    ],
)
def test_damaged_skins_are_refused(tmp_path: Path, builder: Any, act: Any, reason: str) -> None:
    act(two_bones(builder))
    path = builder.glb(tmp_path / "bad.glb")
    with pytest.raises(MeshError, match=reason) as caught:
        read_skinned_glb(path)
    assert str(caught.value).startswith(f"{path}: ")
    # The geometry is still there, where its node puts it, and says why it has no rig.
    asset = load_asset(path)
    np.testing.assert_allclose(original(asset.mesh, asset.mesh.vertices), POINTS, atol=1e-6)
    np.testing.assert_array_equal(load_mesh(path).vertices, asset.mesh.vertices)
    assert asset.rig is None
    (note,) = asset.notes
    assert note.startswith("read the geometry only, the skin cannot be read: ")
    assert re.search(reason, note)
    (refused,) = read_rigs(path)
    assert isinstance(refused, Refusal)
    assert re.search(reason, refused.reason)


@pytest.mark.parametrize("matrix", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.diag([1.0, 0, 1, 1]), None])
def test_a_useless_matrix_of_a_used_joint(tmp_path: Path, builder: Any, matrix: np.ndarray | None) -> None:
    """The knee keeps its place below the hip; the vertices follow the joints whose matrices are usable."""
    two_bones(builder).doc["nodes"][1]["translation"] = [0, 7, 0]
    # A third joint, so that the hip's matrix is not taken for "all identity".
    builder.doc["nodes"][1]["children"] = [2, 3]
    builder.node(name="hand", translation=[0, 2, 0])
    builder.doc["skins"][0]["joints"] = [1, 2, 3] if matrix is not None else [1, 3, 2]
    third = shift(0, -2, 0)
    rows = [np.eye(4), matrix, third] if matrix is not None else [np.eye(4), third]
    builder.doc["skins"][0]["inverseBindMatrices"] = builder.matrices(rows)
    knee, hand = (1, 2) if matrix is not None else (2, 1)
    attributes = builder.doc["meshes"][0]["primitives"][0]["attributes"]
    attributes["JOINTS_0"] = builder.accessor([[0, knee, hand, 0]] * 4, "uint8")
    attributes["WEIGHTS_0"] = builder.accessor([[0.5, 0.25, 0.25, 0]] * 4)
    asset = load_asset(builder.glb(tmp_path / "useless.glb"))
    assert asset.rig is not None
    np.testing.assert_allclose(original(asset.mesh, asset.mesh.vertices), moved(0, 7, 0), atol=1e-6)
    places = dict(zip(asset.rig.names, original(asset.mesh, asset.rig.joints).tolist(), strict=True))
    np.testing.assert_allclose(places["hip"], [0, 7, 0], atol=1e-6)
    np.testing.assert_allclose(places["knee"], [1, 7, 0], atol=1e-6)
    np.testing.assert_allclose(places["hand"], [0, 9, 0], atol=1e-6)
    assert asset.notes == (
        "placed 1 joint without a usable inverse bind matrix by the neighbouring joints: knee",
    )
