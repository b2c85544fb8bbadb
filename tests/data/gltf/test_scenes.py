"""What of a glTF scene is read, dropped or noted: parts, morphs, hidden meshes, names, roots, file names."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from data import find_meshes, find_rigs, load_asset, load_mesh, read_rigs, read_skinned_glb
from data.formats.rig_repair import RepairedRig
from tests.data.conftest import GltfBuilder
from tests.data.gltf.columns import Column, read, translated, turn, world_places
from tests.data.mesh_files import TRIANGLE

CASES = Path(__file__).parent / "cases"


def triangle(builder: GltfBuilder, **entry: Any) -> dict[str, Any]:
    return {"attributes": {"POSITION": builder.accessor(TRIANGLE)}, **entry}


def places(path: Path) -> np.ndarray:
    mesh = load_mesh(path)
    return mesh.vertices / mesh.scale + mesh.centre


def test_a_part_on_no_joint_is_rigged_but_not_part_of_a_rig() -> None:
    path = CASES / "unskinned_part.glb"
    assert len(load_mesh(path).vertices) == 72
    mesh, rig = read_skinned_glb(path)
    assert len(mesh.vertices) == len(rig.weights) == 36
    note = "excluded 1 mesh that no joint moves from the rig: hat (36 vertices)"
    assert note in load_asset(path).notes
    assert note not in load_asset(path, rigged=False).notes
    (item,) = read_rigs(path)
    assert isinstance(item, RepairedRig)
    assert note in item.notes


def test_a_part_below_a_joint_is_bound_to_it_in_bind_pose(tmp_path: Path) -> None:
    """A hat on the bent column's last joint stands on top of the straight column."""
    column = Column()
    for joint in (2, 3, 4):
        column.builder.doc["nodes"][joint]["rotation"] = turn((0, 0, 1), 0.5)
    column.builder.doc["meshes"].append({"primitives": [triangle(column.builder)]})
    column.builder.node(mesh=1, translation=[0, 1, 0], name="hat")
    column.builder.doc["nodes"][4]["children"] = [len(column.builder.doc["nodes"]) - 1]
    path = column.finish(tmp_path / "hat.glb")
    vertices, _, notes = read(path)
    np.testing.assert_allclose(vertices[16:], np.add(TRIANGLE, [0, 4, 0]), atol=1e-6)
    asset = load_asset(path)
    assert asset.rig is not None
    assert asset.rig.weights[16:].tolist() == [[0, 0, 0, 1]] * 3
    assert notes == ()


@pytest.mark.parametrize("sets", [1, 2])
def test_rows_of_nan_are_unbound(tmp_path: Path, sets: int) -> None:
    """0/0 at two vertices; a second set of four is NaN too, or zero. They still stand where the rest does."""
    column = Column()
    column.weights[[3, 5]] = np.nan
    entry = column.primitive()
    if sets == 2:
        more = np.zeros((16, 4))
        more[3] = np.nan
        entry["attributes"]["JOINTS_1"] = column.builder.accessor(column.slots, "uint8")
        entry["attributes"]["WEIGHTS_1"] = column.builder.accessor(more)
    column.builder.doc["meshes"].append({"primitives": [entry]})
    column.skin(column.joints, column.inverse)
    asset = load_asset(column.finish(tmp_path / "nan.glb"))
    assert asset.rig is not None
    assert np.flatnonzero(asset.rig.weights.sum(axis=1) == 0).tolist() == [3, 5]
    np.testing.assert_allclose(world_places(asset.mesh, asset.rig)[0], column.points, atol=1e-6)
    assert asset.notes == ("read 2 vertices with NaN weights as unbound",)
    (item,) = read_rigs(tmp_path / "nan.glb")
    assert isinstance(item, RepairedRig)
    assert item.notes[0] == asset.notes[0]


def test_default_morphs_are_applied(tmp_path: Path, builder: GltfBuilder) -> None:
    """The mesh's weights, or the node's, which override them; one target is sparse, one moves no position."""
    up = builder.accessor([[0, 1, 0]] * 3)
    builder.doc["accessors"].append(
        {
            "componentType": 5126,
            "count": 3,
            "type": "VEC3",
            "sparse": {
                "count": 1,
                "indices": {"bufferView": builder.view(np.array([2], "u1").tobytes()), "componentType": 5121},
                "values": {"bufferView": builder.view(np.array([[0, 0, 4]], "f4").tobytes())},
            },
        }
    )
    targets = [{"POSITION": up}, {"NORMAL": up}, {"POSITION": len(builder.doc["accessors"]) - 1}]
    mesh = builder.mesh(triangle(builder, targets=targets))
    builder.doc["meshes"][mesh]["weights"] = [0.5, 1, 0]
    builder.node(root=True, mesh=mesh)
    builder.node(root=True, mesh=mesh, weights=[0, 1, 0.25])
    expected = [*np.add(TRIANGLE, [0, 0.5, 0]), *TRIANGLE[:2], np.add(TRIANGLE[2], [0, 0, 1])]
    np.testing.assert_allclose(places(builder.glb(tmp_path / "morph.glb")), expected, atol=1e-6)


