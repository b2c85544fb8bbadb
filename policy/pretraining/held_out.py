"""Held-out rigs and creatures for validation: read, checked against the training rigs, and sampled once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from data.creatures import make_creature
from data.formats.load import Refusal, find_meshes
from data.formats.rig_formats import RigLimits, find_rigs, read_rigs, rigs_passed_over
from data.formats.rig_npz import RiggedMesh
from data.mesh import MeshError
from data.sets.dataset import EVAL_FIRST_SEED
from data.sets.prepared import PreparedEntry, PreparedRigs, is_prepared
from data.typed_recipe import RecipeError
from policy.pretraining.point_cloud import RigExample, make_example
from policy.pretraining.rig_examples import RigDataRecipe
from policy.pretraining.validation import ValidationRecipe

Item = TypeVar("Item")
Batch = TypeVar("Batch")


def held_out_batches(
    validation: ValidationRecipe,
    data: RigDataRecipe,
    item: Callable[[RigExample, np.random.Generator], Item],
    collate: Callable[[list[Item]], Batch],
    size: int,
) -> dict[str, list[tuple[Batch, int]]]:
    """Batches of at most `size` held-out examples by set ("rigs", "creatures"), and the meshes in each.

    `item` makes an example of a rig with a generator that depends on its place alone. Raises MeshError if
    there is no usable rig, RecipeError if one is also trained on.
    """
    sets: dict[str, list[RiggedMesh]] = {}
    if validation.rigs:
        named = [validation.rigs] if isinstance(validation.rigs, str) else list(validation.rigs)
        sets["rigs"] = _held_out_rigs(named, data)
    if validation.creatures:
        made = (make_creature(EVAL_FIRST_SEED + index) for index in range(validation.creatures))
        sets["creatures"] = [RiggedMesh(creature.mesh, creature.rig) for creature in made]
    result = {}
    for name, rigs in sets.items():
        items = []
        for index, rig in enumerate(rigs):
            rng = np.random.default_rng((EVAL_FIRST_SEED, index))
            example = make_example(rig.mesh, rig.rig, data.points, data.dense_pool, data.vertices, rng)
            items.append(item(replace(example, class_name=rig.class_name), rng))
        chunks = [items[start : start + size] for start in range(0, len(items), size)]
        result[name] = [(collate(chunk), len(chunk)) for chunk in chunks]
    return result


def _held_out_rigs(named: Sequence[str], data: RigDataRecipe) -> list[RiggedMesh]:
    """The held-out splits of prepared folders, and all rigs of other files."""
    trained = _marks_of_training(data)
    rigs: list[RiggedMesh] = []
    also_trained: list[str] = []
    count = 0
    for folder in (name for name in named if is_prepared(name)):
        prepared = PreparedRigs(folder, "eval")
        for place, entry in enumerate(prepared.entries):
            count += 1
            if trained & _marks(prepared.folder, entry):
                also_trained.append(str(prepared.folder / entry.file))
            elif entry.joints <= data.max_joints and entry.faces <= data.max_faces:
                rigs.append(prepared[place])
            else:
                print(f"skipped: {folder}: {entry.name} is over the training rigs' limits", file=sys.stderr)
    patterns = [name for name in named if not is_prepared(name)]
    for line in rigs_passed_over(patterns) if patterns else ():
        print(f"note: {line}", file=sys.stderr)
    for path in find_rigs(patterns) if patterns else ():
        count += 1
        if str(path.resolve()) in trained:
            also_trained.append(str(path))
            continue
        for one in read_rigs(path, RigLimits(data.max_faces, data.max_joints)):
            if isinstance(one, Refusal):
                print(f"skipped: {one}", file=sys.stderr)
            else:
                rigs.append(one.rigged)
    if also_trained:
        raise RecipeError(
            f"'validation.rigs': {len(also_trained)} of {count} held-out rigs are also trained on "
            f"('data.sources'), such as {also_trained[0]}; hold out others, for instance with `python -m "
            "data.prepare`"
        )
    if not rigs:
        why = f"none of the {count} rigs is usable" if count else "no file matches"
        raise MeshError(f"'validation.rigs': {', '.join(named)}: {why}; check the path or pattern")
    return rigs


def _marks_of_training(data: RigDataRecipe) -> set[str]:
    """What identifies the rigs that are trained on: digests, and paths of their files and sources."""
    marks: set[str] = set()
    for source in data.sources:
        if not source.weight:
            continue
        if source.prepared is not None:
            prepared = PreparedRigs(source.prepared, "train")
            for entry in prepared.entries:
                marks |= _marks(prepared.folder, entry)
        elif source.files is not None:
            marks |= {str(path.resolve()) for path in find_meshes(source.files)}
    return marks


def _marks(folder: Path, entry: PreparedEntry) -> set[str]:
    # The entry of a file with many rigs ("file[3]") resolves to a path of its own.
    return {entry.digest, str((folder / entry.file).resolve()), str(Path(entry.source).resolve())}
