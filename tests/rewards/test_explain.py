"""`python -m rewards.explain`: pictures of a rig's rewards, through its command line."""

import json

import pytest
from PIL import Image

import data
from rewards.explain import main


def test_pictures_of_a_users_rig(tmp_path, capsys):
    creature = data.make_creature(3)
    path = tmp_path / "creature.glb"
    data.write_skinned_glb(path, creature.mesh, creature.rig)
    assert main([str(path), "--out", str(tmp_path / "out")]) == 0
    assert "coverage" in capsys.readouterr().out
    for name in ("occupancy", "coverage", "containment", "stretch"):
        with Image.open(tmp_path / "out" / f"{name}.png") as picture:
            assert picture.size[0] > 500
            assert len(picture.convert("RGB").getcolors(1 << 20)) > 20  # something is drawn
    report = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert set(report["rewards"]) == {"coverage", "containment", "sparsity", "smoothness"}
    assert report["diagnostics"]["joints"] == len(creature.rig.joints)


@pytest.mark.parametrize("content", [b"not a GLB", b""])
def test_a_file_that_is_no_rig_is_refused_in_one_sentence(tmp_path, capsys, content):
    path = tmp_path / "broken.glb"
    path.write_bytes(content)
    assert main([str(path), "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {path}: ")
    assert len(message.splitlines()) == 1


def test_a_missing_pose_file_is_refused_in_one_sentence(tmp_path, capsys):
    creature = data.make_creature(3, "biped")
    data.write_skinned_glb(tmp_path / "biped.glb", creature.mesh, creature.rig)
    poses = tmp_path / "poses.npz"
    arguments = [str(tmp_path / "biped.glb"), "--out", str(tmp_path / "out"), "--poses", str(poses)]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {poses}: ")
    assert len(message.splitlines()) == 1
