"""Reading rigs: one small rig in every format gives the same rig, invalid arrays and files are refused."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from data.creatures import make_creature
from data.formats.load import Refusal
from data.formats.rig_formats import RigLimits, find_rigs, read_rigs
from data.formats.rig_npz import RiggedMesh, write_rig_npz
from data.formats.rig_repair import RepairedRig
from data.gltf.skinned import write_skinned_glb
from tests.data.rig_files import (
    FACES,
    JOINTS,
    POINTS,
    SKIN,
    articulation,
    articulation_entry,
    glb,
    matrices,
    objects,
    only,
    own,
    plain_npz,
    refusal,
    rignet,
    unirig,
)


@pytest.mark.parametrize(
    ("write", "name", "class_name", "atol"),
    [
        (plain_npz, "small", None, 0),
        (unirig, "small", None, 0),
        (articulation, "xl_0a1b", "articulation", 0),
        (rignet, "small", "rignet", 0),
        (glb, "small", None, 1e-6),
        (own, "small", "vroid", 0),
    ],
)
def test_every_format_gives_the_same_rig(
    tmp_path: Path, write: Callable[[Path], Path], name: str, class_name: str | None, atol: float
) -> None:
    path = write(tmp_path)
    read = only(path)
    mesh, rig = read.rigged.mesh, read.rigged.rig
    # The unreferenced vertex does not extend the box: (0, 0, 0) becomes (-1, -1/2, 0).
    np.testing.assert_allclose(
        mesh.vertices, [[-1, -0.5, 0], [1, -0.5, 0], [-1, 0.5, 0], [1, 0.5, 0]], atol=atol
    )
    np.testing.assert_array_equal(mesh.faces, FACES)
    np.testing.assert_allclose(mesh.centre, [2, 1, 0], atol=atol)
    assert mesh.scale == pytest.approx(0.5)
    np.testing.assert_allclose(rig.joints, [[-1, 0, 0], [0, 0, 0], [1, 0, 0]], atol=atol)
    assert rig.parents.tolist() == [-1, 0, 1]
    assert rig.names == ("hip", "knee", "foot")
    np.testing.assert_allclose(rig.weights, SKIN[:4], atol=atol)
    assert (read.rigged.name, read.rigged.class_name) == (name, class_name)
    dropped = () if write in (glb, own) else ("1 unreferenced vertices dropped",)
    assert read.notes == dropped
    assert read.rigged.source.startswith("first.glb" if write is own else str(path))


def test_creatures_survive_glb_and_npz(tmp_path: Path) -> None:
    creature = make_creature(1)
    write_rig_npz(tmp_path / "a.npz", RiggedMesh(creature.mesh, creature.rig))
    write_skinned_glb(tmp_path / "a.glb", creature.mesh, creature.rig)
    for file, weight_error in (("a.npz", 1e-6), ("a.glb", 1.0)):
        rigged = only(tmp_path / file).rigged
        np.testing.assert_allclose(rigged.rig.joints, creature.rig.joints, atol=1e-5)
        assert rigged.rig.names == creature.rig.names
        np.testing.assert_allclose(rigged.rig.weights.sum(axis=1), 1, atol=1e-6)
        assert np.abs(rigged.rig.weights - creature.rig.weights).max() <= weight_error


def test_joints_without_matrices(tmp_path: Path) -> None:
    """Specification, section 13: matrices of a shape other than (J, 4, 4) are ignored if there are joints."""
    for matrix_local in (None, ..., matrices()[0]):
        rig = only(unirig(tmp_path, matrix_local=matrix_local)).rigged.rig
        np.testing.assert_array_equal(rig.joints, [[-1, 0, 0], [0, 0, 0], [1, 0, 0]])
    moved = only(unirig(tmp_path, matrix_local=matrices(JOINTS + np.array([0, 0, 1])))).rigged.rig
    np.testing.assert_array_equal(moved.joints[:, 2], [0.5, 0.5, 0.5])


def test_parents_and_names_of_other_kinds(tmp_path: Path) -> None:
    for parents in (
        np.array([-1.0, 0, 1]),
        np.array([0, 0, 1], dtype=np.uint8),
        objects([-1, np.int64(0), 1]),
    ):
        assert only(unirig(tmp_path, parents=parents)).rigged.rig.parents.tolist() == [-1, 0, 1]
    for names in (None, ...):
        read = only(unirig(tmp_path, names=names))
        assert read.rigged.rig.names == ("bone_0", "bone_1", "bone_2")
    read = only(unirig(tmp_path, names=objects(["a", "a", None])))
    assert read.rigged.rig.names == ("a", "a_2", "bone_2")
    assert read.notes[1:] == ("2 empty or duplicate joint names replaced",)


def test_root_index_decides_the_root(tmp_path: Path) -> None:
    """Articulation-XL: root_index is joint 2 although joint 0 has the descendants."""
    entry = articulation_entry(bones=np.array([[0, 1]]), root_index=2)
    read = only(articulation(tmp_path, entry))
    assert read.rigged.rig.names == ("foot", "hip", "knee")
    assert read.rigged.rig.parents.tolist() == [-1, 0, 1]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"vertices": ...}, "no vertices"),
        ({"faces": None}, "no faces"),
        ({"vertices": np.array("x")}, "not an array of numbers"),
        ({"vertices": POINTS + 1j}, "not an array of numbers"),
        ({"matrix_local": ...}, "no skeleton"),
        ({"parents": ...}, "no parents"),
        ({"parents": np.array([-1, 0])}, "not a list of 3 entries"),
        ({"parents": objects([None, 0, "hip"])}, "parent of joint 2 is 'hip'"),
        ({"parents": np.array([-1, 0, 0.5])}, "parent of joint 2 is 0.5"),
        ({"parents": np.array([-1, 0, np.nan])}, "parent of joint 2 is nan"),
        ({"joint_names": np.array([1, 2, 3])}, "1 is not a joint name"),
        ({"skin": ...}, "no skinning weights"),
        ({"skin": None}, "no skinning weights"),
        ({"skin": objects([[1, 2], [3]])}, "not an array of numbers"),
    ],
)
def test_missing_and_invalid_arrays_are_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    assert re.search(reason, refusal(plain_npz(tmp_path, **changes)))


def test_one_broken_rig_of_many_is_refused_alone(tmp_path: Path) -> None:
    path = articulation(
        tmp_path,
        articulation_entry(),
        articulation_entry(uuid=..., skinning_weights_row=np.array([0, 99])),
        articulation_entry(uuid=...),
        articulation_entry(skinning_weights_value=...),
        articulation_entry(skinning_weights_shape=(3, 5)),
        articulation_entry(bones=np.array([[0, 2], [1, 2]])),
        articulation_entry(bones=np.array([[0, 1], [1, 3]])),
        articulation_entry(root_index=1),
        articulation_entry(root_index=7),
        articulation_entry(skinning_weights_col=np.full(7, 3)),
        articulation_entry(skinning_weights_value=np.full(7, np.nan)),
    )
    found = list(read_rigs(path))
    usable = [item for item in found if isinstance(item, RepairedRig)]
    assert [(item.rigged.name, item.part) for item in usable] == [("xl_0a1b", "0a1b"), ("xl_2", "2")]
    reasons = [str(item) for item in found if isinstance(item, Refusal)]
    assert [reason.split(": ")[0] for reason in reasons] == [
        f"{path}[{number}]" for number in (1, 3, 4, 5, 6, 7, 8, 9, 10)
    ]
    expected = [
        "sparse weights have",
        "no skinning weights",
        r"shape [3, 5] for 5 vertices",
        "joint 2 has two parents, 0 and 1",
        "refers to a joint beyond the rig's 3 joints",
        "the root, joint 1, has a parent",
        "root_index 7",
        "refers to joint 3, but the rig has only 3",
        "NaN",
    ]
    for reason, part in zip(reasons, expected, strict=True):
        assert part in reason


def test_invalid_lists_of_rigs(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", objects([1, 2]))
    assert "not a list of rigs" in refusal(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", np.zeros(3))
    assert "not a list of rigs" in refusal(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", objects([]))
    assert "empty" in refusal(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", other=np.zeros(3))
    assert "no vertices" in refusal(tmp_path / "a.npz")


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return open, (str(self.marker), "w")


def test_pickles_are_not_run(tmp_path: Path) -> None:
    path = unirig(tmp_path, names=objects(["a", "b", Evil(tmp_path / "ran")]))
    assert "'names' cannot be read as plain data" in refusal(path)
    path = articulation(tmp_path, articulation_entry(uuid=Evil(tmp_path / "ran")))
    assert "'arr_0' cannot be read as plain data" in refusal(path)
    assert not (tmp_path / "ran").exists()


def test_other_files(tmp_path: Path) -> None:
    (tmp_path / "a.fbx").write_bytes(b"x")
    assert "FBX" in refusal(tmp_path / "a.fbx")
    (tmp_path / "a.blend").write_bytes(b"x")
    assert "unknown rig format .blend" in refusal(tmp_path / "a.blend")
    (tmp_path / "a.npz").write_bytes(b"")
    assert "empty" in refusal(tmp_path / "a.npz")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xff")
    assert "not a text file" in refusal(tmp_path / "a.txt")
    assert "cannot be read" in refusal(tmp_path / "missing.npz")
    creature = make_creature(0)
    trimesh.Trimesh(creature.mesh.vertices, creature.mesh.faces).export(tmp_path / "plain.glb")
    assert "no skin" in refusal(tmp_path / "plain.glb")


def test_limits(tmp_path: Path) -> None:
    path = plain_npz(tmp_path)
    assert "2 faces, over the limit of 1" in refusal(path, RigLimits(max_faces=1))
    assert "3 joints, over the limit of 2" in refusal(path, RigLimits(max_joints=2))
    assert "over the limit of 0 MiB; split" in refusal(path, replace(RigLimits(), max_npz_bytes=10))
    only(path, RigLimits(max_faces=2, max_joints=3))
    assert "larger than 0 MiB" in refusal(rignet(tmp_path), RigLimits(max_bytes=3))


def test_find_rigs(tmp_path: Path) -> None:
    text, raw, plain, model = rignet(tmp_path), unirig(tmp_path), plain_npz(tmp_path), glb(tmp_path)
    (tmp_path / "README.txt").write_text("These rigs are small.\n")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "old.fbx").write_text("x")
    expected = sorted([text, raw, plain, model, tmp_path / "empty.txt", tmp_path / "old.fbx"])
    assert find_rigs(tmp_path) == expected
    assert find_rigs([tmp_path, plain, str(tmp_path / "**" / "*.npz")]) == expected
    assert find_rigs(tmp_path / "README.txt") == [tmp_path / "README.txt"]
    assert find_rigs(tmp_path / "*.none") == []


@pytest.mark.parametrize("write", [plain_npz, unirig, articulation, rignet])
def test_z_up_rigs_are_turned(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    """(x, y, z) -> (x, z, -y): the box of 4 x 2 x 0 lies down, and the joints with it."""
    (read,) = read_rigs(write(tmp_path), up="z")
    assert isinstance(read, RepairedRig)
    mesh, rig = read.rigged.mesh, read.rigged.rig
    np.testing.assert_array_equal(mesh.vertices, [[-1, 0, 0.5], [1, 0, 0.5], [-1, 0, -0.5], [1, 0, -0.5]])
    np.testing.assert_array_equal(rig.joints, [[-1, 0, 0], [0, 0, 0], [1, 0, 0]])
    np.testing.assert_array_equal(mesh.centre, [2, 0, -1])
    np.testing.assert_array_equal(rig.weights, SKIN[:4])


@pytest.mark.parametrize("write", [glb, own])
def test_rigs_that_are_y_up_are_not_turned(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path)
    (read,) = read_rigs(path, up="z")
    assert isinstance(read, RepairedRig)
    np.testing.assert_array_equal(read.rigged.mesh.vertices, only(path).rigged.mesh.vertices)


def test_only_joints_with_weight_must_be_near(tmp_path: Path) -> None:
    """A pole may stand anywhere; a joint with weight 199 half side lengths away means other units."""
    joints = np.vstack([JOINTS, [[400, 1, 0]]])
    skin = np.hstack([SKIN, np.zeros((5, 1))])
    arrays = {"parents": np.array([-1, 0, 1, 0]), "matrix_local": matrices(joints)}
    names = np.array([*"abcd"])
    read = only(plain_npz(tmp_path, skin=skin, joint_names=names, **arrays))
    np.testing.assert_array_equal(read.rigged.rig.joints[3], [199, 0, 0])
    skin[0] = [0, 0, 0, 1]
    assert "joint 3 is 199 half side lengths" in refusal(
        plain_npz(tmp_path, skin=skin, joint_names=names, **arrays)
    )
