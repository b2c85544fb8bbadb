"""Reading rigs: one small rig in every format gives the same rig, invalid ones are refused."""

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
from data.mesh import normalise
from data.rig import Rig

# Two triangles, a box of 4 x 2 x 0 around (2, 1, 0): mesh frame = (p - (2, 1, 0)) / 2. Vertex 4 is unused.
POINTS = np.array([[0.0, 0, 0], [4, 0, 0], [0, 2, 0], [4, 2, 0], [100, 0, 0]])
FACES = np.array([[0, 1, 2], [2, 1, 3]])
JOINTS = np.array([[0.0, 1, 0], [2, 1, 0], [4, 1, 0]])
SKIN = np.array([[1, 0, 0], [0, 0, 1], [0.5, 0.5, 0], [0, 0.25, 0.75], [1, 0, 0]])
NAMES = ["hip", "knee", "foot"]
PARENTS: list[int | None] = [None, 0, 1]


def objects(values: list[Any]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def matrices(joints: np.ndarray = JOINTS) -> np.ndarray:
    result = np.tile(np.eye(4), (len(joints), 1, 1))
    result[:, :3, 3] = joints
    return result


def plain_npz(folder: Path, **changes: Any) -> Path:
    arrays = {
        "vertices": POINTS,
        "faces": FACES,
        "joint_names": np.array(NAMES),
        "parents": np.array([-1, 0, 1]),
        "matrix_local": matrices(),
        "skin": SKIN,
    }
    return saved(folder / "small.npz", arrays | changes)


def unirig(folder: Path, **changes: Any) -> Path:
    """Half precision, object arrays, None for missing values: as written by UniRig."""
    arrays = {
        "vertices": POINTS.astype(np.float16),
        "vertex_normals": np.zeros((5, 3), dtype=np.float16),
        "faces": FACES,
        "joints": JOINTS.astype(np.float16),
        "tails": JOINTS.astype(np.float16) + 1,
        "skin": SKIN.astype(np.float16),
        "no_skin": None,
        "parents": objects(PARENTS),
        "names": objects(NAMES),
        "matrix_local": matrices().astype(np.float32),
        "path": "models/small.glb",
        "cls": None,
    }
    (folder / "small").mkdir(exist_ok=True)
    return saved(folder / "small" / "raw_data.npz", arrays | changes)


def saved(path: Path, arrays: dict[str, Any]) -> Path:
    """None stands for a 0-d object array, a missing array is written as ...."""
    np.savez(path, **{key: value for key, value in arrays.items() if value is not ...})
    return path


def articulation_entry(**changes: Any) -> dict[str, Any]:
    rows, columns = np.nonzero(SKIN)
    entry = {
        "uuid": "0a1b",
        "vertices": POINTS.astype(np.float32),
        "faces": FACES.astype(np.int32),
        "normals": np.zeros((5, 3)),
        "joints": JOINTS.astype(np.float32),
        "bones": np.array([[0, 1], [1, 2]]),
        "root_index": 0,
        "joint_names": NAMES,
        "pc_w_norm": np.zeros((4, 6)),
        "skinning_weights_value": SKIN[rows, columns],
        "skinning_weights_row": rows.astype(np.int32),
        "skinning_weights_col": columns.astype(np.int32),
        "skinning_weights_shape": SKIN.shape,
    }
    return {key: value for key, value in (entry | changes).items() if value is not ...}


def articulation(folder: Path, *entries: dict[str, Any]) -> Path:
    path = folder / "xl.npz"
    np.savez(path, objects(list(entries or (articulation_entry(),))))
    return path


RIG_TEXT = """joints hip 0 1 0
joints knee 2 1 0
joints foot 4 1 0
root hip
skin 0 hip 1.0
skin 1 foot 1.0
skin 2 hip 0.5 knee 0.5
skin 3 knee 0.25 foot 0.75
skin 4 hip 1.0
hier hip knee
hier knee foot
"""
OBJ_TEXT = "v 0 0 0\nv 4 0 0\nv 0 2 0\nv 4 2 0\nv 100 0 0\nf 1 2 3\nf 3/1 2/1 4/1\n"


def rignet(folder: Path, text: str = RIG_TEXT, obj: str = OBJ_TEXT) -> Path:
    for name in ("rig_info_remesh", "obj_remesh"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "obj_remesh" / "small.obj").write_text(obj)
    (folder / "rig_info_remesh" / "small.txt").write_text(text)
    return folder / "rig_info_remesh" / "small.txt"


def small() -> tuple[Any, Rig]:
    mesh = normalise(POINTS[:4], FACES, "small")
    return mesh, Rig((JOINTS - [2, 1, 0]) / 2, np.array([-1, 0, 1]), SKIN[:4], tuple(NAMES))


def glb(folder: Path) -> Path:
    write_skinned_glb(folder / "small.glb", *small())
    return folder / "small.glb"


def own(folder: Path) -> Path:
    write_rig_npz(folder / "small.npz", RiggedMesh(*small(), "vroid", "first.glb"))
    return folder / "small.npz"


def only(path: Path, limits: RigLimits | None = None) -> RepairedRig:
    found = list(read_rigs(path, limits))
    assert len(found) == 1
    assert isinstance(found[0], RepairedRig), str(found[0])
    return found[0]


def refusal(path: Path, limits: RigLimits | None = None) -> str:
    found = list(read_rigs(path, limits))
    assert len(found) == 1
    assert isinstance(found[0], Refusal)
    assert found[0].file.startswith(str(path))
    assert ";" in found[0].reason, "the reason includes the fix"
    return found[0].reason


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


def test_repairs_of_order_roots_and_weights(tmp_path: Path) -> None:
    """Joint 0 below 2 below nobody, joint 1 a second root without descendants: order 2, 0, 1."""
    skin = np.array([[2, 0, 0], [0, 0, 4], [1, 1, 0], [0, 0, 0], [1, 0, 0]])
    read = only(plain_npz(tmp_path, parents=np.array([2, -1, -1]), skin=skin))
    rig = read.rigged.rig
    assert rig.parents.tolist() == [-1, 0, 0]
    assert rig.names == ("foot", "hip", "knee")
    np.testing.assert_array_equal(rig.joints[:, 0], [1, -1, 0])
    np.testing.assert_array_equal(rig.weights, [[0, 1, 0], [1, 0, 0], [0, 0.5, 0.5], [0, 0, 0]])
    assert read.notes == (
        "1 unreferenced vertices dropped",
        "2 roots joined",
        "joints reordered so that parents come first",
        "weights of 3 vertices normalised to sum to 1",
        "1 vertices not bound to any joint",
    )


def test_root_index_decides_the_root(tmp_path: Path) -> None:
    """Articulation-XL: root_index is joint 2 although joint 0 has the descendants."""
    entry = articulation_entry(bones=np.array([[0, 1]]), root_index=2)
    read = only(articulation(tmp_path, entry))
    assert read.rigged.rig.names == ("foot", "hip", "knee")
    assert read.rigged.rig.parents.tolist() == [-1, 0, 1]


def test_rounding_below_zero_is_repaired(tmp_path: Path) -> None:
    skin = SKIN.copy()
    skin[0, 1] = -1e-6
    read = only(plain_npz(tmp_path, skin=skin))
    np.testing.assert_array_equal(read.rigged.rig.weights, SKIN[:4])
    assert "1 slightly negative weights set to 0" in read.notes


def nan_at(array: np.ndarray, *place: int) -> np.ndarray:
    copy = array.astype(np.float64)
    copy[place] = np.nan
    return copy


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"vertices": ...}, "no vertices"),
        ({"faces": None}, "no faces"),
        ({"faces": np.zeros((0, 3), int)}, "no faces"),
        ({"faces": FACES + 9}, "refers to vertex 12"),
        ({"vertices": nan_at(POINTS, 1, 1)}, "not finite"),
        ({"vertices": np.array("x")}, "not an array of numbers"),
        ({"vertices": POINTS + 1j}, "not an array of numbers"),
        ({"vertices": POINTS * 0}, "extent is zero"),
        ({"matrix_local": ...}, "no skeleton"),
        ({"matrix_local": matrices(nan_at(JOINTS, 2, 0))}, "joint 2 is not finite"),
        ({"matrix_local": matrices(JOINTS * 100)}, "joint 2 is 199 half side lengths"),
        ({"matrix_local": matrices(JOINTS * 0)}, "3 joints all coincide"),
        ({"parents": ...}, "no parents"),
        ({"parents": np.array([-1, 0])}, "not a list of 3 entries"),
        ({"parents": objects([None, 0, "hip"])}, "parent of joint 2 is 'hip'"),
        ({"parents": np.array([-1, 0, 0.5])}, "parent of joint 2 is 0.5"),
        ({"parents": np.array([-1, 0, np.nan])}, "parent of joint 2 is nan"),
        ({"parents": np.array([-1, 0, 3])}, "joint 2 has parent 3, but there are 3 joints"),
        ({"parents": np.array([-1, 0, -2])}, "joint 2 has parent -2, but there are 3 joints"),
        ({"parents": np.array([1, 2, 0])}, "no joint is a root because the parents form a cycle"),
        ({"parents": np.array([-1, 2, 1])}, "the parents of joint 1 form a cycle"),
        ({"joint_names": np.array(["a"])}, "1 joint names for 3 joints"),
        ({"joint_names": np.array([1, 2, 3])}, "1 is not a joint name"),
        ({"skin": ...}, "no skinning weights"),
        ({"skin": None}, "no skinning weights"),
        ({"skin": SKIN[:, :2]}, r"shape \(5, 2\) for 5 vertices and 3 joints"),
        ({"skin": nan_at(SKIN, 3, 1)}, "vertex 3 are NaN"),
        ({"skin": SKIN - 0.5}, "negative"),
        ({"skin": SKIN * 0}, "all of its skinning weights are 0"),
        ({"skin": objects([[1, 2], [3]])}, "not an array of numbers"),
    ],
)
def test_broken_rigs_are_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
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
        "refers to a joint outside the 3 joints",
        "its root, joint 1, has a parent",
        "root_index 7",
        "refers to joint 3 of 3",
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


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("hier knee foot\n", "", "'foot' has no parent and is not the root"),
        ("hier knee foot\n", "hier knee fo", "refers to joint 'fo', which it does not define"),
        ("hier knee foot\n", "hier knee", "line 11, 'hier knee', cannot be read"),
        ("skin 2 hip 0.5 knee 0.5", "skin 2 hip 0.5 knee", "line 7"),
        ("skin 2 hip 0.5", "skin two hip 0.5", "line 7"),
        ("skin 4", "skin 5", "refers to vertex 5 of 5"),
        ("skin 4", "skin -1", "refers to vertex -1 of 5"),
        ("skin 4", "skin 99999999999999999999", "refers to vertex 99999999999999999999"),
        ("skin 2 hip 0.5", "skin 2 hip nan", "vertex 2 are NaN"),
        ("joints foot 4 1 0", "joints hip 4 1 0", "two joints are named 'hip'"),
        ("joints foot 4 1 0", "joints foot 4 1", "line 3"),
        ("joints foot 4 1 0", "joints foot 4 1 inf", "joint 2 is not finite"),
        ("root hip\n", "", "no root"),
        ("root hip\n", "root hip\nroot hip\n", "two roots"),
        ("root hip\n", "root knee\n", "root 'knee' has a parent"),
        ("hier hip knee\n", "hier hip knee\nhier foot knee\n", "'knee' has two parents"),
        ("skin", "bind", "line 5"),
    ],
)
def test_broken_rignet_texts(tmp_path: Path, old: str, new: str, reason: str) -> None:
    assert old in RIG_TEXT
    assert re.search(reason, refusal(rignet(tmp_path, RIG_TEXT.replace(old, new))))


