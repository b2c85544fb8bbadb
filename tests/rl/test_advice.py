"""Stand-ins for files, passed-over files and a long RAY_TMPDIR, as the commands report them."""

import json
import shutil
from pathlib import Path

import pytest

from data import make_creature, prepare
from data.gltf.skinned import write_skinned_glb
from policy import convert
from rl import evaluate, rig
from tests.rl import tiny

STAND_INS = {
    "pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n",
        "this is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository",
    ),
    "page": (
        b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n",
        "this is an HTML page, not the file itself; download the raw file again",
    ),
}
each_stand_in = pytest.mark.parametrize(("content", "advice"), STAND_INS.values(), ids=STAND_INS)


@pytest.fixture
def creature_file(tmp_path: Path) -> Path:
    creature = make_creature(1)
    (tmp_path / "meshes").mkdir()
    write_skinned_glb(tmp_path / "meshes" / "beast.glb", creature.mesh, creature.rig)
    return tmp_path / "meshes" / "beast.glb"


@pytest.fixture
def recipe_file(policy_path, tmp_path):
    return str(tiny.write_recipe_file(tmp_path / "r.yaml", policy_path, tmp_path / "run", {}))


@each_stand_in
@pytest.mark.parametrize("suffix", ["glb", "gltf", "vrm", "obj", "ply", "stl", "off"])
def test_a_mesh(content, advice, suffix, recipe_file, tmp_path, capsys):
    path = tmp_path / f"mesh.{suffix}"
    path.write_bytes(content)
    assert rig.main([recipe_file, f"rig.mesh={path}"]) == 2
    assert capsys.readouterr().err == f"error: {path}: {advice}\n"


@each_stand_in
def test_the_buffer_of_a_gltf(content, advice, recipe_file, tmp_path, capsys):
    document = {
        "asset": {"version": "2.0"},
        "buffers": [{"uri": "mesh.bin", "byteLength": 36}],
        "bufferViews": [{"buffer": 0, "byteLength": 36}],
        "accessors": [{"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3"}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
        "nodes": [{"mesh": 0}],
        "scenes": [{"nodes": [0]}],
    }
    (tmp_path / "mesh.gltf").write_text(json.dumps(document))
    (tmp_path / "mesh.bin").write_bytes(content)
    assert rig.main([recipe_file, f"rig.mesh={tmp_path}/mesh.gltf"]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/mesh.bin: {advice}\n"


@each_stand_in
@pytest.mark.parametrize(
    "file",
    [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "skin_vae/config.json",
        "skin_vae/model.safetensors",
    ],
)
def test_a_file_of_a_policy(content, advice, file, policy_path, creature_file, recipe_file, tmp_path, capsys):
    folder = tmp_path / "policy"
    shutil.copytree(policy_path, folder)
    (folder / file).write_bytes(content)
    said = f"{folder / file}: {advice}\n"
    assert rig.main([recipe_file, f"rig.mesh={creature_file}", f"policy.path={folder}"]) == 2
    assert capsys.readouterr().err == f"error: 'policy.path': {said}"
    for command in (["info", str(folder)], ["export", str(folder), "--out", str(tmp_path / "out.ckpt")]):
        assert convert.main(command) == 2
        assert capsys.readouterr().err == f"error: {said}"


@each_stand_in
def test_a_file_in_place_of_a_policy(content, advice, creature_file, recipe_file, tmp_path, capsys):
    path = tmp_path / "policy"
    path.write_bytes(content)
    assert rig.main([recipe_file, f"rig.mesh={creature_file}", f"policy.path={path}"]) == 2
    assert capsys.readouterr().err == f"error: 'policy.path': {path}: {advice}\n"


@each_stand_in
@pytest.mark.parametrize("suffix", ["glb", "npz", "json"])
def test_a_skeleton(content, advice, suffix, creature_file, recipe_file, tmp_path, capsys):
    path = tmp_path / f"skeleton.{suffix}"
    path.write_bytes(content)
    assert rig.main([recipe_file, f"rig.mesh={creature_file}", f"rig.skeleton={path}"]) == 2
    assert capsys.readouterr().err == f"error: {path}: {advice}\n"


@each_stand_in
@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_a_file_of_groups(content, advice, suffix, creature_file, tmp_path, capsys):
    path = tmp_path / f"groups.{suffix}"
    path.write_bytes(content)
    for groups in (str(path), f"family:{path}"):
        assert prepare.main([str(creature_file), "--out", str(tmp_path / "out"), "--group", groups]) == 2
        assert capsys.readouterr().err == f"error: {path}: {advice}\n"


@each_stand_in
@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_file_of_adapters(content, advice, file, policy_path, tmp_path, capsys):
    folder = tmp_path / "adapters"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(policy_path)}))
    (folder / file).write_bytes(content)
    assert convert.main(["info", str(folder)]) == 2
    assert capsys.readouterr().err == f"error: {folder / file}: {advice}\n"


