"""Mesh samples from creatures, mesh files or prepared rigs; `split`, the train/eval split by hashed name."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from data.creatures import expanded_kinds, make_creature
from data.formats.folders import Pattern
from data.formats.load import (
    MAX_BYTES,
    MAX_FACES,
    Refusal,
    find_meshes,
    load_assets,
    meshes_passed_over,
)
from data.formats.rig_npz import read_rig_npz
from data.mesh import Mesh, MeshError, UpAxis
from data.rig import Rig, depth_first
from data.sampling import sample_surface
from data.sets.prepared import PreparedEntry, PreparedRigs
from data.transforms import turned

# Training and evaluation creatures never share a seed.
TRAIN_FIRST_SEED = 0
EVAL_FIRST_SEED = 1_000_000_000


@dataclass(frozen=True, eq=False)
class MeshSample:
    """A mesh with the surface points that a model is conditioned on, and its ground-truth rig if known.

    `points`, `normals` (N, 3) float32: surface points and flat unit face normals, mesh frame.
    `rig`: bind pose in depth-first joint order, weights (V, J) for `mesh.vertices`; None if unknown.
    `note`: how its file was read, "<file>: <note>; …"; empty if there is nothing to say.
    `file`: the file it was read from; None for a creature.
    """

    name: str
    mesh: Mesh
    points: NDArray[np.float32]
    normals: NDArray[np.float32]
    rig: Rig | None
    note: str = ""
    file: str | None = None


class Named(Protocol):
    """Anything with a `name`."""

    @property
    def name(self) -> str: ...


NamedItem = TypeVar("NamedItem", bound=Named)


def make_sample(mesh: Mesh, rig: Rig | None, points: int, seed: int) -> MeshSample:
    """Sample `points` surface points of a mesh; the same mesh name and seed give the same points.

    rig: mesh frame, any joint order; the sample has it in depth-first order.

    Raises MeshError if the rig's weights and the mesh have different numbers of vertices.
    """
    if rig is not None and len(rig.weights) != len(mesh.vertices):
        raise MeshError(
            f"{mesh.name}: the rig has weights for {len(rig.weights)} vertices but the mesh has "
            f"{len(mesh.vertices)}; use the rig that was loaded with this mesh"
        )
    rng = np.random.default_rng([seed, _hash(mesh.name)])
    drawn, normals = sample_surface(mesh.vertices, mesh.faces, points, rng)
    return MeshSample(mesh.name, mesh, drawn, normals, None if rig is None else depth_first(rig))


def creature_samples(
    count: int, first_seed: int, points: int, kinds: Sequence[str] | None = None, max_turn: float = 0.0
) -> list[MeshSample]:
    """Samples of the creatures with seeds first_seed to first_seed + count - 1, `points` points each.

    Start at TRAIN_FIRST_SEED for training and at EVAL_FIRST_SEED for held-out creatures. `kinds`: cycle
    through these kinds (see `expanded_kinds`) instead of letting each seed choose. `max_turn` (radians):
    rotate each creature about the up axis by a uniform angle in [-max_turn, max_turn] drawn from its seed.
    Raises ValueError for an unknown kind or if the seeds cross from the training range into the evaluation
    range.
    """
    if first_seed < EVAL_FIRST_SEED < first_seed + count:
        raise ValueError(
            f"creature seeds {first_seed} to {first_seed + count - 1} overlap the evaluation range, which "
            f"starts at {EVAL_FIRST_SEED}; choose a smaller first seed or count"
        )
    samples = []
    kinds = expanded_kinds(kinds or ())
    for seed in range(first_seed, first_seed + count):
        creature = make_creature(seed, kinds[(seed - first_seed) % len(kinds)] if kinds else None)
        mesh, rig = creature.mesh, creature.rig
        if max_turn:
            mesh, rig = turned(mesh, rig, np.random.default_rng([seed, 1]), max_turn)
        samples.append(make_sample(mesh, rig, points, seed))
    return samples


def file_samples(
    pattern: Pattern,
    points: int,
    seed: int = 0,
    max_faces: int = MAX_FACES,
    max_bytes: int = MAX_BYTES,
    up: UpAxis | None = None,
) -> tuple[list[MeshSample], list[Refusal]]:
    """Samples of all usable files that match `pattern` (see `find_meshes`), and the refused files.

    Names are file stems, made unique. Samples of skinned files have a rig. `up`: see `load_meshes`. Raises
    MeshError, with the reason for each file, if no file is usable.
    """
    assets, refusals = load_assets(pattern, max_faces, max_bytes, up=up)
    if not assets:
        shown = ", ".join(map(str, [pattern] if isinstance(pattern, str | Path) else pattern))
        if not find_meshes(pattern):
            if lines := meshes_passed_over(pattern):
                raise MeshError("; ".join(lines))
            raise MeshError(
                f"{shown}: no file matches; check the path or pattern (quote patterns in the shell)"
            )
        reasons = "".join(f"\n  {refusal}" for refusal in refusals)
        raise MeshError(
            f"{shown}: none of the {len(refusals)} files is a usable mesh; fix or replace them:{reasons}"
        )
    samples = [
        replace(make_sample(asset.mesh, asset.rig, points, seed), note=asset.note, file=asset.file)
        for asset in assets
    ]
    return samples, refusals


def prepared_samples(
    folder: str | Path,
    part: Literal["train", "eval"],
    points: int,
    seed: int = 0,
    max_faces: int = MAX_FACES,
    most: int | None = None,
) -> tuple[list[MeshSample], list[Refusal]]:
    """Samples with rigs of one split of a folder made by `python -m data.prepare`, and the refused files.

    `most`: maximum number of rigs, chosen by a hash of (seed, name). Raises MeshError if the folder has no
    rig in this split or, with the reason for each file, no usable one.
    """
    rigs = PreparedRigs(folder, part)
    entries: Sequence[PreparedEntry] = rigs.entries
    if most is not None and most < len(entries):
        entries = split(entries, most, seed)[1]
    samples: list[MeshSample] = []
    refusals: list[Refusal] = []
    for entry in entries:
        file = rigs.folder / entry.file
        if entry.faces > max_faces:
            reason = (
                f"the rig has {entry.faces} faces, over the limit of {max_faces}; simplify it or raise the "
                "limit"
            )
            refusals.append(Refusal(str(file), reason))
            continue
        try:
            rigged = read_rig_npz(file)
        except MeshError as problem:
            refusals.append(Refusal(str(file), str(problem).removeprefix(f"{file}: ")))
            continue
        samples.append(replace(make_sample(rigged.mesh, rigged.rig, points, seed), file=str(file)))
    if not samples:
        reasons = "".join(f"\n  {refusal}" for refusal in refusals)
        raise MeshError(
            f"{folder}: none of the {len(refusals)} rigs is usable; prepare the folder again:{reasons}"
        )
    return samples, refusals


def split(
    items: Sequence[NamedItem], eval_count: int, seed: int = 0
) -> tuple[list[NamedItem], list[NamedItem]]:
    """Split into (train, eval) by a hash of (seed, name), regardless of the order of the items.

    `items` have a unique `name`. Exactly `eval_count` items are held out and at least one remains for
    training; both lists keep the given order. Adding or removing an item moves at most one other item.
    Raises MeshError if there are too few items, ValueError for duplicate names.
    """
    names = [item.name for item in items]
    if len(set(names)) != len(names):
        duplicate = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two items are named {duplicate!r}; make the names unique")
    if not 0 <= eval_count < len(items):
        raise MeshError(
            f"data: {len(items)} usable meshes cannot be split into {eval_count} for evaluation and at least "
            "one for training; add meshes or hold out fewer"
        )
    held_out = set(sorted(names, key=lambda name: (_hash(f"{seed}:{name}"), name))[:eval_count])
    train = [item for item in items if item.name not in held_out]
    return train, [item for item in items if item.name in held_out]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
