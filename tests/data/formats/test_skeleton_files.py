"""Skeleton files: every format in its own frame, and one sentence for each mistake in JSON."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh

from data import MeshError, RiggedMesh, load_asset, make_creature, write_rig_npz, write_skinned_glb
from data.formats.skeleton_files import FileSkeleton, read_skeleton_file

CENTRE, SCALE = np.array([100.0, -20.0, 3.0]), 1 / 37


@pytest.fixture
def creature():
    """A creature's mesh and rig whose original frame is far from the mesh frame."""
    made = make_creature(3)
    return replace(made.mesh, centre=CENTRE, scale=SCALE), made.rig


def test_every_format_gives_the_joints_in_the_files_own_frame(creature, tmp_path):
    mesh, rig = creature
    world = rig.joints.astype(np.float64) / SCALE + CENTRE
    write_skinned_glb(tmp_path / "a.glb", mesh, rig)
    (tmp_path / "a.vrm").write_bytes((tmp_path / "a.glb").read_bytes())
    write_rig_npz(tmp_path / "a.npz", RiggedMesh(mesh, rig))
    content = {"joints": world.tolist(), "parents": rig.parents.tolist(), "names": list(rig.names)}
    (tmp_path / "a.json").write_text(json.dumps(content))
    for name in ("a.glb", "a.vrm", "a.npz", "a.json"):
        found = read_skeleton_file(tmp_path / name)
        np.testing.assert_allclose(found.joints, world, atol=2e-5, err_msg=name)
        assert found.joints.dtype == np.float64
        assert found.parents.tolist() == rig.parents.tolist()
        assert found.names == rig.names
    assert np.array_equal(found.joints, world)  # JSON keeps all digits


def test_the_content_decides_what_a_glb_is(creature, tmp_path):
    write_skinned_glb(tmp_path / "a.glb", *creature)
    (tmp_path / "a.obj").write_bytes((tmp_path / "a.glb").read_bytes())
    assert np.array_equal(
        read_skeleton_file(tmp_path / "a.obj").joints, read_skeleton_file(tmp_path / "a.glb").joints
    )


def test_joints_before_their_parents_move_behind_them_and_no_other_moves(tmp_path):
    joints = [[0, height, 0] for height in range(5)]
    found = from_json(tmp_path, {"joints": joints, "parents": [3, -1, 1, 1, 2], "names": list("abcde")})
    assert found.names == tuple("bcdae")
    assert found.parents.tolist() == [-1, 0, 0, 2, 1]


def test_a_glb_has_the_joints_that_load_asset_gives_it(creature, tmp_path):
    write_skinned_glb(tmp_path / "a.glb", *creature)
    found = read_skeleton_file(tmp_path / "a.glb")
    mesh, rig, *_ = load_asset(tmp_path / "a.glb")
    assert np.array_equal(((found.joints - mesh.centre) * mesh.scale).astype(np.float32), rig.joints)
    assert found.names == rig.names


def from_json(tmp_path: Path, content: object) -> FileSkeleton:
    path = tmp_path / "s.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_skeleton_file(path)


def test_json_names_are_optional_and_null_is_the_root(tmp_path):
    found = from_json(tmp_path, {"joints": [[0, 0, 0], [0, 1, 0]], "parents": [None, 0]})
    assert found.names == ("bone_0", "bone_1")
    assert found.parents.tolist() == [-1, 0]


def test_json_joints_keep_their_order_as_far_as_parents_allow(tmp_path):
    # d is the root; b comes before its parent c.
    content = {
        "joints": [[0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0], [4, 0, 0]],
        "parents": [3, 2, 3, -1, 0],
        "names": ["a", "b", "c", "d", "e"],
    }
    found = from_json(tmp_path, content)
    assert found.names == ("d", "a", "c", "b", "e")
    assert found.parents.tolist() == [-1, 0, 0, 2, 1]
    assert found.joints[:, 0].tolist() == [3, 0, 2, 1, 4]


TWO = [[0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"the JSON cannot be parsed"),
        ([1], r"not an object"),
        ({"joints": TWO}, r"'parents' is missing"),
        ({"joints": TWO, "parent": [-1, 0]}, r"'parent' is unknown; use joints, parents, names"),
        ({"joints": [], "parents": []}, r"'joints' is not a list of positions"),
        ({"joints": [[0, 0]], "parents": [-1]}, r"joint 0 is not \[x, y, z\]"),
        ({"joints": [[0, 0, "1"]], "parents": [-1]}, r"joint 0 is not \[x, y, z\]"),
        ('{"joints": [[0, 0, NaN]], "parents": [-1]}', r"joint 0 is not .* finite numbers"),
        ({"joints": TWO, "parents": [-1]}, r"'parents' has 1 entries for 2 joints"),
        ({"joints": TWO, "parents": 0}, r"'parents' has no list for 2 joints"),
        ({"joints": TWO, "parents": [-1, 2]}, r"joint 1 has parent 2; use the index of a joint, 0 to 1"),
        ({"joints": TWO, "parents": [-1, 0.0]}, r"joint 1 has parent 0.0"),
        ({"joints": TWO, "parents": [-1, True]}, r"joint 1 has parent True"),
        ({"joints": TWO, "parents": [-1, -1]}, r"2 joints without a parent \(0, 1\)"),
        ({"joints": TWO, "parents": [1, 0]}, r"no root; give exactly one joint"),
        ({"joints": [*TWO, [0, 2, 0]], "parents": [-1, 2, 1]}, r"the parents of joint 1 form a cycle"),
        ({"joints": TWO, "parents": [-1, 1]}, r"the parents of joint 1 form a cycle"),
        ({"joints": TWO, "parents": [-1, 0], "names": ["a"]}, r"'names' has 1 entries for 2 joints"),
        ({"joints": TWO, "parents": [-1, 0], "names": ["a", ""]}, r"joint 1 has the name ''"),
        ({"joints": TWO, "parents": [-1, 0], "names": ["a", "a"]}, r"two joints are named 'a'"),
    ],
)
def test_what_is_wrong_with_a_json_file_is_said_in_a_sentence(tmp_path, content, message):
    with pytest.raises(MeshError, match=message) as caught:
        from_json(tmp_path, content)
    assert str(caught.value).startswith(f"{tmp_path / 's.json'}: ")
    assert "\n" not in str(caught.value)


def test_other_files_are_refused(creature, tmp_path):
    mesh, _ = creature
    (tmp_path / "a.fbx").write_bytes(b"x")
    with pytest.raises(MeshError, match=r"no skeletons are read from \.fbx; use GLB"):
        read_skeleton_file(tmp_path / "a.fbx")
    with pytest.raises(MeshError, match=r"gone\.json: cannot be read"):
        read_skeleton_file(tmp_path / "gone.json")
    trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).export(tmp_path / "bare.glb")
    with pytest.raises(MeshError, match=r"bare\.glb: no mesh in the file has a skin"):
        read_skeleton_file(tmp_path / "bare.glb")
