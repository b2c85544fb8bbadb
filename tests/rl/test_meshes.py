"""A recipe's meshes: which train and which are held out, and which are skipped."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh

from data import depth_first, make_creature, read_manifest, read_rig_npz, write_skinned_glb
from data.mesh import MeshError
from data.prepare import PrepareSettings, prepare
from data.sets.prepared import write_manifest
from data.typed_recipe import RecipeError
from rl.given_skeleton import SkeletonRoom, true_skeleton
from rl.meshes import (
    RunMeshes,
    load_meshes,
    load_one,
    reward_meshes,
    spread,
    with_given_skeletons,
    without_refused,
)
from tests.rl import tiny


def write_meshes(folder, count: int) -> str:
    folder.mkdir()
    for size in range(count):
        trimesh.creation.box((1, 1, 1 + size)).export(folder / f"box{size}.obj")
    return str(folder / "*.obj")


def test_creatures_for_training_and_evaluation_are_never_the_same(make_recipe):
    meshes = load_meshes(make_recipe({"data.train_count": 5, "data.eval_count": 3}))
    assert (meshes.train, meshes.held_out) == ([0, 1, 2, 3, 4], [5, 6, 7])
    names = [sample.name for sample in meshes.samples]
    assert len(set(names)) == 8
    assert all(len(sample.points) == 64 for sample in meshes.samples)
    other = load_meshes(make_recipe({"data.seed": 1, "data.train_count": 5, "data.eval_count": 3}))
    assert not set(names) & {sample.name for sample in other.samples}
    again = load_meshes(make_recipe({"data.train_count": 5, "data.eval_count": 3}))
    for first, second in zip(meshes.samples, again.samples, strict=True):
        assert np.array_equal(first.points, second.points)


@pytest.mark.parametrize(
    ("files", "eval_count", "train", "held_out"),
    [(7, 2, 5, 2), (7, 100, 4, 3), (2, 16, 1, 1), (3, 16, 2, 1)],
)
def test_files_are_split_with_at_most_half_held_out(
    make_recipe, tmp_path, files, eval_count, train, held_out
):
    pattern = write_meshes(tmp_path / "meshes", files)
    meshes = load_meshes(make_recipe({"data.meshes": pattern, "data.eval_count": eval_count}))
    assert (len(meshes.train), len(meshes.held_out)) == (train, held_out)
    assert sorted(meshes.train + meshes.held_out) == list(range(files))


def test_a_single_file_serves_both(make_recipe, tmp_path):
    meshes = load_meshes(make_recipe({"data.meshes": write_meshes(tmp_path / "meshes", 1)}))
    assert (meshes.train, meshes.held_out) == ([0], [0])


def test_files_of_their_own_for_evaluation(make_recipe, tmp_path, capsys):
    train, held_out = write_meshes(tmp_path / "a", 3), write_meshes(tmp_path / "b", 2)
    (tmp_path / "b" / "empty.obj").write_text("")
    meshes = load_meshes(make_recipe({"data.meshes": train, "data.eval_meshes": held_out}))
    assert (len(meshes.train), len(meshes.held_out)) == (3, 2)
    assert "empty.obj" in capsys.readouterr().err


def test_files_for_evaluation_alone(make_recipe, tmp_path):
    """Creatures to train on, as without: the files are never ignored."""
    held_out = write_meshes(tmp_path / "b", 2)
    meshes = load_meshes(make_recipe({"data.eval_meshes": held_out, "data.train_count": 3}))
    assert [meshes.samples[k].name for k in meshes.held_out] == ["box0", "box1"]
    creatures = load_meshes(make_recipe({"data.train_count": 3}))
    assert [meshes.samples[k].name for k in meshes.train] == [s.name for s in creatures.samples[:3]]


@pytest.mark.parametrize("files", [1, 5])
def test_without_training_the_held_out_meshes_are_the_same(make_recipe, tmp_path, files):
    pattern = write_meshes(tmp_path / "a", files)
    for changes in ({}, {"data.meshes": pattern}, {"data.meshes": pattern, "data.eval_meshes": pattern}):
        both = load_meshes(make_recipe(changes))
        alone = load_meshes(make_recipe(changes), training=False)
        assert alone.train == []
        wanted = [both.samples[k] for k in both.held_out]
        found = [alone.samples[k] for k in alone.held_out]
        assert [one.name for one in found] == [one.name for one in wanted]
        for one, other in zip(found, wanted, strict=True):
            assert np.array_equal(one.points, other.points)
    assert without_refused(alone, [None] * len(alone.samples)) == alone
    with pytest.raises(MeshError, match=r"'data\.eval_meshes' or 'data\.meshes'"):
        without_refused(alone, ["flat"] * len(alone.samples))


@pytest.mark.parametrize("key", ["data.meshes", "data.eval_meshes"])
def test_a_list_without_names_is_refused(make_recipe, key):
    with pytest.raises(RecipeError, match=f"'{key}' is an empty list"):
        make_recipe({key: []})


@pytest.fixture
def prepared(tmp_path) -> Path:
    """Five creatures prepared, two of them held out."""
    (tmp_path / "rigs").mkdir()
    for seed in range(5):
        creature = make_creature(seed)
        write_skinned_glb(tmp_path / "rigs" / f"c{seed}.glb", creature.mesh, creature.rig)
    prepare([tmp_path / "rigs"], tmp_path / "prepared", PrepareSettings(eval_share=0.4))
    return tmp_path / "prepared"


def names_of(meshes: RunMeshes, places: list[int]) -> list[str]:
    return [meshes.samples[k].name for k in places]


def test_a_prepared_folder_keeps_its_split(make_recipe, prepared):
    entries = read_manifest(prepared).rigs
    train, held_out = ([rig.name for rig in entries if rig.split == part] for part in ("train", "eval"))
    assert (len(train), len(held_out)) == (3, 2)
    for changes in ({}, {"data.eval_meshes": [str(prepared)]}):
        meshes = load_meshes(make_recipe({"data.meshes": str(prepared), **changes}))
        assert names_of(meshes, meshes.train) == train
        assert names_of(meshes, meshes.held_out) == held_out
        for sample in meshes.samples:
            entry = next(rig for rig in entries if rig.name == sample.name)
            assert sample.rig is not None
            known = depth_first(read_rig_npz(prepared / entry.file).rig)
            np.testing.assert_array_equal(sample.rig.joints, known.joints)
            np.testing.assert_array_equal(sample.rig.weights, known.weights)
    meshes = load_meshes(make_recipe({"data.meshes": str(prepared), "data.eval_count": 1}))
    assert len(meshes.held_out) == 1
    assert names_of(meshes, meshes.held_out)[0] in held_out
    # Without training none of its rigs is read.
    for rig in entries:
        if rig.split == "train":
            (prepared / rig.file).unlink()
    alone = load_meshes(make_recipe({"data.meshes": str(prepared)}), training=False)
    assert names_of(alone, alone.held_out) == held_out


def test_prepared_folders_among_files(make_recipe, prepared, tmp_path):
    """The held-out rigs of the folder are held out, the files are trained on; names stay unique."""
    files = write_meshes(tmp_path / "boxes", 3)
    other = tmp_path / "copy"
    shutil.copytree(prepared, other)
    meshes = load_meshes(make_recipe({"data.meshes": [files, str(prepared), str(other), str(other)]}))
    assert (len(meshes.train), len(meshes.held_out)) == (3 + 3 + 3, 2 + 2)
    assert len(set(names_of(meshes, meshes.train))) == 9
    assert len(set(names_of(meshes, meshes.held_out))) == 4


def test_prepared_rigs_that_cannot_be_used_are_reported(make_recipe, prepared, capsys):
    entries = read_manifest(prepared).rigs
    train = [rig for rig in entries if rig.split == "train"]
    (prepared / train[0].file).write_bytes(b"")
    limit = max(rig.faces for rig in entries) - 1
    meshes = load_meshes(make_recipe({"data.meshes": str(prepared), "data.max_faces": limit}))
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 5 - len(meshes.samples)
    assert any(train[0].file in line for line in shown)
    assert any(f"over the limit of {limit}" in line for line in shown)
    with pytest.raises(MeshError, match=r"none of the \d rigs is usable; prepare the folder again"):
        load_meshes(make_recipe({"data.meshes": str(prepared), "data.max_faces": 1}))


@pytest.mark.parametrize("part", ["train", "eval"])
def test_a_prepared_folder_with_an_empty_split_is_refused(make_recipe, prepared, part):
    manifest = read_manifest(prepared)
    other = "eval" if part == "train" else "train"
    write_manifest(
        prepared, replace(manifest, rigs=tuple(replace(rig, split=other) for rig in manifest.rigs))
    )
    with pytest.raises(MeshError, match=f"prepared: no rigs in the {part!r} split"):
        load_meshes(make_recipe({"data.meshes": str(prepared)}))


def test_meshes_that_cannot_be_scored_are_skipped(make_recipe, capsys):
    meshes = load_meshes(make_recipe({"data.train_count": 2, "data.eval_count": 2}))
    left = without_refused(meshes, [None, "second: is flat", None, "fourth: is flat"])
    assert (left.train, left.held_out) == ([0], [2])
    assert capsys.readouterr().err.splitlines() == ["skipped: second: is flat", "skipped: fourth: is flat"]
    for part, reasons in (("training", ["a", "b", None, None]), ("held-out", [None, None, "c", "d"])):
        with pytest.raises(MeshError, match=rf"no {part} mesh can be scored; .*'data.meshes'"):
            without_refused(meshes, reasons)


ROOMY = SkeletonRoom(tiny.VOCABULARY, 10_000, 10_000)


def test_meshes_without_a_skeleton_to_give_are_skipped(make_recipe, capsys):
    changes = {"data.train_count": 3, "data.eval_count": 3}
    meshes = load_meshes(make_recipe(changes))
    for bare in (1, 5):
        meshes.samples[bare] = replace(meshes.samples[bare], rig=None)
    names = [sample.name for sample in meshes.samples]
    assert with_given_skeletons(meshes, make_recipe(changes), [ROOMY]) == meshes
    assert capsys.readouterr().err == ""
    left = with_given_skeletons(meshes, make_recipe({**changes, "data.skeleton": "given"}), [ROOMY])
    assert (left.train, left.held_out) == ([0, 2], [3, 4, 5])
    assert capsys.readouterr().err.splitlines() == [
        f"skipped: {names[1]}: it has no rig",
        "skipped: 1 of 3 training meshes, which have no usable skeleton (data.skeleton=given)",
    ]
    left = with_given_skeletons(meshes, make_recipe({**changes, "eval.skeleton": "given"}), [ROOMY])
    assert (left.train, left.held_out) == ([0, 1, 2], [3, 4])
    # The skeleton must fit into every policy.
    short = replace(ROOMY, completion=len(true_skeleton(meshes.samples[3], ROOMY.vocabulary).joints) * 2)
    with pytest.raises(MeshError, match=r"'eval.skeleton' is given, but none of the 1 held-out meshes .*"):
        with_given_skeletons(
            replace(meshes, held_out=[3]), make_recipe({"eval.skeleton": "given"}), [ROOMY, short]
        )
    with pytest.raises(MeshError, match=r"none of the 1 training meshes .*it has no rig.*set data.skeleton"):
        with_given_skeletons(replace(meshes, train=[1]), make_recipe({"data.skeleton": "given"}), [ROOMY])


def test_z_up_files_are_turned(make_recipe, tmp_path):
    """Boxes of height 1 to 3 along z, all sizes along y once they are turned."""
    pattern = write_meshes(tmp_path / "meshes", 3)
    meshes = load_meshes(make_recipe({"data.meshes": pattern, "data.up": "z"}))
    for sample in meshes.samples:
        size = np.ptp(sample.mesh.vertices, axis=0)
        assert size[1] / size[2] == pytest.approx(int(sample.name[3:]) + 1)


def test_up_without_a_file_to_turn_is_refused(make_recipe, prepared, tmp_path):
    with pytest.raises(RecipeError, match=r"'data\.up' is z but there are only procedural creatures"):
        make_recipe({"data.up": "z"})
    creature = make_creature(0)
    write_skinned_glb(tmp_path / "a.glb", creature.mesh, creature.rig)
    for names in (str(tmp_path / "a.glb"), str(prepared)):
        with pytest.raises(MeshError, match=r"'data\.up' is z but there is no OBJ, PLY, STL or OFF file"):
            load_meshes(make_recipe({"data.meshes": names, "data.up": "z"}))
    with pytest.raises(MeshError, match="no file matches"):
        load_meshes(make_recipe({"data.meshes": str(tmp_path / "none*.obj"), "data.up": "z"}))
    boxes = write_meshes(tmp_path / "boxes", 2)
    recipe = make_recipe({"data.meshes": str(tmp_path / "a.glb"), "data.eval_meshes": boxes, "data.up": "z"})
    assert len(load_meshes(recipe).held_out) == 2


def test_notes_on_files_are_reported_once(make_recipe, tmp_path, capsys):
    cases = Path(__file__).parents[1] / "data" / "gltf" / "cases"
    for name in ("fewer_ibm_than_joints.glb", "stale_mesh_node_transform.glb"):
        shutil.copyfile(cases / name, tmp_path / name)
    (tmp_path / "old.blend").write_text("x")
    load_meshes(make_recipe({"data.meshes": str(tmp_path)}))
    assert capsys.readouterr().err.splitlines() == [
        f"note: {tmp_path}: passed over 1 file (1 .blend); convert 3D files to GLB",
        f"note: {tmp_path}/fewer_ibm_than_joints.glb: placed 1 joint without a usable inverse bind matrix by "
        "the neighbouring joints: end",
    ]


def test_one_prepared_rig_is_read_as_with_its_folder(make_recipe, prepared):
    recipe = make_recipe({"data.meshes": str(prepared)})
    for sample in load_meshes(recipe).samples:
        alone = load_one(sample.file, recipe)
        assert reward_meshes([alone])[0].key == reward_meshes([sample])[0].key
        assert (alone.rig.weights == sample.rig.weights).all()


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [(4, None, [0, 1, 2, 3]), (4, 2, [0, 2]), (5, 3, [0, 1, 3]), (2, 5, [0, 1])],
)
def test_places_are_spread_evenly(count, most, expected):
    assert spread(count, most) == expected
