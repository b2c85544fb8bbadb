"""RigNet texts: broken and truncated ones are refused; their OBJ meshes are found and keep their indices."""

import re
from pathlib import Path

import pytest

from tests.data.rig_files import OBJ_TEXT, RIG_TEXT, only, refusal, rignet


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("hier knee foot\n", "", "'foot' has no parent and is not the root"),
        ("hier knee foot\n", "hier knee fo", "joint 'fo' is used but never defined"),
        ("hier knee foot\n", "hier knee", "line 11, 'hier knee', cannot be read"),
        ("skin 2 hip 0.5 knee 0.5", "skin 2 hip 0.5 knee", "line 7"),
        ("skin 2 hip 0.5", "skin two hip 0.5", "line 7"),
        ("skin 4", "skin 5", "refers to vertex 5, but the rig has only 5"),
        ("skin 4", "skin -1", "refers to vertex -1, but the rig has only 5"),
        ("skin 4", "skin 99999999999999999999", "vertex index 99999999999999999999 is too large"),
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
    assert "the mesh small_rig.obj is not in" in refusal(path)
    # A quad becomes two triangles; vertex lines keep their numbers.
    quad = rignet(tmp_path, obj=OBJ_TEXT.split("f")[0] + "f 1 2 4 3\n")
    assert only(quad).rigged.mesh.faces.tolist() == [[0, 1, 3], [0, 3, 2]]
    assert "refers to vertex 9" in refusal(rignet(tmp_path, obj=OBJ_TEXT.replace("f 1", "f 9")))
    assert "vertex cannot be read" in refusal(rignet(tmp_path, obj=OBJ_TEXT.replace("100", "1x")))
