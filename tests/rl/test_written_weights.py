"""What `rl.rig` writes is what was scored: weights read back from the file, scores, and posed seams."""

import re
from pathlib import Path

import numpy as np
import pytest
import trimesh

from data import Mesh, Rig, load_mesh, make_creature, read_skinned_glb
from data.gltf.influences import INFLUENCES, as_stored
from data.sets.dataset import make_sample
from data.welding import weld
from rewards.lbs import linear_blend_skinning, skinning_matrices
from rewards.poses import pose_seed, random_rotations
from rewards.score import prepare_scoring_mesh, score_rig
from rl import rig as command
from rl.policy_setup import load_policy
from rl.recipe import load_recipe, reward_settings
from rl.rigging import rig_mesh
from tests.rl import tiny
from tests.seams import flat_shaded, split_at_random

ROOT = Path(__file__).resolve().parents[2]
CREATURE = make_creature(1)


def write_glb(path: Path, mesh: Mesh, uv: bool) -> Path:
    """The mesh as an ordinary GLB: with the normals of its vertices, and with texture coordinates."""
    shape = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    if uv:
        coordinates = np.random.default_rng(0).random((len(mesh.vertices), 2))
        shape.visual = trimesh.visual.TextureVisuals(uv=coordinates)
    shape.export(path, include_normals=True)
    return path


@pytest.fixture(params=["flat", "seams", "degenerate"])
def mesh_file(request, tmp_path) -> Path:
    """A creature with three vertices for each triangle, with seams, or with slivers and doubled corners."""
    mesh = CREATURE.mesh
    if request.param == "flat":
        return write_glb(tmp_path / "flat.glb", flat_shaded(mesh, CREATURE.rig)[0], uv=False)
    vertices, faces, _ = split_at_random(mesh.vertices, mesh.faces, np.random.default_rng(2))
    if request.param == "degenerate":
        # A face without area over copies of two corners of each of 50 faces and the middle between them, a
        # place that no other face has.
        ends = vertices[faces[:50, :2]]
        middle = ends.mean(axis=1, dtype=np.float32)
        more = np.concatenate([ends[:, 0], ends[:, 1], middle])
        slivers = np.arange(150).reshape(3, 50).T + len(vertices)
        vertices, faces = np.concatenate([vertices, more]), np.concatenate([slivers, faces])
    split = Mesh(vertices, faces, "seams", mesh.centre, mesh.scale)
    return write_glb(tmp_path / f"{request.param}.glb", split, uv=True)


def printed(text: str, start: str) -> dict[str, float]:
    """The rewards in the line of the command's output that starts with `start`, by name, and the total."""
    (line,) = (line for line in text.splitlines() if line.startswith(start))
    return {name: float(value) for name, value in re.findall(r"(total reward|\w+) (-?\d+\.\d+)", line)}


def seams_of(mesh: Mesh) -> np.ndarray:
    """For each vertex the first vertex at the same coordinates."""
    first, place = weld(mesh.vertices)
    assert len(first) < len(mesh.vertices)  # there are seams
    return first[place]


