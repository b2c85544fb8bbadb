"""Rig examples for pre-training: from creatures and files, clouds with weights, the points of a bone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import policy.pretraining.rig_examples
from data import (
    EVAL_FIRST_SEED,
    Asset,
    AugmentRecipe,
    Mesh,
    MeshError,
    Rig,
    augmented,
    make_creature,
    read_manifest,
    read_rig_npz,
    write_skinned_glb,
)
from data.prepare import PrepareSettings, prepare
from data.typed_recipe import RecipeError, build
from policy.pretraining.point_cloud import (
    RigExample,
    bone_density,
    make_example,
    near_bones,
    skin_points,
)
from policy.pretraining.rig_examples import (
    RigDataRecipe,
    RigExamples,
    SourceRecipe,
    load_rigs,
)
from tests.seams import flat_shaded, split_at_random

SMALL = RigDataRecipe(points=60, dense_pool=90, vertices=20)


@pytest.fixture
def rig_files(tmp_path: Path) -> Path:
    """Three creatures as GLB files in nested folders."""
    (tmp_path / "rigs" / "more").mkdir(parents=True)
    for seed, name in enumerate(("a.glb", "b.glb", "more/c.glb")):
        creature = make_creature(seed)
        write_skinned_glb(tmp_path / "rigs" / name, creature.mesh, creature.rig)
    return tmp_path / "rigs"


def same(a: RigExample, b: RigExample) -> bool:
    fields = ("joints", "parents", "points", "normals", "weights")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in fields)


# ---------------------------------------------------------------- examples


def test_an_example_depends_on_its_index_alone():
    examples, others = RigExamples(SMALL), RigExamples(SMALL)
    first = examples[3]
    assert not same(first, examples[4])
    assert same(first, others[3])
    assert not same(first, RigExamples(replace(SMALL, first_seed=7))[3])


def test_examples_of_creatures():
    for index in range(5):
        example = RigExamples(SMALL)[index]
        creature = make_creature(SMALL.first_seed + index)
        joints = len(creature.rig.joints)
        assert example.points.shape == example.normals.shape == (170, 3)
        assert example.weights.shape == (170, joints)
        assert example.uniform == 60
        assert {
            array.dtype for array in (example.joints, example.points, example.normals, example.weights)
        } == {np.dtype(np.float32)}
        np.testing.assert_array_equal(example.joints, creature.rig.joints)  # they are depth first already
        np.testing.assert_array_equal(example.parents, creature.rig.parents)
        np.testing.assert_allclose(example.weights.sum(axis=1), 1, atol=1e-5)
        assert np.abs(example.points).max() <= 1 + 1e-5


def square() -> Mesh:
    vertices = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], dtype=np.float32)
    return Mesh(vertices, np.array([[0, 1, 2], [0, 2, 3]]), "square", np.zeros(3), 1.0)


def test_weights_are_interpolated_where_the_points_lie():
    # Linear in position at the corners: x/2 + 1/2 and y/4 + 1/4, so linear on the whole square.
    mesh = square()
    corners = mesh.vertices
    rig = Rig(
        joints=np.array([[0, 0, 0], [0.5, 0, 0]], dtype=np.float32),
        parents=np.array([-1, 0]),
        weights=np.stack([corners[:, 0] / 2 + 0.5, corners[:, 1] / 4 + 0.25], axis=1),
    )
    example = make_example(mesh, rig, 40, 60, 0, np.random.default_rng(0))
    assert len(example.points) == 100
    np.testing.assert_allclose(example.weights[:, 0], example.points[:, 0] / 2 + 0.5, atol=1e-6)
    np.testing.assert_allclose(example.weights[:, 1], example.points[:, 1] / 4 + 0.25, atol=1e-6)
    np.testing.assert_array_equal(np.abs(example.normals), np.tile([0, 0, 1], (100, 1)))


def test_vertices_come_last_with_their_own_normals_and_weights():
    # A roof: its ridge vertices have the mean of the two sides' normals, its surface points a side's.
    vertices = np.array([[-1, 0, -1], [-1, 0, 1], [0, 1, -1], [0, 1, 1], [1, 0, -1], [1, 0, 1]], np.float32)
    faces = np.array([[0, 1, 3], [0, 3, 2], [2, 3, 5], [2, 5, 4]])
    weights = np.eye(2, dtype=np.float32)[[0, 0, 1, 1, 0, 0]]
    rig = Rig(np.zeros((2, 3), np.float32), np.array([-1, 0]), weights)
    mesh = Mesh(vertices, faces, "roof", np.zeros(3), 1.0)
    example = make_example(mesh, rig, 30, 10, 100, np.random.default_rng(0))
    assert (len(example.points), example.uniform, example.vertices) == (46, 30, 6)
    own = example.points[40:]
    order = np.lexsort(own.T[::-1])
    np.testing.assert_array_equal(own[order], vertices[np.lexsort(vertices.T[::-1])])
    ridge = own[:, 1] == 1
    np.testing.assert_array_equal(example.weights[40:], np.eye(2)[ridge.astype(int)])
    np.testing.assert_allclose(np.abs(example.normals[40:][ridge]), np.tile([0, 1, 0], (2, 1)), atol=0.35)
    np.testing.assert_allclose(np.abs(example.normals[:40, 0]), 0.5**0.5, atol=1e-6)
    few = make_example(mesh, rig, 30, 10, 4, np.random.default_rng(0))
    assert (len(few.points), few.vertices) == (44, 4)
    assert len(np.unique(few.points[40:], axis=0)) == 4


def test_seams_and_flat_shading_give_the_same_vertices_and_normals():
    creature = make_creature(3)
    mesh, rig = creature.mesh, creature.rig
    vertices, faces, original = split_at_random(mesh.vertices, mesh.faces, np.random.default_rng(1))
    seams = Mesh(vertices, faces, mesh.name, mesh.centre, mesh.scale)
    rows = []
    for one, its_rig in (
        (mesh, rig),
        flat_shaded(mesh, rig),
        (seams, replace(rig, weights=rig.weights[original])),
    ):
        example = make_example(one, its_rig, 30, 0, 10**6, np.random.default_rng(0))
        own = np.concatenate([example.points, example.normals, example.weights], axis=1)[30:]
        rows.append(own[np.lexsort(own[:, :3].T)])
        assert example.vertices == len(own) == len(np.unique(own[:, :3], axis=0))
    np.testing.assert_allclose(rows[1], rows[0], atol=1e-6)
    np.testing.assert_allclose(rows[2], rows[0], atol=1e-6)


def test_joints_come_depth_first_with_their_weights():
    # Children are visited by (y, z, x): joint 2 lies below joint 1 and comes first, then 1 with its child 3.
    joints = np.array([[0, 0, 0], [0, 0.5, 0], [0, -0.5, 0], [0, 0.9, 0]], dtype=np.float32)
    weights = np.tile(np.array([0.1, 0.2, 0.3, 0.4], dtype=np.float32), (4, 1))
    rig = Rig(joints, np.array([-1, 0, 0, 1]), weights)
    example = make_example(square(), rig, 5, 0, 0, np.random.default_rng(0))
    np.testing.assert_array_equal(example.joints, joints[[0, 2, 1, 3]])
    np.testing.assert_array_equal(example.parents, [-1, 0, 0, 2])
    np.testing.assert_allclose(example.weights, np.tile([0.1, 0.3, 0.2, 0.4], (5, 1)), rtol=1e-6)


# ---------------------------------------------------------------- files


def test_rigs_of_files_are_those_that_were_written(rig_files):
    rigs, refusals = load_rigs(str(rig_files / "**" / "*.glb"), max_joints=64, max_faces=10**6)
    assert refusals == []
    assert [mesh.name for mesh, _ in rigs] == ["a", "b", "c"]
    for seed, (mesh, rig) in enumerate(rigs):
        creature = make_creature(seed)
        np.testing.assert_allclose(mesh.vertices, creature.mesh.vertices, atol=1e-5)
        np.testing.assert_allclose(
            np.sort(rig.joints, axis=0), np.sort(creature.rig.joints, axis=0), atol=1e-5
        )
        np.testing.assert_allclose(rig.weights.sum(axis=1), 1, atol=1e-6)


def test_examples_of_files_draw_from_all_of_them_and_repeat(rig_files):
    examples = RigExamples(files(rig_files))
    # Each pass holds each file once.
    for first in (0, 3, 6):
        assert len({float(examples[first + step].joints[0, 0]) for step in range(3)}) == 3
    written = {"sources": [{"files": [str(rig_files)]}], "points": 60, "dense_pool": 90, "vertices": 20}
    again = RigExamples(build(RigDataRecipe, written))
    assert all(same(examples[index], again[index]) for index in range(5))
    rigs = [make_creature(seed).rig for seed in range(3)]
    for index in range(5):
        joints = examples[index].joints
        alike = [rig.joints for rig in rigs if rig.joints.shape == joints.shape]
        assert min(np.abs(joints - other).max() for other in alike) < 1e-5


def files(pattern: object, **changes: object) -> RigDataRecipe:
    return replace(SMALL, sources=(SourceRecipe(files=str(pattern)),), **changes)


def test_unusable_files_are_named_and_left_out(rig_files, capsys):
    (rig_files / "broken.glb").write_bytes(b"glTF but not really")
    counts = [len(make_creature(seed).rig.joints) for seed in range(3)]
    limit = max(counts) - 1
    examples = RigExamples(files(rig_files, max_joints=limit))
    assert {len(examples[index].joints) for index in range(6)} == {
        count for count in counts if count <= limit
    }
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("skipped: ") == 1 + counts.count(max(counts))
    assert f"skipped: {rig_files / 'broken.glb'}: " in printed.err
    assert f"joints, over the limit of {limit}; raise 'data.max_joints'" in printed.err
    with pytest.raises(
        MeshError, match=r"the rig has \d+ faces, over the limit of 9; raise 'data.max_faces'"
    ):
        RigExamples(files(rig_files, max_faces=9))


def test_no_usable_rig_at_all(tmp_path):
    with pytest.raises(MeshError, match=r"nowhere/\*\.glb: no file matches"):
        RigExamples(files(f"{tmp_path}/nowhere/*.glb"))
    for name in ("one.glb", "two.glb"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(
        MeshError, match=r"none of the 2 files is a usable rig(.|\n)*one\.glb: (.|\n)*two\.glb: "
    ):
        RigExamples(files(tmp_path))


def test_weights_of_files_become_shares(tmp_path, monkeypatch):
    weights = np.array([[2, 2], [0.5, 0], [0, 0], [1, 3]], dtype=np.float32)
    rig = Rig(np.zeros((2, 3), dtype=np.float32), np.array([-1, 0]), weights)
    asset = Asset(square(), rig, (), "a.glb")
    monkeypatch.setattr(policy.pretraining.rig_examples, "load_asset", lambda path, max_faces: asset)
    (tmp_path / "a.glb").write_bytes(b"")
    ((_, read),), _ = load_rigs(str(tmp_path), 64, 100)
    # Halves, all, a vertex without weight stays without, quarters.
    np.testing.assert_array_equal(read.weights, np.array([[0.5, 0.5], [1, 0], [0, 0], [0.25, 0.75]]))


# ---------------------------------------------------------------- sources and augmentation


@pytest.fixture
def prepared(rig_files: Path, tmp_path: Path) -> Path:
    """The three creatures prepared: two for training, one held out."""
    prepare([rig_files], tmp_path / "prepared", PrepareSettings(1 / 3, class_name="vroid"))
    return tmp_path / "prepared"


def test_prepared_rigs_of_the_training_split_are_read_when_drawn(prepared, monkeypatch):
    read: list[str] = []
    whole = read_rig_npz

    def counted(path: Path) -> object:
        read.append(path.name)
        return whole(path)

    monkeypatch.setattr("data.sets.prepared.read_rig_npz", counted)
    examples = RigExamples(replace(SMALL, sources=(SourceRecipe(prepared=str(prepared)),)))
    assert read == []
    first = examples[0]
    assert len(read) == 1
    assert first.class_name == "vroid"
    same_again = RigExamples(examples.recipe)[0]
    assert same(first, same_again)
    for index in range(8):
        assert examples[index].uniform == 60
    training = {Path(rig.file).name for rig in read_manifest(prepared).rigs if rig.split == "train"}
    assert set(read) == training
    assert len(training) == 2


def test_sources_are_mixed_by_weight_and_kinds_are_taken_in_turn(prepared, rig_files):
    sources = (
        SourceRecipe(prepared=str(prepared), weight=7),
        SourceRecipe(files=str(rig_files), weight=2),
        SourceRecipe(creatures=True, kinds=["snake", "biped"], weight=1),
        SourceRecipe(files="never opened", weight=0),
    )
    examples = RigExamples(replace(SMALL, sources=sources))
    drawn = [examples.mixture.place(index)[0] for index in range(1000)]
    assert [drawn.count(source) for source in range(3)] == [700, 200, 100]
    index = drawn.index(2)
    kind = ["snake", "biped"][index % 2]
    expected = make_creature(SMALL.first_seed + index, kind).rig
    np.testing.assert_array_equal(examples[index].joints, expected.joints)
    assert same(examples[index], RigExamples(examples.recipe)[index])


def test_prepared_folders_that_cannot_be_used(prepared, tmp_path, capsys):
    def examples(folder: Path, **changes: int) -> RigExamples:
        return RigExamples(replace(SMALL, sources=(SourceRecipe(prepared=str(folder)),), **changes))

    with pytest.raises(MeshError, match=r"create the folder with `python -m data\.prepare`"):
        examples(tmp_path / "nowhere")
    with pytest.raises(MeshError, match="all 2 training rigs have more than 1 joints or 300000 faces"):
        examples(prepared, max_joints=1)
    rigs = [rig for rig in read_manifest(prepared).rigs if rig.split == "train"]
    limit = min(rig.joints for rig in rigs)
    if limit < max(rig.joints for rig in rigs):
        examples(prepared, max_joints=limit)
        assert "skipped: " in capsys.readouterr().err
    file = prepared / rigs[0].file
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    broken = examples(prepared)
    with pytest.raises(MeshError, match=rigs[0].file):
        [broken[index] for index in range(2)]
    file.unlink()
    with pytest.raises(
        MeshError, match=rf"{rigs[0].file}: the file is missing \(1 of the manifest's \d+ are\)"
    ):
        examples(prepared)


def test_held_out_creatures_are_never_drawn():
    examples = RigExamples(replace(SMALL, first_seed=EVAL_FIRST_SEED - 2))
    assert examples[1].uniform == 60
    with pytest.raises(RecipeError, match="example 2 would be a creature held out for evaluation"):
        examples[2]


def test_examples_are_augmented_before_their_points_are_drawn():
    augment = AugmentRecipe(subtree_probability=1.0, pose_probability=1.0, joint_noise=1e-2)
    examples = RigExamples(replace(SMALL, augment=augment))
    plain = RigExamples(SMALL)
    for index in range(4):
        creature = make_creature(SMALL.first_seed + index)
        rng = np.random.default_rng((SMALL.first_seed, index, 3))
        mesh, rig = augmented(creature.mesh, creature.rig, augment, rng)
        expected = make_example(mesh, rig, 60, 90, 20, np.random.default_rng((SMALL.first_seed, index)))
        assert same(examples[index], expected)
        assert len(examples[index].joints) < len(plain[index].joints)


# ---------------------------------------------------------------- points of a bone


def line(uniform: int, pool: int) -> RigExample:
    """Points along x from 0 to 1; bone 0 owns x <= 0.5, bone 1 the rest, bone 2 nothing."""
    count = uniform + pool
    points = np.zeros((count, 3), dtype=np.float32)
    points[:, 0] = np.random.default_rng(0).permutation(np.linspace(0, 1, count))
    owner = (points[:, 0] > 0.5).astype(int)
    weights = np.eye(3, dtype=np.float32)[owner]
    joints = np.zeros((3, 3), dtype=np.float32)
    return RigExample(joints, np.array([-1, 0, 1]), points, np.zeros_like(points), weights, uniform)


def test_half_the_points_are_uniform_and_half_near_the_bone():
    example = line(uniform=100, pool=300)
    rows = skin_points(example, [1, 0], 40, np.random.default_rng(3))
    assert rows.shape == (2, 40)
    assert (rows[:, :20] < 100).all()
    assert all(len(set(half)) == 20 for row in rows for half in (row[:20], row[20:]))
    near = example.points[rows[:, 20:], 0]
    # A half is 0.5 long; a tenth of it, 0.05, on each side.
    assert near[0].min() >= 0.4499
    assert near[1].max() <= 0.5501
    assert near[0].max() > 0.9
    assert (rows[:, 20:] >= 100).any()  # from the pool too
    uniform = example.points[rows[0, :20], 0]
    assert uniform.min() < 0.4  # from everywhere, also for bone 1


def test_points_near_a_bone_reach_a_little_beyond_it():
    example = line(uniform=10, pool=5000)
    near = example.points[skin_points(example, [1], 4000, np.random.default_rng(0))[0, 2000:], 0]
    assert 0.4499 <= near.min() < 0.46


def test_near_is_measured_from_the_bone_and_not_from_its_box():
    # Bone 0 owns the two legs of an L in the unit square; its box is the whole square.
    axis = np.linspace(0, 1, 41)
    points = np.array([[x, y, 0] for x in axis for y in axis], dtype=np.float32)
    leg = (points[:, 0] == 0) | (points[:, 1] == 0)
    weights = np.stack([leg, ~leg], axis=1).astype(np.float32)
    example = RigExample(
        np.zeros((2, 3), np.float32), np.array([-1, 0]), points, points, weights, len(points)
    )
    # A tenth of the diagonal, 0.141, is above the limit of 0.1. Grid step 0.025: four further rows.
    expected = points[:, :2].min(axis=1) < 0.1
    np.testing.assert_array_equal(near_bones(example, [0])[0], np.flatnonzero(expected | leg))
    assert near_bones(example, [0])[0] is near_bones(example, [0])[0]


@pytest.mark.parametrize("bone", [0, 3, 7])
def test_near_is_what_all_distances_say(bone):
    creature = make_creature(2)
    example = make_example(creature.mesh, creature.rig, 300, 300, 0, np.random.default_rng(0))
    points = example.points.astype(np.float64)
    own = points[example.weights[:, bone] > 1e-3]
    reach = min(0.1 * np.linalg.norm(np.ptp(own, axis=0)), 0.1)
    distances = np.linalg.norm(points[:, None] - own, axis=2).min(axis=1)
    near = np.isin(np.arange(600), near_bones(example, [bone])[bone])
    clear = np.abs(distances - reach) > 1e-6  # rounding decides the others
    np.testing.assert_array_equal(near[clear], (distances < reach)[clear])
    assert 0 < near.sum() < 600


def test_the_pool_gives_a_small_bone_as_many_points_as_a_large_one():
    # A square, and a hundredth of its area beside it; one bone each.
    corners = square().vertices
    vertices = np.concatenate([corners, corners / 10 + np.float32([2, 0, 0])])
    faces = np.concatenate([square().faces, square().faces + 4])
    mesh = Mesh(vertices, faces, "two", np.zeros(3), 1.0)
    weights = np.repeat(np.eye(2), 4, axis=0)
    rig = Rig(np.array([[0, 0, 0], [2, 0, 0]]), np.array([-1, 0]), weights)
    # Areas 4 and 0.04: densities 1 / 4 and 1 / 0.04.
    np.testing.assert_allclose(bone_density(mesh, rig.weights), [0.25, 0.25, 25, 25], rtol=1e-5)
    example = make_example(mesh, rig, 5000, 5000, 0, np.random.default_rng(0))
    small = example.weights[:, 1] > 0.5
    assert small[:5000].mean() == pytest.approx(1 / 101, abs=0.006)
    assert small[5000:].mean() == pytest.approx(0.5, abs=0.03)
    # Faces of both bones count for both; bones without a face count for nothing.
    shared = np.concatenate([weights, np.zeros((8, 1))], axis=1)
    shared[:4, 1] = 0.5
    np.testing.assert_allclose(
        bone_density(mesh, shared), [1 / 4 + 1 / 4.04, 1 / 4 + 1 / 4.04, 1 / 4.04, 1 / 4.04], rtol=1e-5
    )
    np.testing.assert_array_equal(bone_density(mesh, np.zeros((8, 2))), np.ones(4))


def test_everywhere_is_uniform_points_and_vertices_but_not_the_pool():
    example = replace(line(uniform=20, pool=50), vertices=10)
    drawn = skin_points(example, [0] * 40, 20, np.random.default_rng(0))[:, :10]
    assert set(drawn.ravel()) == {*range(20), *range(60, 70)}


def test_a_bone_without_influence_gets_points_from_everywhere():
    example = line(uniform=100, pool=300)
    near = example.points[skin_points(example, [2], 60, np.random.default_rng(0))[0, 30:], 0]
    assert near.min() < 0.2
    assert near.max() > 0.8


@given(
    st.integers(1, 30),
    st.integers(0, 30),
    st.integers(1, 50),
    st.lists(st.integers(0, 2), min_size=1, max_size=4),
)
def test_any_number_of_points_can_be_drawn(uniform, pool, count, bones):
    example = line(uniform, pool)
    rows = skin_points(example, bones, count, np.random.default_rng(1))
    assert rows.shape == (len(bones), count)
    assert (rows >= 0).all()
    assert (rows < uniform + pool).all()
    assert (rows[:, : count // 2] < uniform).all()
    # Nothing twice while there is enough.
    if count // 2 <= uniform:
        assert all(len(set(row[: count // 2])) == count // 2 for row in rows)


# ---------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"points": 0}, "'data.points' must be at least 1, not 0"),
        ({"dense_pool": -1}, "'data.dense_pool' must be at least 0, not -1"),
        ({"vertices": -1}, "'data.vertices' must be at least 0, not -1"),
        ({"max_joints": 0}, "'data.max_joints' must be at least 1, not 0"),
        ({"first_seed": -5}, "'data.first_seed' must be at least 0, not -5"),
        (
            {"first_seed": EVAL_FIRST_SEED},
            "'data.first_seed' must be below 1000000000, where the creatures held out",
        ),
        ({"max_faces": 0}, "'data.max_faces' must be at least 1, not 0"),
        ({"rigs": 3}, "unknown key 'data.rigs'"),
        ({"augment": {"turn_probability": 2}}, "'data.augment.turn_probability' must be between 0 and 1"),
        ({"sources": [{"files": 3}]}, "'data.sources[0].files' must be text or a list or null, not 3"),
        ({"sources": [{"creatures": True}, {}]}, "'data.sources[1]': set exactly one of 'prepared'"),
        (
            {"sources": [{"creatures": True, "prepared": "a"}]},
            "'data.sources[0]': set exactly one of 'prepared'",
        ),
        (
            {"sources": [{"files": "a", "kinds": ["biped"]}]},
            "'data.sources[0]': 'kinds' needs 'creatures: true'; add it",
        ),
        (
            {"sources": [{"creatures": True, "kinds": ["cow"]}]},
            "'data.sources[0]': unknown creature kind 'cow'; choose from ",
        ),
        ({"sources": [{"creatures": True, "kinds": []}]}, "'data.sources[0]': 'kinds' is empty"),
        (
            {"sources": [{"files": "a", "weight": -1}]},
            "'data.sources[0]': 'weight' must be finite and at least 0, not -1",
        ),
        ({"sources": [{"files": "a", "weight": 0}]}, "'data.sources' all have weight 0"),
    ],
)
def test_data_recipes_that_cannot_be(values, message):
    with pytest.raises(RecipeError) as caught:
        build(RigDataRecipe, values, "data")
    assert str(caught.value).startswith(message)


def test_how_files_were_read_is_noted(tmp_path, capsys):
    cases = Path(__file__).parents[2] / "data" / "gltf" / "cases"
    (tmp_path / "hat.vrm").write_bytes((cases / "unskinned_part.glb").read_bytes())
    (tmp_path / "plain.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    rigs, refusals = load_rigs(str(tmp_path), 64, 100)
    assert [mesh.name for mesh, _ in rigs] == ["hat"]
    assert [str(refusal) for refusal in refusals] == [
        f"{tmp_path}/plain.obj: the mesh has no skin; bind it to a skeleton"
    ]
    assert capsys.readouterr().err == (
        f"note: {tmp_path}/hat.vrm: excluded 1 mesh that no joint moves from the rig: hat (36 vertices)\n"
    )
