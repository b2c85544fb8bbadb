"""Rigging a mesh file: the best of several rigs, in the file's own frame, as GLB and picture."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from data import (
    RiggedMesh,
    depth_first,
    load_mesh,
    make_creature,
    read_skinned_glb,
    write_rig_npz,
    write_skinned_glb,
)
from data.command_line import RunFailedError
from data.formats.skeleton_files import read_skeleton_file
from data.gltf.document import read_gltf
from data.rig import reorder
from data.sets.dataset import make_sample
from rewards.poses import pose_seed
from rewards.score import prepare_scoring_mesh, score_rig
from rl import rig
from rl.given_skeleton import give
from rl.recipe import load_recipe, reward_settings
from rl.rigging import rig_mesh
from tests.rl import tiny

# Far from the mesh frame: metres instead of [-1, 1], and not at the origin.
SCALE, OFFSET = 37.0, np.array([100.0, -20.0, 3.0])


@pytest.fixture
def creature_file(tmp_path):
    mesh = make_creature(1).mesh
    path = tmp_path / "beast.obj"
    trimesh.Trimesh(mesh.vertices * SCALE + OFFSET, mesh.faces, process=False).export(path)
    return path


@pytest.fixture
def recipe_file(policy_path, tmp_path):
    return str(tiny.write_recipe_file(tmp_path / "r.yaml", policy_path, tmp_path / "run", {}))


def test_a_mesh_file_becomes_a_rigged_glb_in_its_own_frame(creature_file, recipe_file, tmp_path, capsys):
    output = tmp_path / "deep" / "rigged.glb"
    assert rig.main([recipe_file, f"rig.mesh={creature_file}", f"rig.out={output}"]) == 0
    shown = capsys.readouterr().out
    mesh, found = read_skinned_glb(output)
    assert f"{len(found.joints)} joints" in shown
    assert str(output) in shown

    scene = trimesh.load(output)
    original = trimesh.load(creature_file, process=False)
    np.testing.assert_allclose(scene.bounds, original.bounds, atol=1e-3)
    # The policy says coordinates in [-1, 1], which is the bounding box's longest side around its centre.
    joints = found.joints / mesh.scale + mesh.centre
    centre, half = original.bounds.mean(axis=0), np.ptp(original.bounds, axis=0).max() / 2
    assert (np.abs(joints - centre) <= half * 1.01).all()
    assert np.abs(joints - centre).max() > half * 0.3
    assert np.allclose(found.weights.sum(axis=1), 1, atol=1e-3)
    assert (tmp_path / "deep" / "rigged.png").read_bytes().startswith(b"\x89PNG")


def test_a_sheet_and_a_viewer_beside_the_glb(creature_file, recipe_file, tmp_path, capsys):
    output = tmp_path / "rigged.glb"
    assert rig.main([recipe_file, f"rig.mesh={creature_file}", f"rig.out={output}"]) == 0
    assert sorted(path.name for path in tmp_path.glob("rigged*")) == ["rigged.glb", "rigged.png"]
    wanted = ["rig.sheet=true", "rig.viewer=true"]
    assert rig.main([recipe_file, f"rig.mesh={creature_file}", f"rig.out={output}", *wanted]) == 0
    shown = capsys.readouterr().out
    assert f"posed sheet: {tmp_path / 'rigged_sheet.png'}\n3D viewer: {tmp_path / 'rigged.html'}\n" in shown
    with Image.open(tmp_path / "rigged_sheet.png") as picture:
        assert picture.width == 5 * 300
    page = (tmp_path / "rigged.html").read_text()
    data = json.loads(re.findall(r'id="data">(.*?)</script>', page)[0])["viewer"]
    _, found = read_skinned_glb(output)
    assert len(data["rigs"][0]["parents"]) == len(found.joints)
    total = float(re.findall(r"total reward ([\d.]+)", shown)[0])
    assert data["rigs"][0]["numbers"]["total"] == pytest.approx(total, abs=1e-3)


def test_how_the_file_was_read_is_noted(recipe_file, tmp_path, capsys):
    case = Path(__file__).parents[1] / "data" / "gltf" / "cases" / "fewer_ibm_than_joints.glb"
    output = tmp_path / "rigged.glb"
    assert rig.main([recipe_file, f"rig.mesh={case}", f"rig.out={output}", "rig.candidates=4"]) == 0
    note = "placed 1 joint without a usable inverse bind matrix by the neighbouring joints: end"
    assert f"note: {case}: {note}\n" in capsys.readouterr().err


def test_without_a_name_the_glb_goes_beside_the_mesh(creature_file, recipe_file):
    assert rig.main([recipe_file, f"rig.mesh={creature_file}", "rig.candidates=4"]) == 0
    assert read_skinned_glb(creature_file.with_name("beast_rigged.glb"))
    assert creature_file.with_name("beast_rigged.png").is_file()


def test_an_obj_comes_back_with_its_texture(creature_file, recipe_file, tmp_path, capsys):
    image = creature_file.with_name("skin.png")
    Image.new("RGB", (4, 4), (200, 100, 0)).save(image)
    creature_file.with_name("beast.mtl").write_text("newmtl fur\nmap_Kd skin.png\n")
    lines = creature_file.read_text().splitlines()
    faces = [f"f {line[2:].replace(' ', '/1 ')}/1" for line in lines if line.startswith("f ")]
    places = [line for line in lines if line.startswith("v ")]
    creature_file.write_text("\n".join(["mtllib beast.mtl", *places, "vt 0 0", "usemtl fur", *faces]))
    output = tmp_path / "out.glb"
    assert rig.main([recipe_file, f"rig.mesh={creature_file}", f"rig.out={output}"]) == 0
    assert image.read_bytes() in output.read_bytes()
    (geometry,) = trimesh.load_scene(output).geometry.values()
    assert geometry.visual.material.name == "fur"
    assert geometry.visual.material.baseColorTexture.size == (4, 4)
    assert "four influences per vertex: " in capsys.readouterr().out


def test_an_old_skin_is_replaced_or_kept(recipe_file, tmp_path, capsys):
    creature = make_creature(1)
    source, output = tmp_path / "beast.glb", tmp_path / "out.glb"
    write_skinned_glb(source, creature.mesh, creature.rig)
    joints = len(creature.rig.joints)
    for keep, shown in ((False, True), (True, False)):
        command = [
            recipe_file,
            f"rig.mesh={source}",
            f"rig.out={output}",
            f"rig.keep_skin={str(keep).lower()}",
        ]
        assert rig.main(command) == 0
        line = f"replaced the file's skin 'rig' ({joints} joints); set rig.keep_skin=true to keep the old one"
        assert (line in capsys.readouterr().out.splitlines()) == shown
        mesh, found = read_skinned_glb(output)
        np.testing.assert_allclose(mesh.vertices, creature.mesh.vertices, atol=1e-6)
        nodes = len(read_gltf(output).items("nodes"))
        assert nodes == 1 + len(found.joints) + keep * joints
        assert len(read_gltf(output).items("skins")) == 1 + keep


def test_the_best_candidate_is_kept(policy, make_recipe, creature_file):
    """More candidates with the same seeds: never a lower total, and the total is the weighted sum."""
    recipe = make_recipe()
    sample = make_sample(load_mesh(creature_file), None, 64, 0)
    totals = []
    for candidates in (1, 12):
        rigged = rig_mesh(policy, sample, recipe, candidates, 1.0, seed=0)
        weights = recipe.rewards.weights
        assert rigged.total == pytest.approx(sum(weights[k] * rigged.rewards[k] for k in weights))
        totals.append(rigged.total)
    assert totals[0] < totals[1]
    again = rig_mesh(policy, sample, recipe, 12, 1.0, seed=0)
    assert np.array_equal(again.rig.joints, rigged.rig.joints)
    assert np.array_equal(again.rig.weights, rigged.rig.weights)


def test_no_whole_rig_is_a_failed_run(creature_file, recipe_file, policy, make_recipe, capsys):
    short = "train.max_completion_length=4"
    assert rig.main([recipe_file, f"rig.mesh={creature_file}", short]) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("failed: none of the 8 rigs sampled for beast was complete")
    assert not creature_file.with_name("beast_rigged.glb").exists()
    with pytest.raises(RunFailedError):
        rig_mesh(
            policy,
            make_sample(load_mesh(creature_file), None, 64, 0),
            make_recipe({"train.max_completion_length": 4}),
            2,
            1.0,
            0,
        )


# ------------------------------------------------------------------ rig.skeleton


@pytest.fixture
def skinned_file(tmp_path):
    """A skinned creature whose joints are in another order than the tokens', far from the mesh frame."""
    creature = make_creature(1)
    mesh = replace(creature.mesh, centre=OFFSET, scale=1 / SCALE)
    canonical = depth_first(creature.rig)
    names = tuple(f"joint {i}" for i in range(len(canonical.joints)))
    turned = breadth_first(replace(canonical, names=names))
    assert not np.array_equal(turned.joints, canonical.joints)
    path = tmp_path / "skinned.glb"
    write_skinned_glb(path, mesh, turned)
    return path