@each_stand_in
def test_a_checkpoint(content, advice, policy_path, tmp_path, capsys):
    path = tmp_path / "grpo_1400.ckpt"
    path.write_bytes(content)
    out = ["--out", str(tmp_path / "out")]
    for command in (
        ["info", str(path)],
        ["import", str(path), *out],
        ["export", str(policy_path), "--like", str(path), *out],
    ):
        assert convert.main(command) == 2
        assert capsys.readouterr().err == f"error: {path}: {advice}\n"


@each_stand_in
def test_a_recipe(content, advice, tmp_path, capsys):
    (tmp_path / "base.yaml").write_bytes(content)
    (tmp_path / "r.yaml").write_text("defaults: [base.yaml]\n")
    for name in ("base.yaml", "r.yaml"):
        assert rig.main([str(tmp_path / name)]) == 2
        assert capsys.readouterr().err == f"error: {tmp_path}/base.yaml: {advice}\n"


@each_stand_in
def test_recorded_poses(content, advice, creature_file, recipe_file, tmp_path, capsys):
    path = tmp_path / "walk.npz"
    path.write_bytes(content)
    assert rig.main([recipe_file, f"rig.mesh={creature_file}", f"deformation.poses={path}"]) == 2
    assert f"{path}: {advice}" in capsys.readouterr().err


@each_stand_in
@pytest.mark.parametrize("name", ["rig.glb", "rig.npz", "rig.txt", "rig.obj"])
def test_a_rig(content, advice, name, tmp_path, capsys):
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "rig.txt").write_text("joints a 0 0 0\nroot a\nskin 0 a 1\n")
    (folder / name).write_bytes(content)
    assert prepare.main([str(folder), "--out", str(tmp_path / "out")]) == 2
    assert f"{folder / name}: {advice}" in capsys.readouterr().err


@each_stand_in
def test_the_manifest_of_prepared_rigs(content, advice, creature_file, recipe_file, tmp_path, capsys):
    out = tmp_path / "rigs"
    assert prepare.main([str(creature_file), "--out", str(out)]) == 0
    (out / "manifest.json").write_bytes(content)
    capsys.readouterr()
    assert evaluate.main([recipe_file, f"data.meshes={out}"]) == 2
    assert capsys.readouterr().err == f"error: {out}/manifest.json: {advice}\n"


def test_what_a_folder_of_meshes_passes_over(creature_file, recipe_file, capsys):
    folder = creature_file.parent
    for name in ("a.blend", "b.blend", "c.zip", "beast.png", "LICENSE"):
        (folder / name).write_bytes(b"x")
    line = f"{folder}: passed over 3 files (2 .blend, 1 .zip); convert 3D files to GLB, unpack archives\n"
    assert evaluate.main([recipe_file, f"data.meshes={folder}"]) == 0
    assert f"note: {line}" in capsys.readouterr().err
    assert prepare.main([str(folder), "--out", str(folder.parent / "out")]) == 0
    assert f"note: {line}" in capsys.readouterr().err
    creature_file.unlink()
    for command in (
        lambda: evaluate.main([recipe_file, f"data.meshes={folder}"]),
        lambda: prepare.main([str(folder), "--out", str(folder.parent / "out")]),
    ):
        assert command() == 2
        assert capsys.readouterr().err == f"error: {line}"


