"""The Khronos validator finds no errors in written files, beyond those of the input.

Runs where `node` and the npm package gltf-validator are found: in the folder that `make validator` fills, or
on NODE_PATH.
"""

import json
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from data import Rig, load_mesh, make_creature, write_skinned_glb
from data.formats.load import load_asset
from data.formats.rigged_file import rigged_file
from data.gltf.document import read_gltf
from tests.data.formats.test_rigged_file import MTL, OBJ, a_rig
from tests.data.gltf.test_add_skin import BOX, TURN, box
from tests.data.gltf.test_old_skin import ARMATURE, BODY, HIP, SWORD, walker

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "tests" / "data" / "gltf" / "validate.cjs"
NODE_PATH = os.pathsep.join(
    filter(None, [str(ROOT / "build/validator/node_modules"), os.environ.get("NODE_PATH")])
)


@cache
def missing() -> str:
    """Why the validator cannot run; empty if it can."""
    if shutil.which("node") is None:
        return "node is not installed"
    if validator().returncode == 3:
        return "the npm package gltf-validator is not installed; run make validator"
    return ""


def validator(*files: str) -> subprocess.CompletedProcess[str]:
    command = ["node", str(SCRIPT), *files]
    environment = os.environ | {"NODE_PATH": NODE_PATH}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(autouse=True)
def _installed() -> None:
    if missing():
        pytest.skip(missing())


def errors(path: Path) -> list[str]:
    done = validator(str(path))
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)[str(path)]
    return found


def test_the_validator_finds_errors(tmp_path: Path, builder: Any) -> None:
    builder.node(root=True, mesh=builder.mesh(box(builder)), skin=3)
    assert any("UNRESOLVED_REFERENCE" in error for error in errors(builder.glb(tmp_path / "bad.glb")))


def test_bare_meshes(tmp_path: Path) -> None:
    creature = make_creature(3)
    write_skinned_glb(tmp_path / "a.glb", creature.mesh, creature.rig)
    assert errors(tmp_path / "a.glb") == []
    one = Rig(creature.rig.joints[:1], creature.rig.parents[:1], creature.rig.weights[:, :1])
    write_skinned_glb(tmp_path / "one.glb", creature.mesh, one)
    assert errors(tmp_path / "one.glb") == []


@pytest.mark.parametrize("keep_skin", [False, True])
@pytest.mark.parametrize("damage", [None, "extension", "bind pose"])
def test_files_with_a_skin(tmp_path: Path, builder: Any, keep_skin: bool, damage: str | None) -> None:
    doc = walker(with_bounds(builder)).doc
    if damage == "extension":
        doc["extensions"], doc["extensionsUsed"] = {"VENDOR_bones": {"node": 3}}, ["VENDOR_bones"]
    elif damage == "bind pose":
        del doc["skins"][0]["inverseBindMatrices"]
    path = builder.glb(tmp_path / "in.glb")
    assert errors(path) == []
    mesh = load_mesh(path)
    (tmp_path / "out.glb").write_bytes(rigged_file(path, mesh, a_rig(mesh), keep_skin).glb)
    assert errors(tmp_path / "out.glb") == []


def test_own_joints(tmp_path: Path, builder: Any) -> None:
    path = walker(with_bounds(builder)).glb(tmp_path / "in.glb")
    asset = load_asset(path)
    assert asset.rig is not None
    (tmp_path / "out.glb").write_bytes(rigged_file(path, asset.mesh, asset.rig, own_joints=True).glb)
    assert errors(tmp_path / "out.glb") == []


def test_own_joints_outside_the_scene(tmp_path: Path, builder: Any) -> None:
    """They move into the scene of their mesh, unless a mesh that nothing shows would appear with them."""
    doc = walker(with_bounds(builder)).doc
    doc["nodes"][ARMATURE]["children"] = [HIP]
    doc["scenes"][0]["nodes"] = [BODY]
    scenes = []
    for name in ("hidden_sword.glb", "no_sword.glb"):
        path = builder.glb(tmp_path / name)
        asset = load_asset(path)
        assert asset.rig is not None
        out = tmp_path / f"out_{name}"
        out.write_bytes(rigged_file(path, asset.mesh, asset.rig, own_joints=True).glb)
        scenes.append(read_gltf(out).json["scenes"][0]["nodes"])
        doc["nodes"][SWORD].pop("mesh", None)
    assert scenes == [[BODY], [BODY, ARMATURE]]
    assert errors(tmp_path / "out_no_sword.glb") == []