def breadth_first(rig):
    """The rig in breadth-first order: parents come before children, but not as in the tokens."""
    depth = np.zeros(len(rig.joints), dtype=int)
    for joint, parent in enumerate(rig.parents[1:], start=1):
        depth[joint] = depth[parent] + 1
    return reorder(rig, np.argsort(depth, kind="stable"))


def skeleton_files(folder, glb):
    """The skeleton of a GLB as each kind of file."""
    found = read_skeleton_file(glb)
    mesh, rig = read_skinned_glb(glb)
    content = {"joints": found.joints.tolist(), "parents": found.parents.tolist(), "names": found.names}
    (folder / "s.json").write_text(json.dumps(content))
    write_rig_npz(folder / "s.npz", RiggedMesh(mesh, rig))
    (folder / "s.vrm").write_bytes(glb.read_bytes())
    return {"glb": glb, **{kind: folder / f"s.{kind}" for kind in ("json", "npz", "vrm")}}


@pytest.mark.parametrize("choice", ["own", "glb", "json", "npz", "vrm"])
def test_a_given_skeleton_comes_back_as_it_is(skinned_file, recipe_file, tmp_path, capsys, choice):
    """Joints, names and hierarchy; the skin is new."""
    file = "own" if choice == "own" else skeleton_files(tmp_path, skinned_file)[choice]
    output = tmp_path / "out.glb"
    assert (
        rig.main([recipe_file, f"rig.mesh={skinned_file}", f"rig.out={output}", f"rig.skeleton={file}"]) == 0
    )
    given, found = read_skeleton_file(skinned_file), read_skeleton_file(output)
    assert found.names == given.names
    assert found.parents.tolist() == given.parents.tolist()
    # Single precision of coordinates up to 137.
    np.testing.assert_allclose(found.joints, given.joints, rtol=0, atol=2e-5)
    assert f"{len(given.joints)} joints" in capsys.readouterr().out
    before, after = read_skinned_glb(skinned_file)[1], read_skinned_glb(output)[1]
    assert not np.allclose(before.weights, after.weights, atol=0.1)