def check(recipe_path: str, mesh_file: Path, overrides: list[str], capsys: pytest.CaptureFixture) -> Rig:
    """Rig the file with the command; the file agrees with what was printed, and its seams with themselves."""
    output = mesh_file.with_name("rigged.glb")
    given = [f"rig.mesh={mesh_file}", f"rig.out={output}", *overrides]
    assert command.main([recipe_path, *given]) == 0
    text = capsys.readouterr().out
    shown, shown_as_written = printed(text, f"{output}:"), printed(text, "as written:")
    mesh, found = read_skinned_glb(output)
    recipe = load_recipe(recipe_path, given)
    settings = reward_settings(recipe)
    turns = settings.rotations(len(found.joints), pose_seed(recipe.rig.seed, mesh_file.stem, 0))

    # 1. The same rig in this process: the raw weights at the scored vertices give the score that was printed.
    sample = make_sample(
        load_mesh(mesh_file, recipe.data.max_faces, recipe.data.max_megabytes * 2**20),
        None,
        recipe.data.points,
        recipe.data.seed,
    )
    policy = load_policy(recipe)
    again = rig_mesh(policy, sample, recipe, recipe.rig.candidates, recipe.rig.temperature, recipe.rig.seed)
    scoring = prepare_scoring_mesh(sample.mesh.vertices, sample.mesh.faces, settings)
    raw = again.rig.weights
    score = score_rig(scoring, again.rig.joints, again.rig.parents, raw[scoring.source], turns, settings)
    assert {name: score.rewards[name] for name in again.rewards} == again.rewards  # to the last bit
    assert {name: round(value, 3) for name, value in again.rewards.items()} == {
        name: pytest.approx(shown[name], abs=1e-9) for name in again.rewards
    }
    assert round(again.total, 3) == pytest.approx(shown["total reward"], abs=1e-9)

    # 2. The file holds those weights, but for the four largest: its rows are theirs.
    assert np.array_equal(mesh.faces, sample.mesh.faces)
    np.testing.assert_allclose(found.weights, as_stored(raw), atol=1e-6)
    np.testing.assert_allclose(found.joints, again.rig.joints, atol=1e-5)
    assert np.array_equal(found.parents, again.rig.parents)

    # 3. The file alone gives the score that was printed for it. Its joints are float32 in the file's frame:
    # a containment sample may fall into the next cell.
    written = prepare_scoring_mesh(mesh.vertices, mesh.faces, settings)
    assert np.array_equal(written.source, scoring.source)
    from_file = score_rig(
        written, found.joints, found.parents, found.weights[written.source], turns, settings
    ).rewards
    for name in again.rewards:
        close = 2e-2 if name == "containment" else 2e-3
        assert from_file[name] == pytest.approx(shown_as_written[name], abs=close)
    if len(found.joints) <= INFLUENCES:  # nothing is left out: smoothness, which normalises, stays
        assert from_file["smoothness"] == pytest.approx(shown["smoothness"], abs=1e-3)

    # 4. No crack: the vertices of a place have the same weights, and stay together in every pose.
    same = seams_of(sample.mesh)
    assert np.array_equal(raw, raw[same])
    assert np.array_equal(found.weights, found.weights[same])
    posed = linear_blend_skinning(
        mesh.vertices,
        found.weights,
        skinning_matrices(found.joints, found.parents, random_rotations(20, len(found.joints), 30, 0)),
    )
    assert np.abs(posed - posed[:, same]).max() <= 1e-6
    return found


@pytest.mark.parametrize("limit", [10**6, 96])
def test_the_file_gives_the_score_that_was_printed(mesh_file, policy_path, tmp_path, capsys, limit):
    """Also on meshes of which only a subset of the vertices is scored."""
    recipe = str(tiny.write_recipe_file(tmp_path / "r.yaml", policy_path, tmp_path / "run", {}))
    check(recipe, mesh_file, [f"rewards.max_scoring_vertices={limit}", "rig.seed=3"], capsys)


def test_with_at_most_four_joints_the_file_says_it_all(mesh_file, policy_path, tmp_path, capsys):
    recipe = str(tiny.write_recipe_file(tmp_path / "r.yaml", policy_path, tmp_path / "run", {}))
    sizes = set()
    for seed in range(12):
        found = check(recipe, mesh_file, ["rig.candidates=1", f"rig.seed={seed}"], capsys)
        sizes.add(len(found.joints))
        if len(found.joints) in (2, 3, 4):
            return
    raise AssertionError(f"no rig of two to four joints among {sizes}")


@pytest.mark.parametrize("mesh_file", ["flat", "seams"], indirect=True)
def test_the_shipped_policy_opens_no_crack(mesh_file, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    small = ["rig.candidates=1", "rewards.resolution=48", "rig.temperature=0"]
    found = check("recipes/base.yaml", mesh_file, small, capsys)
    assert len(found.joints) > INFLUENCES
