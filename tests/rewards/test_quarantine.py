"""The list of quarantined meshes on disk: written, read back, ignored, refused."""

import json

import pytest

from rewards.quarantine import QuarantinedMesh, QuarantineFile

MESH = QuarantinedMesh("fox", "ab12", "score", ("scorer-0: it died", "scorer-1: it hung"), ("t1", "t2"))


def test_what_is_added_is_read_again(tmp_path):
    path = tmp_path / "run" / "quarantine.json"
    listed = QuarantineFile(path)
    assert listed.meshes == []
    listed.step = 12
    added = listed.add(MESH, "meshes/fox.glb")
    assert (added.step, added.file, added.name) == (12, "meshes/fox.glb", "fox")
    again = QuarantineFile(path)
    assert again.meshes == [added]
    again.add(QuarantinedMesh("cow", "cd34", "prepare", ("r",), ("t",)), None)
    assert [mesh.name for mesh in QuarantineFile(path).meshes] == ["fox", "cow"]
    assert [entry.name for entry in path.parent.iterdir()] == ["quarantine.json"]
    assert QuarantineFile(path, honour=False).meshes == []


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"meshes": [{}]}', '{"meshes": 3}', json.dumps({"meshes": [{"name": "x"}]})]
)
def test_a_damaged_list_is_refused(tmp_path, text):
    path = tmp_path / "quarantine.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"quarantine.json is not a list of quarantined meshes .*delete it"):
        QuarantineFile(path)
    assert QuarantineFile(path, honour=False).meshes == []


def test_without_a_path_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    QuarantineFile(None).add(MESH, None)
    assert list(tmp_path.iterdir()) == []