def test_nan_of_a_replaced_skin(tmp_path: Path, builder: Any) -> None:
    """The validator checks accessors that nothing uses: those of the old skin are emptied, others are not."""
    doc = walker(with_bounds(builder)).doc
    attributes = doc["meshes"][0]["primitives"][0]["attributes"]
    attributes["WEIGHTS_0"] = builder.accessor([[np.nan] * 4] + [[1.0, 0, 0, 0]] * 7)
    bind = np.tile(np.eye(4), (3, 1, 1))
    bind[:, :3, 3] = [[0, 0.5, 0], [0, 0, 0], [-0.5, 0, 0]]
    bind[2] = np.nan
    doc["skins"][0]["inverseBindMatrices"] = builder.matrices(bind)
    path = builder.glb(tmp_path / "in.glb")
    mesh = load_mesh(path)
    (tmp_path / "out.glb").write_bytes(rigged_file(path, mesh, a_rig(mesh)).glb)
    assert errors(tmp_path / "out.glb") == []
    accessors = read_gltf(tmp_path / "out.glb").json["accessors"]
    damaged = {attributes["WEIGHTS_0"], doc["skins"][0]["inverseBindMatrices"]}
    for index, accessor in enumerate(doc["accessors"]):
        assert (accessors[index] == accessor) == (index not in damaged)
        assert accessors[index]["count"] == accessor["count"]


def test_instances_lines_morphs_and_side_files(tmp_path: Path, builder: Any) -> None:
    with_bounds(builder)
    morph = {"targets": [{"POSITION": builder.accessor(BOX.vertices)}]}
    mesh = builder.mesh(box(builder, **morph))
    lines = builder.mesh({"attributes": {"POSITION": builder.accessor([[0, 0, 0], [1.0, 1, 1]])}, "mode": 1})
    for node in ({"mesh": mesh}, {"mesh": mesh, "translation": [2, 0, 0], "rotation": TURN}, {"mesh": lines}):
        builder.node(root=True, **node)
    (tmp_path / "side.bin").write_bytes(bytes(builder.binary))
    path = builder.gltf(tmp_path / "in.gltf", "side.bin")
    assert errors(path) == []
    loaded = load_mesh(path)
    (tmp_path / "out.glb").write_bytes(rigged_file(path, loaded, a_rig(loaded)).glb)
    assert errors(tmp_path / "out.glb") == []


@pytest.mark.parametrize("file_type", ["obj", "ply", "stl", "off"])
def test_other_formats(tmp_path: Path, file_type: str) -> None:
    path = tmp_path / f"in.{file_type}"
    ball = trimesh.creation.icosphere(subdivisions=2)
    ball.visual.vertex_colors = np.tile([200, 100, 50, 255], (len(ball.vertices), 1))
    ball.export(path)
    if file_type == "obj":
        path.write_text(OBJ)
        (tmp_path / "two words.mtl").write_text(MTL)
    mesh = load_mesh(path)
    (tmp_path / "out.glb").write_bytes(rigged_file(path, mesh, a_rig(mesh)).glb)
    assert errors(tmp_path / "out.glb") == []


def with_bounds(builder: Any) -> Any:
    """The builder, with the bounds in every accessor that glTF requires of some."""
    plain = builder.accessor

    def accessor(values: Any, dtype: str = "float32", **extra: Any) -> int:
        array = np.asarray(values, dtype=dtype)
        array = array.reshape(len(array), -1)
        bounds = {"min": array.min(axis=0).tolist(), "max": array.max(axis=0).tolist()}
        return int(plain(values, dtype, **bounds, **extra))

    builder.accessor = accessor
    return builder