def test_a_skeleton_is_given_to_a_mesh_without_one(creature_file, skinned_file, recipe_file, tmp_path):
    """Of an OBJ file of the same creature, in the same unit and place."""
    output = tmp_path / "out.glb"
    file = skeleton_files(tmp_path, skinned_file)["json"]
    assert (
        rig.main([recipe_file, f"rig.mesh={creature_file}", f"rig.out={output}", f"rig.skeleton={file}"]) == 0
    )
    given, found = read_skeleton_file(file), read_skeleton_file(output)
    assert found.names == given.names
    np.testing.assert_allclose(found.joints, given.joints, rtol=0, atol=2e-5)


def test_weights_go_to_the_joints_they_were_decoded_for(policy, make_recipe):
    """The same skeleton in another order gets, joint by joint, the same weights.

    Its smoothness differs: poses turn joints by index.
    """
    creature = make_creature(4)
    sample = make_sample(creature.mesh, None, 64, 0)
    canonical = depth_first(creature.rig)
    other = breadth_first(canonical)
    assert other.names != canonical.names
    rigged = []
    for one in (canonical, other):
        skeleton = give(one.joints, one.parents, one.names, policy.vocabulary)
        rigged.append(rig_mesh(policy, sample, make_recipe(), 1, 1.0, 0, skeleton))
        assert rigged[-1].rig.names == one.names
        assert np.array_equal(rigged[-1].rig.joints, one.joints)
    first, second = rigged
    for name in ("coverage", "containment", "sparsity"):
        assert first.rewards[name] == pytest.approx(second.rewards[name], abs=1e-6)
    columns = [second.rig.names.index(name) for name in first.rig.names]
    np.testing.assert_allclose(second.rig.weights[:, columns], first.rig.weights, atol=1e-5)
    assert np.ptp(first.rig.weights, axis=1).max() > 1e-3  # columns differ


