"""Reading and writing skinned GLB files: the round trip and the structure of the file."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh

from data import MeshError, Rig, load_mesh, make_creature, read_skinned_glb, write_skinned_glb


def test_files_without_a_skin_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "box.glb"
    trimesh.creation.box().export(path)
    with pytest.raises(MeshError, match="the mesh has no skin; use load_mesh"):
        read_skinned_glb(path)
    with pytest.raises(MeshError, match="No such file"):
        read_skinned_glb(tmp_path / "none.glb")


def test_round_trip_of_creatures(tmp_path: Path) -> None:
    for seed in range(6):
        creature = make_creature(seed)
        path = tmp_path / f"{creature.mesh.name}.glb"
        write_skinned_glb(path, creature.mesh, creature.rig)
        mesh, rig = read_skinned_glb(path)
        np.testing.assert_allclose(mesh.vertices, creature.mesh.vertices, atol=1e-6)
        np.testing.assert_array_equal(mesh.faces, creature.mesh.faces)
        np.testing.assert_allclose(mesh.centre, creature.mesh.centre, atol=1e-6)
        np.testing.assert_allclose(mesh.scale, creature.mesh.scale, rtol=1e-6)
        np.testing.assert_allclose(rig.joints, creature.rig.joints, atol=1e-6)
        np.testing.assert_array_equal(rig.parents, creature.rig.parents)
        np.testing.assert_allclose(rig.weights, creature.rig.weights, atol=1e-6)
        assert rig.names == creature.rig.names
        assert mesh.name == creature.mesh.name
    assert {file.name for file in tmp_path.iterdir()} == {
        f"{make_creature(seed).mesh.name}.glb" for seed in range(6)
    }


def test_trimesh_reads_the_original_frame(tmp_path: Path) -> None:
    creature = make_creature(2)
    moved = replace(creature.mesh, centre=np.array([100.0, -5, 3]), scale=0.01)
    write_skinned_glb(tmp_path / "big.glb", moved, creature.rig)
    loaded = trimesh.load_scene(tmp_path / "big.glb").to_mesh()
    np.testing.assert_allclose(loaded.extents, (np.ptp(creature.mesh.vertices, axis=0)) * 100, rtol=1e-5)
    np.testing.assert_allclose(loaded.bounds.mean(axis=0), [100, -5, 3], atol=1e-4)
    assert loaded.is_watertight


def parse(path: Path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    size, kind = struct.unpack_from("<I4s", data, 12)
    assert (size % 4, kind) == (0, b"JSON")
    binary_size, kind = struct.unpack_from("<I4s", data, 20 + size)
    assert (binary_size % 4, kind) == (0, b"BIN\0")
    assert 28 + size + binary_size == len(data)
    return json.loads(data[20 : 20 + size]), data[28 + size :]


@pytest.mark.parametrize(("joints", "component"), [(3, 5121), (256, 5121), (257, 5123)])
def test_structure_of_the_written_file(tmp_path: Path, joints: int, component: int) -> None:
    """What the glTF 2.0 specification requires of a skinned file, checked on the raw bytes."""
    rng = np.random.default_rng(joints)
    creature = make_creature(4)
    chain = Rig(
        rng.normal(size=(joints, 3)), np.arange(joints) - 1, rng.random((len(creature.mesh.vertices), joints))
    )
    path = tmp_path / "raw.glb"
    write_skinned_glb(path, creature.mesh, chain)
    doc, binary = parse(path)
    assert doc["buffers"][0]["byteLength"] == len(binary)
    for view in doc["bufferViews"]:
        assert view["byteOffset"] % 4 == 0
        assert view["byteOffset"] + view["byteLength"] <= len(binary)
    attributes = doc["meshes"][0]["primitives"][0]["attributes"]
    position = doc["accessors"][attributes["POSITION"]]
    view = doc["bufferViews"][position["bufferView"]]
    stored = np.frombuffer(binary, "<f4", position["count"] * 3, view["byteOffset"]).reshape(-1, 3)
    assert position["min"] == stored.min(axis=0).tolist()
    assert position["max"] == stored.max(axis=0).tolist()
    for name, index in attributes.items():
        accessor = doc["accessors"][index]
        assert accessor["count"] == position["count"], name
        assert doc["bufferViews"][accessor["bufferView"]]["target"] == 34962
    view = doc["bufferViews"][doc["accessors"][attributes["NORMAL"]]["bufferView"]]
    normals = np.frombuffer(binary, "<f4", position["count"] * 3, view["byteOffset"]).reshape(-1, 3)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)
    slots = doc["accessors"][attributes["JOINTS_0"]]
    assert slots["componentType"] == component
    view = doc["bufferViews"][doc["accessors"][attributes["WEIGHTS_0"]]["bufferView"]]
    weights = np.frombuffer(binary, "<f4", position["count"] * 4, view["byteOffset"]).reshape(-1, 4)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    skin = doc["skins"][0]
    assert len(skin["joints"]) == joints
    matrices = doc["accessors"][skin["inverseBindMatrices"]]
    assert (matrices["type"], matrices["count"]) == ("MAT4", joints)
    # Every joint is reached once from the scene, and the node pose is the bind pose.
    world: dict[int, np.ndarray] = {}
    stack = [(node, np.zeros(3)) for node in doc["scenes"][0]["nodes"]]
    while stack:
        index, place = stack.pop()
        node = doc["nodes"][index]
        assert index not in world
        world[index] = place + np.array(node.get("translation", [0, 0, 0]))
        stack.extend((child, world[index]) for child in node.get("children", []))
    offset = doc["bufferViews"][matrices["bufferView"]]["byteOffset"]
    stored = np.frombuffer(binary, "<f4", joints * 16, offset).reshape(-1, 4, 4)
    np.testing.assert_array_equal(stored[:, :3, :3], np.tile(np.eye(3), (joints, 1, 1)))
    np.testing.assert_array_equal(stored[:, :, 3], np.tile([0, 0, 0, 1], (joints, 1)))
    places = np.array([world[node] for node in skin["joints"]])
    np.testing.assert_allclose(stored[:, 3, :3], -places, atol=1e-4)


def test_many_vertices_need_wide_indices(tmp_path: Path) -> None:
    sphere = trimesh.creation.icosphere(subdivisions=7)  # 163,842 vertices
    sphere.export(tmp_path / "in.ply")
    mesh = load_mesh(tmp_path / "in.ply")
    rig = Rig(np.zeros((1, 3)), np.array([-1]), np.ones((len(mesh.vertices), 1)))
    write_skinned_glb(tmp_path / "out.glb", mesh, rig)
    np.testing.assert_array_equal(read_skinned_glb(tmp_path / "out.glb")[0].faces, mesh.faces)


def test_bad_weights_are_not_written(tmp_path: Path) -> None:
    creature = make_creature(0)
    path = tmp_path / "rig.glb"
    path.write_bytes(b"before")
    creature.rig.weights[3, 1] = np.nan  # after construction, as a decoder's output might be
    with pytest.raises(MeshError, match=rf"^{path}: the skinning weights of vertex 3 are NaN"):
        write_skinned_glb(path, creature.mesh, creature.rig)
    short = replace(creature.rig, weights=np.ones((2, len(creature.rig.joints))))
    with pytest.raises(MeshError, match="2 rows of weights for"):
        write_skinned_glb(path, creature.mesh, short)
    assert path.read_bytes() == b"before"


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    creature = make_creature(0)
    path = tmp_path / "rig.glb"
    path.write_bytes(b"before")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_skinned_glb(path, creature.mesh, creature.rig)
    assert [file.name for file in tmp_path.iterdir()] == ["rig.glb"]
    assert path.read_bytes() == b"before"
