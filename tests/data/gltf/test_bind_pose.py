"""The bind pose: where skinned vertices and joints stand, whatever exporters leave in the file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import load_asset, load_mesh
from data.gltf.document import read_gltf
from data.gltf.geometry import flatten
from tests.data.gltf.columns import Column, read, rings, translated, turn, world_places

CASES = Path(__file__).parent / "cases"
EXPECTED: dict[str, Any] = json.loads((CASES / "expected.json").read_text())

angles = st.floats(-3, 3)
numbers = st.floats(-20, 20)
axes = st.tuples(*[st.floats(0.1, 1)] * 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("columns")


@pytest.mark.parametrize("name", EXPECTED)
def test_cases(name: str) -> None:
    """Small files after public bug reports; the expected values are in the file's own units."""
    expected = EXPECTED[name]
    mesh = load_mesh(CASES / name)
    assert len(mesh.vertices) == expected.get("vertices", len(mesh.vertices))
    np.testing.assert_allclose(np.ptp(mesh.vertices, axis=0) / mesh.scale, expected["extent"], atol=1e-5)
    if "rig" not in expected["reads"]:
        return
    asset = load_asset(CASES / name)
    assert asset.rig is not None
    vertices, joints = world_places(asset.mesh, asset.rig)
    np.testing.assert_allclose(np.ptp(vertices, axis=0), expected["extent"], atol=1e-5)
    for joint, place in expected.get("joints", {}).items():
        np.testing.assert_allclose(joints[joint] - vertices.min(axis=0), place, atol=1e-5)
    assert len(set(asset.rig.names)) == expected.get("names", len(asset.rig.names))


@pytest.mark.parametrize("name", EXPECTED)
def test_parts_lead_back_to_the_document(name: str) -> None:
    gltf = read_gltf(CASES / name)
    flat = flatten(gltf)
    start = 0
    for part in flat.parts:
        entry = gltf.json["meshes"][part.mesh]["primitives"][part.primitive]
        assert gltf.json["nodes"][part.node]["mesh"] == part.mesh
        stored = gltf.accessor(entry["attributes"]["POSITION"])[part.vertices].astype(float)
        found = flat.vertices[start : start + len(stored)]
        start += len(stored)
        if part.to_world is None:
            assert name.startswith("all_identity")
            continue
        np.testing.assert_allclose(stored @ part.to_world[:3, :3].T + part.to_world[:3, 3], found, atol=1e-6)
    assert start == len(flat.vertices)
    if flat.joints is not None and flat.bind is not None and flat.joint_nodes is not None:
        np.testing.assert_array_equal(flat.bind[:, :3, 3], flat.joints)
        names = [gltf.json["nodes"][node]["name"] for node in flat.joint_nodes]
        assert flat.names is not None
        assert [found[: len(given)] for found, given in zip(flat.names, names, strict=True)] == names