def test_a_file_with_a_given_skeleton_gives_the_score_that_was_printed(skinned_file, monkeypatch, capsys):
    """Its joints are in another order than the tokens', and the shipped policy's weights differ by joint."""
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    output = skinned_file.with_name("out.glb")
    overrides = [f"rig.mesh={skinned_file}", f"rig.out={output}", "rig.skeleton=own", "rig.candidates=1"]
    assert rig.main(["recipes/base.yaml", *overrides]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("as written:"))
    mesh, found = read_skinned_glb(output)
    rewards = reward_settings(load_recipe("recipes/base.yaml", overrides))
    scoring = prepare_scoring_mesh(mesh.vertices, mesh.faces, rewards)
    turns = rewards.rotations(len(found.joints), pose_seed(0, skinned_file.stem, 0))
    weights = found.weights[scoring.source]
    score = score_rig(scoring, found.joints, found.parents, weights, turns, rewards)
    for name, value in score.rewards.items():
        shown = float(re.search(rf"{name} (\d\.\d+)", line)[1])
        # A containment sample may fall into the next cell: the file's joints are rounded in its own frame.
        assert value == pytest.approx(shown, abs=2e-2 if name == "containment" else 1e-3)


def test_joints_outside_the_box_are_kept_and_counted(creature_file, recipe_file, tmp_path, capsys):
    bounds = trimesh.load(creature_file, process=False).bounds
    middle, top = bounds.mean(axis=0), bounds[1] + np.array([0, SCALE, 0])
    (tmp_path / "s.json").write_text(
        json.dumps({"joints": [middle.tolist(), top.tolist()], "parents": [-1, 0]})
    )
    output = tmp_path / "out.glb"
    given = f"rig.skeleton={tmp_path / 's.json'}"
    assert rig.main([recipe_file, f"rig.mesh={creature_file}", f"rig.out={output}", given]) == 0
    np.testing.assert_allclose(read_skeleton_file(output).joints, [middle, top], rtol=0, atol=2e-5)
    assert "1 of the 2 given joints lie outside the mesh's box" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], ["rig.mesh=FILE"]),
        (["rig.mesh=/nowhere.glb"], ["nowhere.glb"]),
        (["rig.mesh={bad}"], ["bad.ply"]),
        (["rig.mesh={mesh}", "rig.out=/proc/none/rig.glb"], ["'rig.out'", "/proc/none"]),
        (["rig.mesh={mesh}", "rig.out=rig.png"], ["'rig.out'", ".glb"]),
        (["rig.mesh={mesh}", "rig.candidates=0"], ["'rig.candidates'"]),
        (["rig.mesh={mesh}", "rig.candidate=3"], ["'rig.candidates'"]),
        (["rig.mesh={mesh}", "rig.temperature=-1"], ["'rig.temperature'"]),
        (
            ["rig.mesh={mesh}", "rig.skeleton=own"],
            ["'rig.skeleton'", "holds no skeleton (OBJ files cannot)", "beast.obj"],
        ),
        (["rig.mesh={mesh}", "rig.skeleton=/nowhere.json"], ["nowhere.json"]),
        (["rig.mesh={mesh}", "rig.skeleton={bad}"], ["bad.ply", "GLB, glTF or VRM"]),
        (["rig.mesh={mesh}", "rig.skeleton={roots}"], ["roots.json", "exactly one joint"]),
    ],
)
def test_user_errors(creature_file, recipe_file, tmp_path, capsys, overrides, words):
    bad = tmp_path / "bad.ply"
    bad.write_text("ply\nformat ascii 1.0\nend_header\n")
    roots = tmp_path / "roots.json"
    roots.write_text('{"joints": [[0, 0, 0], [0, 1, 0]], "parents": [-1, -1]}')
    given = [override.format(mesh=creature_file, bad=bad, roots=roots) for override in overrides]
    assert rig.main([recipe_file, *given]) == 2
    shown = capsys.readouterr()
    assert all(word in shown.err for word in words), shown.err
    assert len(shown.err.strip().splitlines()) == 1
    assert shown.out == ""


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        rig.main(["--help"])
    assert stop.value.code == 0
    assert "rl.rig" in capsys.readouterr().out


def test_a_z_up_mesh_is_turned(creature_file, recipe_file, tmp_path):
    """The GLB that is written is y-up: (x, y, z) -> (x, z, -y). A glTF file cannot be z-up."""
    output = tmp_path / "rigged.glb"
    assert rig.main([recipe_file, f"rig.mesh={creature_file}", f"rig.out={output}", "rig.up=z"]) == 0
    lying = load_mesh(creature_file)
    original = lying.vertices / lying.scale + lying.centre
    mesh, _ = read_skinned_glb(output)
    written = mesh.vertices / mesh.scale + mesh.centre
    np.testing.assert_allclose(written, original[:, [0, 2, 1]] * [1, 1, -1], atol=1e-3)
    assert rig.main([recipe_file, f"rig.mesh={output}", "rig.up=z"]) == 2