def test_every_truncation_of_a_rignet_text_is_refused(tmp_path: Path) -> None:
    """Truncated anywhere, also between lines, except within the last joint name."""
    for size in range(len("hier knee foot\n"), len(RIG_TEXT)):
        refusal(rignet(tmp_path, RIG_TEXT[: len(RIG_TEXT) - size]))


def test_rignet_meshes(tmp_path: Path) -> None:
    path = rignet(tmp_path)
    (tmp_path / "obj_remesh" / "small.obj").rename(path.with_name("small.obj"))
    assert only(path).rigged.name == "small"
    path = path.rename(path.with_name("small_rig.txt"))
    assert only(path).rigged.name == "small_rig"
    path.with_name("small.obj").unlink()
    assert "its mesh small_rig.obj is not in" in refusal(path)
    # A quad becomes two triangles; vertex lines keep their numbers.
    quad = rignet(tmp_path, obj=OBJ_TEXT.split("f")[0] + "f 1 2 4 3\n")
    assert only(quad).rigged.mesh.faces.tolist() == [[0, 1, 3], [0, 3, 2]]
    assert "refers to vertex 9" in refusal(rignet(tmp_path, obj=OBJ_TEXT.replace("f 1", "f 9")))
    assert "vertex cannot be read" in refusal(rignet(tmp_path, obj=OBJ_TEXT.replace("100", "1x")))


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
    assert "2 faces, the limit is 1" in refusal(path, RigLimits(max_faces=1))
    assert "3 joints, the limit is 2" in refusal(path, RigLimits(max_joints=2))
    assert "the limit is 0; split" in refusal(path, replace(RigLimits(), max_npz_bytes=10))
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
