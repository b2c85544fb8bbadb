"""Pictures of rigged files: textures as read, joints turned as any viewer would, the command."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import make_creature, read_skinned_glb
from data.gltf.document import read_gltf
from data.gltf.editing import GltfEditor
from data.gltf.skinned import write_skinned_glb
from rewards.lbs import linear_blend_skinning, skinning_matrices
from rewards.poses import random_rotations
from rl import draw_posed
from rl.render.textured_scene import read_scene


@pytest.fixture
def creature_file(tmp_path: Path) -> Path:
    creature = make_creature(1)
    write_skinned_glb(tmp_path / "beast.glb", creature.mesh, creature.rig)
    return tmp_path / "beast.glb"


def test_the_command(creature_file, tmp_path, capsys):
    out = tmp_path / "deep" / "beast.png"
    assert draw_posed.main([str(creature_file), "--out", str(out), "--credit", "Nobody, CC0"]) == 0
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture).astype(int)
    assert pixels.shape[1] == 1200
    background = pixels[40, 0]
    panels = np.abs(pixels[34:-22] - background).sum(axis=2).reshape(-1, 3, 400).swapaxes(0, 1) > 30
    assert (panels.mean(axis=(1, 2)) > 0.02).all()  # something in each
    assert (panels[0] != panels[2]).any()  # posed
    assert not panels[:, [0, -1]].any()  # nothing is cut off
    again = tmp_path / "again.png"
    assert draw_posed.main([str(creature_file), "--out", str(again), "--credit", "Nobody, CC0"]) == 0
    assert again.read_bytes() == out.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--turn", "tail=1,2,3"],
            "--turn tail=1,2,3: write JOINT=X,Y,Z in degrees, with one of the joints 0 ",
        ),
        (["--turn", "0=1,2"], "--turn 0=1,2: write JOINT=X,Y,Z"),
        (["--before", "missing.glb"], "No such file"),
    ],
)
def test_arguments_that_cannot_be_used(arguments, message, creature_file, tmp_path, capsys):
    code = draw_posed.main([str(creature_file), "--out", str(tmp_path / "x.png"), *arguments])
    assert code == (1 if "missing" in arguments[1] else 2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()


def test_a_pose_is_linear_blend_skinning(creature_file):
    """The same places as the rewards' own skinning, in the frame of the file."""
    scene = read_scene(creature_file)
    mesh, rig = read_skinned_glb(creature_file)
    rest = (scene.posed()[0][0].points - mesh.centre) * mesh.scale
    np.testing.assert_allclose(rest, mesh.vertices, atol=1e-5)
    rotations = random_rotations(1, len(rig.joints), 40, 3)[0]
    order = [rig.names.index(name) for name in scene.skeleton.names]
    turns = {place: rotations[joint] for place, joint in enumerate(order)}
    (surface,), joints = scene.posed(turns)
    weights = rig.weights / rig.weights.sum(axis=1, keepdims=True)
    matrices = skinning_matrices(rig.joints, rig.parents, rotations[None])
    expected = linear_blend_skinning(mesh.vertices, weights, matrices)[0]
    np.testing.assert_allclose((surface.points - mesh.centre) * mesh.scale, expected, atol=1e-4)
    assert np.abs(expected - mesh.vertices).max() > 0.1
    assert joints.shape == (len(rig.joints), 3)


def test_a_texture_is_read_from_the_file(creature_file, tmp_path):
    image = io.BytesIO()
    Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]], dtype=np.uint8)).save(image, "png")
    editor = GltfEditor(read_gltf(creature_file))
    editor.add("images", {"bufferView": editor.add_view(image.getvalue()), "mimeType": "image/png"})
    editor.add("textures", {"source": 0})
    rough = {"baseColorTexture": {"index": 0}, "baseColorFactor": [0.5, 1, 1, 1]}
    editor.add("materials", {"pbrMetallicRoughness": rough, "alphaMode": "MASK", "alphaCutoff": 0.3})
    primitive = editor.json["meshes"][0]["primitives"][0]
    primitive["material"] = 0
    primitive["attributes"]["TEXCOORD_0"] = primitive["attributes"]["POSITION"]
    path = tmp_path / "textured.glb"
    path.write_bytes(editor.glb())
    (surface,), _ = read_scene(path).posed()
    np.testing.assert_array_equal(surface.material.texture, [[[1, 0, 0, 1], [0, 0, 1, 1]]])
    assert surface.material.factor.tolist() == [0.5, 1, 1, 1]
    assert (surface.material.alpha_mode, surface.material.alpha_cutoff) == ("MASK", 0.3)