def test_hidden_and_instanced_meshes_are_noted(tmp_path: Path, builder: GltfBuilder) -> None:
    mesh = builder.mesh(triangle(builder))
    builder.node(root=True, mesh=mesh, name="shown")
    builder.node(root=True, mesh=mesh, name="gone", scale=[0, 0, 0], translation=[9, 9, 9])
    copies = {"EXT_mesh_gpu_instancing": {"attributes": {}}}
    builder.node(root=True, mesh=mesh, name="grass", translation=[2, 0, 0], extensions=copies)
    asset = load_asset(builder.glb(tmp_path / "hidden.glb"))
    np.testing.assert_allclose(places(tmp_path / "hidden.glb"), [*TRIANGLE, *np.add(TRIANGLE, [2, 0, 0])])
    assert asset.notes == (
        "dropped 1 mesh hidden by a scale of 0: gone",
        "one copy was read of each instanced mesh: grass",
    )


def test_weights_without_a_skin(tmp_path: Path) -> None:
    """A converter dropped the node's reference to the skin; a skin without weights is no skin either."""
    column = Column()
    del column.builder.doc["nodes"][column.mesh_node]["skin"]
    asset = load_asset(column.finish(tmp_path / "loose.glb"))
    assert asset.rig is None
    assert asset.notes == ("skinning weights without a skin were ignored: body",)
    bare = Column()
    entry = bare.primitive()
    entry["attributes"] = {"POSITION": entry["attributes"]["POSITION"]}
    bare.builder.doc["meshes"].append({"primitives": [entry]})
    bare.skin(bare.joints, bare.inverse)
    assert load_asset(bare.finish(tmp_path / "bare.glb")).rig is None


def test_odd_lists_of_roots(tmp_path: Path, builder: GltfBuilder) -> None:
    """Some exporters list every node as a root, or nothing in the default scene."""
    mesh = builder.mesh(triangle(builder))
    child = builder.node(root=True, mesh=mesh, translation=[1, 0, 0])
    builder.node(root=True, translation=[0, 5, 0], children=[child])
    builder.doc["scenes"][0]["nodes"] *= 2
    np.testing.assert_allclose(places(builder.glb(tmp_path / "all.glb")), np.add(TRIANGLE, [1, 5, 0]))
    builder.doc["scenes"][0]["nodes"] = []
    asset = load_asset(builder.glb(tmp_path / "none.glb"))
    np.testing.assert_allclose(places(tmp_path / "none.glb"), np.add(TRIANGLE, [1, 5, 0]))
    assert asset.notes == ("the default scene shows no triangles: all nodes were read",)


def test_joint_names_come_out_unique(tmp_path: Path) -> None:
    """Given names are kept: a repetition takes the first number that no name has."""
    column = Column(6)
    names = ["Bone", "Bone.001", "Bone", "Bone.001", "", "node5"]
    for joint, name in enumerate(names):
        column.builder.doc["nodes"][1 + joint]["name"] = name
    asset = load_asset(column.finish(tmp_path / "names.glb"))
    assert asset.rig is not None
    assert asset.rig.names == ("Bone", "Bone.001", "Bone.002", "Bone.001.001", "node5", "node5.001")


def test_siblings_without_a_root(tmp_path: Path) -> None:
    """Three joints side by side: the first becomes the root, and a note says so."""
    column = Column(3)
    nodes = column.builder.doc["nodes"]
    nodes[0]["children"] = [1, 2, 3]
    for joint in (1, 2, 3):
        nodes[joint].update(children=[], translation=[0, joint - 1, 0])
    asset = load_asset(column.finish(tmp_path / "siblings.glb"))
    assert asset.rig is not None
    assert asset.rig.parents.tolist() == [-1, 0, 0]
    assert asset.notes == ("no single root: j0 was made the parent of 2 other top joints: j1, j2",)


def test_vrm_is_a_glb(tmp_path: Path) -> None:
    path = tmp_path / "avatar.VRM"
    shutil.copyfile(CASES / "repeated_names.glb", path)
    mesh, rig = read_skinned_glb(path)
    assert len(rig.joints) == 4
    np.testing.assert_array_equal(load_mesh(path).vertices, mesh.vertices)
    assert find_meshes(tmp_path) == find_rigs(tmp_path) == [path]
    (item,) = read_rigs(path)
    assert isinstance(item, RepairedRig)
    assert item.rigged.rig.names == rig.names


def test_a_mirrored_skeleton_faces_outward(tmp_path: Path) -> None:
    """The armature mirrors x; the mesh node's own mirror must not flip anything."""
    box = trimesh.creation.box()
    column = Column(1, scale=[1, -1, 1])
    column.points, column.faces = box.vertices, box.faces
    column.slots, column.weights = np.zeros((8, 4), int), np.tile([1.0, 0, 0, 0], (8, 1))
    column.inverse = [translated(0, 0.5, 0)]
    column.builder.doc["nodes"][0]["scale"] = [-1, 1, 1]
    mesh, _ = read_skinned_glb(column.finish(tmp_path / "mirror.glb"))
    assert trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).volume > 0


def test_quantised_positions_and_shared_buffers(tmp_path: Path, builder: GltfBuilder) -> None:
    """KHR_mesh_quantization: int16 positions without the flag are integers; two primitives share them."""
    points = [[0, 0, 0], [100, 0, 0], [0, 200, 0], [0, 0, 300], [9999, 9999, 9999]]
    position = {"POSITION": builder.accessor(points, "int16")}
    faces = ([0, 1, 2], [0, 2, 3])
    entries = [{"attributes": position, "indices": builder.accessor(one, "uint8")} for one in faces]
    builder.node(root=True, mesh=builder.mesh(*entries), scale=[0.01] * 3)
    builder.doc["extensionsRequired"] = ["KHR_mesh_quantization"]
    expected = np.array([points[k] for one in faces for k in one]) * 0.01
    np.testing.assert_allclose(places(builder.glb(tmp_path / "packed.glb")), expected, atol=1e-6)