def test_a_long_ray_tmpdir(recipe_file, monkeypatch, tmp_path, capsys):
    folder = tmp_path / ("x" * 60)
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    assert evaluate.main([recipe_file, "workers.backend=ray"]) == 1
    assert (
        f"failed: a local Ray cannot start: RAY_TMPDIR is '{folder}', whose {len(str(folder))} bytes leave "
        "no room for the names of Ray's sockets; set RAY_TMPDIR to a shorter path (up to 39 bytes), such as "
        "/tmp"
    ) in capsys.readouterr().err


@each_stand_in
def test_the_materials_and_images_of_an_obj(content, advice, recipe_file, tmp_path, capsys):
    """They are no reason to give up the rig: a note says what is wrong."""
    mesh = make_creature(1).mesh
    lines = ["mtllib a.mtl b.mtl", "usemtl skin", *(f"v {x} {y} {z}" for x, y, z in mesh.vertices)]
    lines += [f"f {a} {b} {c}" for a, b, c in mesh.faces + 1]
    (tmp_path / "mesh.obj").write_text("\n".join(lines) + "\n")
    (tmp_path / "a.mtl").write_bytes(content)
    (tmp_path / "b.mtl").write_text("newmtl skin\nmap_Kd skin.png\n")
    (tmp_path / "skin.png").write_bytes(content)
    assert rig.main([recipe_file, f"rig.mesh={tmp_path}/mesh.obj"]) == 0
    said = "".join(capsys.readouterr())
    assert f"the material file a.mtl: {advice}" in said
    assert f"the image file skin.png: {advice}" in said


@each_stand_in
def test_the_image_of_a_ply(content, advice, recipe_file, tmp_path, capsys):
    mesh = make_creature(1).mesh
    lines = [
        "ply",
        "format ascii 1.0",
        "comment TextureFile skin.png",
        f"element vertex {len(mesh.vertices)}",
    ]
    lines += [f"property float {name}" for name in "xyzst"]
    lines += [f"element face {len(mesh.faces)}", "property list uchar int vertex_indices", "end_header"]
    lines += [f"{x} {y} {z} 0 0" for x, y, z in mesh.vertices]
    lines += [f"3 {a} {b} {c}" for a, b, c in mesh.faces]
    (tmp_path / "mesh.ply").write_text("\n".join(lines) + "\n")
    (tmp_path / "skin.png").write_bytes(content)
    assert rig.main([recipe_file, f"rig.mesh={tmp_path}/mesh.ply"]) == 0
    assert f"the image file skin.png: {advice}" in capsys.readouterr().out


def test_an_image_that_no_reader_knows(recipe_file, tmp_path, capsys):
    mesh = make_creature(1).mesh
    lines = ["mtllib a.mtl", "usemtl skin", *(f"v {x} {y} {z}" for x, y, z in mesh.vertices)]
    lines += [f"f {a} {b} {c}" for a, b, c in mesh.faces + 1]
    (tmp_path / "mesh.obj").write_text("\n".join(lines) + "\n")
    (tmp_path / "a.mtl").write_text("newmtl skin\nmap_Kd skin.tga\nmap_Ke skin.tga\n")
    (tmp_path / "skin.tga").write_bytes(b"no image")
    assert rig.main([recipe_file, f"rig.mesh={tmp_path}/mesh.obj"]) == 0
    said = capsys.readouterr().out
    assert said.count("the image file skin.tga cannot be read; export it as PNG") == 1
