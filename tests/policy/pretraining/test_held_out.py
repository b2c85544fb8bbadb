"""Held-out sets: what they hold, that nothing random changes them, and rigs that are also trained on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import EVAL_FIRST_SEED, MeshError, make_creature, read_manifest, write_skinned_glb
from data.augment.augment import AugmentRecipe
from data.prepare import PrepareSettings, prepare
from data.typed_recipe import RecipeError
from policy.pretraining.held_out import held_out_batches
from policy.pretraining.point_cloud import RigExample
from policy.pretraining.rig_examples import RigDataRecipe, SourceRecipe
from policy.pretraining.validation import ValidationRecipe

DATA = RigDataRecipe(points=30, dense_pool=20, vertices=10)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    for seed in range(4):
        creature = make_creature(seed)
        write_skinned_glb(tmp_path / "raw" / f"{seed}.glb", creature.mesh, creature.rig)
    return tmp_path / "raw"


@pytest.fixture
def prepared(raw: Path, tmp_path: Path) -> Path:
    """Two rigs for training, two held out."""
    prepare([raw], tmp_path / "prepared", PrepareSettings(0.5, class_name="vroid"))
    return tmp_path / "prepared"


def held_out(data: RigDataRecipe = DATA, **settings: Any) -> dict[str, list[RigExample]]:
    recipe = ValidationRecipe(**{"every": 1, "creatures": 0, **settings})
    batches = held_out_batches(recipe, data, lambda example, rng: example, list, 2)
    for parts in batches.values():
        assert [len(batch) for batch, _ in parts] == [count for _, count in parts]
        assert all(count == 2 for _, count in parts[:-1])
    return {name: [one for batch, _ in parts for one in batch] for name, parts in batches.items()}


def test_creatures_are_those_that_no_training_uses(prepared):
    both = held_out(creatures=3, rigs=str(prepared))
    assert list(both) == ["rigs", "creatures"]
    for index, example in enumerate(both["creatures"]):
        expected = make_creature(EVAL_FIRST_SEED + index).rig.joints
        np.testing.assert_array_equal(example.joints, expected)
        assert (example.uniform, len(example.points)) == (30, 60)


def test_points_are_fixed_and_never_augmented(prepared):
    one = held_out(rigs=str(prepared))["rigs"]
    augment = AugmentRecipe(vertex_noise=0.1, scale_probability=1.0)
    other = held_out(replace(DATA, augment=augment, first_seed=5), rigs=str(prepared))["rigs"]
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.points, b.points)
        np.testing.assert_array_equal(a.weights, b.weights)
        assert a.class_name == "vroid"


def test_a_prepared_folder_gives_its_held_out_split_beside_its_training_split(prepared):
    data = replace(DATA, sources=(SourceRecipe(prepared=str(prepared)),))
    rigs = held_out(data, rigs=str(prepared))["rigs"]
    entries = [rig for rig in read_manifest(prepared).rigs if rig.split == "eval"]
    assert [len(rig.joints) for rig in rigs] == [entry.joints for entry in entries]
    assert len(entries) == 2


def test_rigs_that_are_also_trained_on_are_refused(prepared, raw, tmp_path):
    trained = [rig for rig in read_manifest(prepared).rigs if rig.split == "train"]
    on_folder = replace(DATA, sources=(SourceRecipe(prepared=str(prepared)),))
    copy = tmp_path / "copy"
    prepare([raw], copy, PrepareSettings(0.75))  # another split of the same rigs
    again = {rig.digest for rig in read_manifest(copy).rigs if rig.split == "eval"}
    shared = [rig for rig in trained if rig.digest in again]
    for data, rigs, count in (
        (on_folder, f"{prepared}/rigs", "2 of 4"),  # as files, whatever their split
        (on_folder, str(raw), "2 of 4"),  # the files that they were prepared from
        (on_folder, str(copy), f"{len(shared)} of {len(again)}"),
        (replace(DATA, sources=(SourceRecipe(files=str(raw)),)), f"{raw}/1.glb", "1 of 1"),
    ):
        with pytest.raises(RecipeError) as caught:
            held_out(data, rigs=rigs)
        assert str(caught.value).startswith(
            f"'validation.rigs': {count} held-out rigs are also trained on ('data.sources'), such as "
        )
        held_out(replace(data, sources=()), rigs=rigs)  # training on creatures
    # A source of weight 0 is not trained on.
    unused = (SourceRecipe(prepared=str(prepared), weight=0), SourceRecipe(creatures=True))
    assert len(held_out(replace(DATA, sources=unused), rigs=str(raw))["rigs"]) == 4


def test_files_that_cannot_be_used(prepared, raw, tmp_path, capsys):
    (raw / "broken.glb").write_bytes(b"glTF")
    assert len(held_out(rigs=[str(raw)])["rigs"]) == 4
    assert f"skipped: {raw}/broken.glb: " in capsys.readouterr().err
    with pytest.raises(MeshError, match=r"'validation.rigs': .*nowhere/\*: no file matches; check the path"):
        held_out(rigs=f"{tmp_path}/nowhere/*")
    with pytest.raises(MeshError, match="none of the 2 rigs is usable"):
        held_out(replace(DATA, max_joints=1), rigs=str(prepared))
    assert capsys.readouterr().err.count("is over the training rigs' limits") == 2