@settings(max_examples=30, deadline=None)
@given(axes, angles, st.tuples(numbers, numbers, numbers), st.sampled_from([0.001, 0.5, 3, 100]))
def test_the_mesh_nodes_transform_plays_no_part(
    folder: Path, axis: Any, angle: float, offset: Any, scale: float
) -> None:
    plain = read(Column().finish(folder / "plain.glb"))
    stale = Column(rotation=turn(axis, angle), translation=list(offset), scale=[scale, -scale, scale])
    found = read(stale.finish(folder / "stale.glb"))
    np.testing.assert_allclose(found[0], plain[0], atol=1e-6)
    for name, place in plain[1].items():
        np.testing.assert_allclose(found[1][name], place, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(2, 6),
    axes,
    angles,
    st.sampled_from([0.01, 1, 100]),
    st.data(),
    st.sampled_from(["identity", "zero", "nan", "flat", "far", "missing"]),
)
def test_an_unused_joint_stands_where_its_node_does_and_changes_nothing_else(
    folder: Path, count: int, axis: Any, angle: float, scale: float, data: Any, kind: str
) -> None:
    """Any length, orientation and unit; the joint is a leaf, in the middle of the list or first in it."""
    matrix = {
        "identity": np.eye(4),
        "zero": np.zeros((4, 4)),
        "nan": np.full((4, 4), np.nan),
        "flat": np.diag([1.0, 1, 0, 1]),
        "far": translated(300, 0, 0),
        "missing": np.eye(4),
    }[kind]
    parent = data.draw(st.integers(1, count))
    place = None if kind == "missing" else data.draw(st.integers(0, count))
    plain = read(Column(count, turn(axis, angle), scale).finish(folder / "plain.glb"))
    column = Column(count, turn(axis, angle), scale)
    column.add_joint(parent, (1, 0.25, 0), matrix, place)
    found = read(column.finish(folder / "extra.glb", count if kind == "missing" else None))
    size = np.ptp(plain[0], axis=0).max()
    np.testing.assert_allclose(found[0], plain[0], atol=1e-5 * size)
    for name, where in plain[1].items():
        np.testing.assert_allclose(found[1][name], where, atol=1e-5 * size)
    # Joint k at height k is node 1 + k.
    x, y, z, w = turn(axis, angle)
    local = np.array([1, parent - 1 + 0.25, 0])
    turned = local + 2 * np.cross([x, y, z], np.cross([x, y, z], local) + w * local)
    np.testing.assert_allclose(found[1][f"extra{count}"], turned * scale, atol=1e-5 * size)
    assert found[2] == (
        f"placed 1 joint without a usable inverse bind matrix by the neighbouring joints: extra{count}",
    )


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(5)), st.lists(angles, min_size=4, max_size=4))
def test_the_order_of_the_skins_joints_does_not_matter(folder: Path, order: Any, bends: Any) -> None:
    def bent() -> Column:
        column = Column(5)
        for joint, angle in enumerate(bends, 2):
            column.builder.doc["nodes"][joint]["rotation"] = turn((0, 0, 1), angle)
        return column

    plain = read(bent().finish(folder / "plain.glb"))
    shuffled = bent()
    shuffled.permute(list(order))
    found = read(shuffled.finish(folder / "shuffled.glb"))
    np.testing.assert_allclose(found[0], plain[0], atol=1e-6)
    assert found[1].keys() == plain[1].keys()
    for name, place in plain[1].items():
        np.testing.assert_allclose(found[1][name], place, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(axes, angles), min_size=3, max_size=3), axes, angles)
def test_a_posed_file_is_read_in_bind_pose_at_its_root(
    folder: Path, bends: Any, axis: Any, angle: float
) -> None:
    """Whatever the joints below the root do; the root's own turn places all of it."""
    column = Column(spin=turn(axis, angle))
    for joint, (about, bend) in enumerate(bends, 2):
        column.builder.doc["nodes"][joint]["rotation"] = turn(about, bend)
    found = read(column.finish(folder / "posed.glb"))
    rest = read(Column(spin=turn(axis, angle)).finish(folder / "rest.glb"))
    np.testing.assert_allclose(found[0], rest[0], atol=1e-5)
    for name, place in rest[1].items():
        np.testing.assert_allclose(found[1][name], place, atol=1e-5)


def test_a_resting_root_without_vertices_places_a_posed_file(tmp_path: Path) -> None:
    """Its children, which have the vertices, are all posed; it stands at the origin or beside it."""
    for matrix, place in ((np.eye(4), [0, 0, 0]), (translated(0, 0.5, 0), [0, -0.5, 0])):
        column = Column()
        # Node 1, j0, becomes a root without vertices; a new node carries ring 0.
        column.add_joint(0, place, matrix, 0)
        root = column.joints[0]
        nodes = column.builder.doc["nodes"]
        nodes[0]["children"] = [root]
        nodes[root]["children"] = [1]
        nodes[1]["translation"] = [-one for one in place]
        for joint in (1, 2, 3):
            nodes[joint]["rotation"] = turn((1, 0, 0), 0.2 * joint)
        vertices, joints, notes = read(column.finish(tmp_path / "root.glb"))
        np.testing.assert_allclose(vertices, column.points, atol=1e-6)
        np.testing.assert_allclose(joints["extra4"], place, atol=1e-6)
        np.testing.assert_allclose(joints["j3"], [0, 3, 0], atol=1e-6)
        assert notes == ()


def eyes(builder: Column, inverse: list[np.ndarray], joints: list[int]) -> None:
    """A second mesh with its own skin: two rings above the column, on the last joint of `joints`."""
    points, faces = rings(2, first=builder.count)
    build = builder.builder
    build.doc["meshes"].insert(0, {"primitives": [builder.primitive()]})
    builder.skin(builder.joints[:-1], builder.inverse[:-1])
    second = builder.skin(joints, inverse)
    slots = np.full((8, 4), len(joints) - 1) * [1, 0, 0, 0]
    mesh = build.mesh(builder.primitive(points, faces, slots, np.tile([1.0, 0, 0, 0], (8, 1))))
    build.node(root=True, mesh=mesh, skin=second, name="eyes")


