"""Rig examples for pre-training: from creatures and files, clouds with weights, the points of a bone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import policy.pretraining_data
from data import EVAL_FIRST_SEED, Mesh, MeshError, Rig, make_creature, write_skinned_glb
from data.typed_recipe import RecipeError, build
from policy.pretraining_data import (
    RigDataRecipe,
    RigExample,
    RigExamples,
    load_rigs,
    make_example,
    skin_points,
)

SMALL = RigDataRecipe(points=60, dense_pool=90)


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
        assert example.points.shape == example.normals.shape == (150, 3)
        assert example.weights.shape == (150, joints)
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
    example = make_example(mesh, rig, 40, 60, np.random.default_rng(0))
    assert len(example.points) == 100
    np.testing.assert_allclose(example.weights[:, 0], example.points[:, 0] / 2 + 0.5, atol=1e-6)
    np.testing.assert_allclose(example.weights[:, 1], example.points[:, 1] / 4 + 0.25, atol=1e-6)
    np.testing.assert_array_equal(np.abs(example.normals), np.tile([0, 0, 1], (100, 1)))


def test_joints_come_depth_first_with_their_weights():
    # Children are visited by (y, z, x): joint 2 lies below joint 1 and comes first, then 1 with its child 3.
    joints = np.array([[0, 0, 0], [0, 0.5, 0], [0, -0.5, 0], [0, 0.9, 0]], dtype=np.float32)
    weights = np.tile(np.array([0.1, 0.2, 0.3, 0.4], dtype=np.float32), (4, 1))
    rig = Rig(joints, np.array([-1, 0, 0, 1]), weights)
    example = make_example(square(), rig, 5, 0, np.random.default_rng(0))
    np.testing.assert_array_equal(example.joints, joints[[0, 2, 1, 3]])
    np.testing.assert_array_equal(example.parents, [-1, 0, 0, 2])
    np.testing.assert_allclose(example.weights, np.tile([0.1, 0.3, 0.2, 0.4], (5, 1)), rtol=1e-6)


# ---------------------------------------------------------------- files


def test_rigs_of_files_are_those_that_were_written(rig_files):
    rigs, refusals = load_rigs(str(rig_files / "**" / "*.glb"), max_joints=64)
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
    recipe = replace(SMALL, rigs=str(rig_files))
    examples = RigExamples(recipe)
    first_points = {float(examples[index].joints[0, 0]) for index in range(40)}
    assert len(first_points) == 3
    again = RigExamples(build(RigDataRecipe, {"rigs": [str(rig_files)], "points": 60, "dense_pool": 90}))
    assert all(same(examples[index], again[index]) for index in range(5))
    rigs = [make_creature(seed).rig for seed in range(3)]
    for index in range(5):
        joints = examples[index].joints
        alike = [rig.joints for rig in rigs if rig.joints.shape == joints.shape]
        assert min(np.abs(joints - other).max() for other in alike) < 1e-5


def test_unusable_files_are_named_and_left_out(rig_files, capsys):
    (rig_files / "broken.glb").write_bytes(b"glTF but not really")
    counts = [len(make_creature(seed).rig.joints) for seed in range(3)]
    limit = max(counts) - 1
    examples = RigExamples(replace(SMALL, rigs=str(rig_files), max_joints=limit))
    assert examples.rigs is not None
    assert [len(rig.joints) for _, rig in examples.rigs] == [count for count in counts if count <= limit]
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("skipped: ") == 1 + counts.count(max(counts))
    assert f"skipped: {rig_files / 'broken.glb'}: " in told.err
    assert f"joints, the limit is {limit}; raise 'data.max_joints'" in told.err


def test_no_usable_rig_at_all(tmp_path):
    with pytest.raises(MeshError, match=r"nowhere/\*\.glb: no file matches"):
        RigExamples(replace(SMALL, rigs=f"{tmp_path}/nowhere/*.glb"))
    for name in ("one.glb", "two.glb"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(
        MeshError, match=r"none of its 2 files is a usable rig(.|\n)*one\.glb: (.|\n)*two\.glb: "
    ):
        RigExamples(replace(SMALL, rigs=str(tmp_path)))


def test_weights_of_files_become_shares(tmp_path, monkeypatch):
    weights = np.array([[2, 2], [0.5, 0], [0, 0], [1, 3]], dtype=np.float32)
    rig = Rig(np.zeros((2, 3), dtype=np.float32), np.array([-1, 0]), weights)
    monkeypatch.setattr(policy.pretraining_data, "read_skinned_glb", lambda path: (square(), rig))
    (tmp_path / "a.glb").write_bytes(b"")
    ((_, read),), _ = load_rigs(str(tmp_path), 64)
    # Halves, all, a vertex without weight stays without, quarters.
    np.testing.assert_array_equal(read.weights, np.array([[0.5, 0.5], [1, 0], [0, 0], [0.25, 0.75]]))


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
    # The box of a half, 0.5 long, grown by a tenth of its diagonal and 1e-3 on each side: 0.051.
    assert near[0].min() >= 0.5 - 0.0511
    assert near[1].max() <= 0.5 + 0.0511
    assert near[0].max() > 0.9
    assert (rows[:, 20:] >= 100).any()  # from the pool too
    uniform = example.points[rows[0, :20], 0]
    assert uniform.min() < 0.4  # from everywhere, also for bone 1


def test_points_near_a_bone_reach_a_little_beyond_it():
    example = line(uniform=10, pool=5000)
    near = example.points[skin_points(example, [1], 4000, np.random.default_rng(0))[0, 2000:], 0]
    assert 0.449 - 1e-3 <= near.min() < 0.46


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
def test_any_number_of_points_can_be_asked_for(uniform, pool, count, bones):
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
        ({"max_joints": 0}, "'data.max_joints' must be at least 1, not 0"),
        ({"first_seed": -5}, "'data.first_seed' must be at least 0, not -5"),
        (
            {"first_seed": EVAL_FIRST_SEED},
            "'data.first_seed' must be below 1000000000, where the creatures held out",
        ),
        ({"rigs": 3}, "'data.rigs' must be str or a list or null, not 3"),
    ],
)
def test_data_recipes_that_cannot_be(values, message):
    with pytest.raises(RecipeError) as caught:
        build(RigDataRecipe, values, "data")
    assert str(caught.value).startswith(message)
