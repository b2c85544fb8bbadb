"""Samples, data sets and the split."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from hypothesis import given
from hypothesis import strategies as st

from data import (
    CREATURE_KINDS,
    EVAL_FIRST_SEED,
    TRAIN_FIRST_SEED,
    MeshError,
    creature_samples,
    depth_first,
    file_samples,
    make_creature,
    make_sample,
    split,
    write_skinned_glb,
)
from data.rig import reorder


@dataclass(frozen=True)
class Item:
    name: str


def test_sample_is_repeatable_and_in_canonical_order() -> None:
    creature = make_creature(2, "biped")
    swapped = (
        reorder(creature.rig, np.array([0, 2, 1, *range(3, len(creature.rig.joints))]))
        if (creature.rig.parents[2] == 0)
        else creature.rig
    )
    first = make_sample(creature.mesh, swapped, 100, seed=1)
    again = make_sample(creature.mesh, swapped, 100, seed=1)
    np.testing.assert_array_equal(first.points, again.points)
    assert not np.array_equal(first.points, make_sample(creature.mesh, None, 100, seed=2).points)
    other = replace(creature.mesh, name="other")
    assert not np.array_equal(first.points, make_sample(other, None, 100, seed=1).points)
    assert first.points.shape == first.normals.shape == (100, 3)
    assert np.abs(first.points).max() <= 1 + 1e-6
    assert first.rig is not None
    np.testing.assert_array_equal(first.rig.joints, depth_first(creature.rig).joints)
    assert make_sample(creature.mesh, None, 10, seed=0).rig is None
    with pytest.raises(MeshError, match="weights for 3 vertices but the mesh has"):
        make_sample(creature.mesh, replace(creature.rig, weights=creature.rig.weights[:3]), 10, seed=0)


def test_creature_samples() -> None:
    train = creature_samples(6, TRAIN_FIRST_SEED, 32)
    held_out = creature_samples(6, EVAL_FIRST_SEED, 32)
    assert len({sample.name for sample in train + held_out}) == 12
    np.testing.assert_array_equal(train[3].points, creature_samples(1, TRAIN_FIRST_SEED + 3, 32)[0].points)
    named = creature_samples(len(CREATURE_KINDS), 10, 8, kinds=CREATURE_KINDS)
    assert [sample.name for sample in named] == [
        f"{kind}_{10 + number}" for number, kind in enumerate(CREATURE_KINDS)
    ]
    with pytest.raises(ValueError, match="evaluation range"):
        creature_samples(3, EVAL_FIRST_SEED - 2, 8)
    assert len(creature_samples(2, EVAL_FIRST_SEED - 2, 8)) == 2


def test_file_samples_return_rigs_and_refusals(tmp_path: Path) -> None:
    creature = make_creature(9)
    (tmp_path / "sub").mkdir()
    write_skinned_glb(tmp_path / "same.glb", creature.mesh, creature.rig)
    trimesh.creation.icosphere().export(tmp_path / "sub" / "same.ply")
    (tmp_path / "broken.stl").write_text("solid")
    samples, refusals = file_samples(tmp_path, 64, seed=3)
    assert [sample.name for sample in samples] == ["same", "same_2"]
    assert samples[0].rig is not None
    assert samples[0].rig.names == creature.rig.names
    assert samples[1].rig is None
    assert samples[1].mesh.name == "same_2"
    assert [Path(refusal.file).name for refusal in refusals] == ["broken.stl"]


def test_no_usable_mesh_gives_every_reason(tmp_path: Path) -> None:
    with pytest.raises(MeshError, match=r"\*\.glb: no file matches; check the path"):
        file_samples(f"{tmp_path}/*.glb", 8)
    (tmp_path / "a.fbx").write_text("x")
    (tmp_path / "b.obj").write_text("v 0 0 0")
    with pytest.raises(MeshError, match="none of the 2 files is a usable mesh") as caught:
        file_samples(tmp_path, 8)
    assert f"{tmp_path}/a.fbx: FBX is not supported; convert it to GLB" in str(caught.value)
    assert f"{tmp_path}/b.obj: the mesh has no faces" in str(caught.value)


@given(
    names=st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=30, unique=True),
    seed=st.integers(0, 5),
    data=st.data(),
)
def test_split_is_a_partition_and_ignores_the_order(names: list[str], seed: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(names) - 1))
    items = [Item(name) for name in names]
    train, held_out = split(items, count, seed)
    assert len(held_out) == count
    assert sorted(item.name for item in train + held_out) == sorted(names)
    assert [item for item in items if item in train] == train
    shuffled = data.draw(st.permutations(items))
    assert set(split(shuffled, count, seed)[1]) == set(held_out)
    # One more item moves at most one other.
    grown = split([*items, Item("a new one")], count, seed)[1]
    assert len(set(held_out) - set(grown)) <= 1


def test_split_depends_on_the_seed_and_refuses() -> None:
    items = [Item(str(number)) for number in range(40)]
    assert len({tuple(split(items, 8, seed)[1]) for seed in range(5)}) == 5
    for count, few in ((40, items), (41, items), (-1, items), (0, [])):
        with pytest.raises(MeshError, match="cannot be split"):
            split(few, count)
    with pytest.raises(ValueError, match="two items are named '3'"):
        split([*items, Item("3")], 2)


def test_rotated_creatures_keep_their_rig_inside_and_their_names() -> None:
    straight = creature_samples(4, EVAL_FIRST_SEED, 64)
    turned = creature_samples(4, EVAL_FIRST_SEED, 64, max_turn=np.pi / 2)
    again = creature_samples(4, EVAL_FIRST_SEED, 64, max_turn=np.pi / 2)
    for a, b, c in zip(straight, turned, again, strict=True):
        assert a.name == b.name
        assert np.array_equal(b.mesh.vertices, c.mesh.vertices)
        assert not np.allclose(a.mesh.vertices, b.mesh.vertices)
        # A turn keeps distances up to the one scale that returns to the mesh frame, and heights' order.
        edges_a = np.linalg.norm(np.diff(a.mesh.vertices[a.mesh.faces[:50]], axis=1), axis=2)
        edges_b = np.linalg.norm(np.diff(b.mesh.vertices[b.mesh.faces[:50]], axis=1), axis=2)
        ratio = edges_b / edges_a
        assert np.allclose(ratio, ratio[0, 0], rtol=1e-3)
        assert np.abs(b.mesh.vertices).max() == pytest.approx(1, abs=1e-6)
        assert b.rig is not None
        assert a.rig is not None
        assert len(b.rig.joints) == len(a.rig.joints)
        assert (np.abs(b.rig.joints) <= 1).all()


def test_samples_say_how_their_file_was_read() -> None:
    cases = Path(__file__).parents[1] / "gltf" / "cases"
    files = [cases / "stale_mesh_node_transform.glb", cases / "fewer_ibm_than_joints.glb"]
    samples, refusals = file_samples(files, 64)
    assert not refusals
    assert {sample.name: sample.note for sample in samples} == {
        "stale_mesh_node_transform": "",
        "fewer_ibm_than_joints": f"{files[1]}: placed 1 joint without a usable inverse bind matrix by the "
        "neighbouring joints: end",
    }
