"""The project's rig files: round trip, reproducible bytes, and damage that is reported."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.creatures import make_creature
from data.formats.rig_npz import RiggedMesh, read_rig_npz, sparse_weights, write_rig_npz
from data.mesh import MeshError, normalise
from data.rig import Rig


def triangle() -> RiggedMesh:
    """A triangle in the plane z = 5 with two joints; its box is 4 x 2, so its scale is 1/2."""
    mesh = normalise(np.array([[0.0, 0, 5], [4, 0, 5], [0, 2, 5]]), np.array([[0, 1, 2]]), "tri")
    weights = np.array([[1, 0], [0.25, 0.75], [0, 0]], dtype=np.float32)
    rig = Rig(np.array([[-1, 0, 0], [0.5, 0, 0]]), np.array([-1, 0]), weights, ("hip", "knee é"))
    return RiggedMesh(mesh, rig, "rignet", "some/tri.glb")


def check_equal(read: RiggedMesh, written: RiggedMesh) -> None:
    np.testing.assert_array_equal(read.mesh.vertices, written.mesh.vertices)
    np.testing.assert_array_equal(read.mesh.faces, written.mesh.faces)
    np.testing.assert_array_equal(read.mesh.centre, written.mesh.centre)
    np.testing.assert_array_equal(read.rig.joints, written.rig.joints)
    np.testing.assert_array_equal(read.rig.parents, written.rig.parents)
    np.testing.assert_array_equal(read.rig.weights, written.rig.weights)
    assert read.mesh.scale == written.mesh.scale
    assert (read.name, read.rig.names) == (written.name, written.rig.names)
    assert (read.class_name, read.source) == (written.class_name, written.source)


def test_round_trip(tmp_path: Path) -> None:
    write_rig_npz(tmp_path / "tri.npz", triangle())
    read = read_rig_npz(tmp_path / "tri.npz")
    check_equal(read, triangle())
    assert read.mesh.scale == 0.5
    for array in (read.mesh.vertices, read.mesh.faces, read.rig.joints, read.rig.weights):
        assert array.flags.writeable, "torch.from_numpy warns of others"
    np.testing.assert_array_equal(read.mesh.centre, [2, 1, 5])
    creature = make_creature(3)
    write_rig_npz(tmp_path / "creature.npz", RiggedMesh(creature.mesh, creature.rig))
    check_equal(read_rig_npz(tmp_path / "creature.npz"), RiggedMesh(creature.mesh, creature.rig))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["creature.npz", "tri.npz"]


def test_the_same_rig_gives_the_same_bytes_and_needs_no_pickle(tmp_path: Path) -> None:
    write_rig_npz(tmp_path / "a.npz", triangle())
    write_rig_npz(tmp_path / "b.npz", triangle())
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        # Three of the six weights are not 0.
        assert arrays["skin_vertices"].tolist() == [0, 1, 1]
        assert arrays["skin_joints"].tolist() == [0, 0, 1]
        assert arrays["skin_weights"].tolist() == [1, 0.25, 0.75]


def test_rig_of_another_mesh_is_refused() -> None:
    rigged = triangle()
    with pytest.raises(MeshError, match="weights for 3 vertices but the mesh has"):
        RiggedMesh(make_creature(0).mesh, rigged.rig)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    write_rig_npz(tmp_path / "tri.npz", triangle())
    content = (tmp_path / "tri.npz").read_bytes()
    for size in range(0, len(content), 37):
        (tmp_path / "cut.npz").write_bytes(content[:size])
        with pytest.raises(MeshError, match=r"cut\.npz: .*; "):
            read_rig_npz(tmp_path / "cut.npz")


def test_a_flipped_byte_of_an_array_is_refused(tmp_path: Path) -> None:
    write_rig_npz(tmp_path / "tri.npz", triangle())
    content = bytearray((tmp_path / "tri.npz").read_bytes())
    place = bytes(content).index(np.float32(0.75).tobytes())
    content[place] ^= 1
    (tmp_path / "tri.npz").write_bytes(content)
    with pytest.raises(MeshError, match=r"tri\.npz: .*CRC"):
        read_rig_npz(tmp_path / "tri.npz")


def rewritten(path: Path, meta: dict[str, Any] | None = None, **arrays: Any) -> Path:
    """The triangle's file with some arrays replaced (None: left out)."""
    write_rig_npz(path, triangle())
    with np.load(path) as stored:
        kept = {key: stored[key] for key in stored}
    if meta is not None:
        merged = json.loads(kept["meta"].tobytes()) | meta
        kept["meta"] = np.frombuffer(json.dumps(merged).encode(), dtype=np.uint8)
    kept = {key: value for key, value in (kept | arrays).items() if value is not None}
    np.savez(path, **kept)
    return path


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"meta": {"format": "other"}}, "not a prepared rig"),
        ({"meta": {"version": 2}}, "format version 2 is not supported, only 1"),
        ({"meta": {"scale": "1"}}, "'scale'"),
        ({"meta": {"scale": -1.0}}, "scale -1.0"),
        ({"meta": {"names": ["a", 3]}}, "'names'"),
        ({"meta": {"names": ["a"]}}, "1 names for 2 joints"),
        ({"vertices": None}, "'vertices' is missing; prepare the rig again"),
        ({"vertices": np.full((3, 3), np.nan)}, "not finite"),
        ({"vertices": np.array([[0.0, 0, 0], [9, 0, 0], [0, 1, 0]])}, "vertices are outside the mesh frame"),
        ({"faces": np.array([[0, 1, 7]])}, "refers to vertex 7"),
        ({"parents": np.array([1, -1])}, "root"),
        ({"skin_weights": np.array([1, np.nan, 0], dtype=np.float32)}, "NaN"),
        ({"skin_weights": np.array([1.0])}, "sparse weights"),
        ({"skin_joints": np.array([0, 0, 2])}, "refers to joint 2, but the rig has only 2"),
        ({"skin_vertices": np.array([0, -1, 2])}, "refers to vertex -1, but the rig has only 3"),
    ],
)
def test_damage_is_reported(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(MeshError, match=reason) as caught:
        read_rig_npz(rewritten(tmp_path / "tri.npz", **changes))
    assert str(caught.value).startswith(str(tmp_path / "tri.npz"))


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MeshError, match="cannot be read"):
        read_rig_npz(tmp_path / "missing.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(MeshError, match="not a complete NPZ file"):
        read_rig_npz(tmp_path / "text.npz")
    np.savez(tmp_path / "foreign.npz", vertices=np.zeros((3, 3)))
    with pytest.raises(MeshError, match="not a prepared rig"):
        read_rig_npz(tmp_path / "foreign.npz")


def test_a_header_that_promises_more_than_there_is(tmp_path: Path) -> None:
    """10^15 vertices in a header of a few bytes: refused before memory is taken."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (10**15, 3)}
    )
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive:
        archive.writestr("vertices.npy", header.getvalue() + b"\0" * 12)
    with pytest.raises(MeshError, match=r"shape \(1000000000000000, 3\)"):
        read_rig_npz(tmp_path / "bomb.npz")


def test_sparse_weights_add_repeated_entries() -> None:
    dense = sparse_weights([0, 2, 2], [1, 0, 0], [0.5, 0.25, 0.5], (3, 2), "x")
    assert dense.tolist() == [[0, 0.5], [0, 0], [0.75, 0]]