@pytest.mark.parametrize("listing", ["only its own joint", "all joints", "identity for the others"])
def test_a_second_mesh_stays_on_a_posed_body(tmp_path: Path, listing: str) -> None:
    """The eyes use a joint that the body does not; the body is bent, the eyes' joint is not."""
    column = Column()
    column.add_joint(4, (0, 1, 0), translated(0, -4, 0))
    for joint in (2, 3, 4):
        column.builder.doc["nodes"][joint]["rotation"] = turn((1, 0, 1), 0.4)
    own = [np.eye(4)] * 4 if listing == "identity for the others" else column.inverse[:-1]
    if listing == "only its own joint":
        eyes(column, column.inverse[-1:], column.joints[-1:])
    else:
        eyes(column, [*own, column.inverse[-1]], column.joints)
    vertices, joints, notes = read(column.finish(tmp_path / "eyes.glb"))
    np.testing.assert_allclose(vertices, np.concatenate([column.points, rings(2, first=4)[0]]), atol=1e-5)
    np.testing.assert_allclose(joints["extra4"], [0, 4, 0], atol=1e-5)
    assert notes == ()


def test_skins_bound_in_different_poses_are_brought_together(tmp_path: Path) -> None:
    """A coat bound when joint 2 was turned by 90 degrees: in the body's bind pose it hangs straight."""
    column = Column()
    column.builder.doc["meshes"].insert(0, {"primitives": [column.primitive()]})
    body = column.skin(column.joints, column.inverse)
    assert body == 0
    # Mesh space of the coat: joint 1 as in the body, joint 2 at (0, 2, 0) turned about z by 90 degrees.
    bent = translated(0, 2, 0) @ np.array([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    coat = column.skin(column.joints[:3], [*column.inverse[:2], np.linalg.inv(bent)])
    straight, faces = rings(2, first=1.5)
    upper = np.concatenate([straight[4:], np.ones((4, 1))], axis=1) @ translated(0, -2, 0).T @ bent.T
    stored = np.concatenate([straight[:4], upper[:, :3]])
    slots = np.repeat([1, 2], 4)[:, None] * [1, 0, 0, 0]
    mesh = column.builder.mesh(column.primitive(stored, faces, slots, np.tile([1.0, 0, 0, 0], (8, 1))))
    column.builder.node(root=True, mesh=mesh, skin=coat, name="coat")
    path = column.finish(tmp_path / "coat.glb")
    vertices, _, notes = read(path)
    np.testing.assert_allclose(vertices, np.concatenate([column.points, straight]), atol=1e-5)
    assert notes == ("brought 1 skin, bound in another pose, into the pose of the rest",)
    assert [part.to_world is None for part in flatten(read_gltf(path)).parts] == [False, True]


def test_matrices_of_which_only_some_are_the_identity_count_if_used(tmp_path: Path) -> None:
    """The root is at the origin of mesh space: its identity is its bind pose."""
    column = Column()
    np.testing.assert_array_equal(column.inverse[0], np.eye(4))
    column.builder.doc["nodes"][0]["translation"] = [5, 0, 0]
    vertices, joints, notes = read(column.finish(tmp_path / "root.glb"))
    np.testing.assert_allclose(vertices, column.points + np.array([5, 0, 0]), atol=1e-6)
    np.testing.assert_allclose(joints["j0"], [5, 0, 0], atol=1e-6)
    assert notes == ()


def test_a_root_scaled_to_zero_hides_the_mesh_but_not_its_bind_pose(tmp_path: Path) -> None:
    """The first frame of an animation that lets a character appear."""
    vertices, joints, _ = read(Column(unit=0.0).finish(tmp_path / "hidden.glb"))
    np.testing.assert_allclose(vertices, rings(4)[0], atol=1e-6)
    np.testing.assert_allclose(joints["j3"], [0, 3, 0], atol=1e-6)


def test_joints_of_trees_outside_the_scene(tmp_path: Path) -> None:
    """The armature's own scale still counts: it belongs to the tree that the joints are in."""
    column = Column(unit=2.0)
    column.builder.doc["scenes"][0]["nodes"] = [column.mesh_node]
    vertices, joints, notes = read(column.finish(tmp_path / "outside.glb"))
    np.testing.assert_allclose(vertices, column.points * 2, atol=1e-6)
    np.testing.assert_allclose(joints["j3"], [0, 6, 0], atol=1e-6)
    assert notes == ("4 joints outside the scene: j0, j1, j2, j3",)
