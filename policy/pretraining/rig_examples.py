"""Training examples of both pre-training stages: points of a rigged mesh with their skinning weights."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch.utils.data import Dataset

from data.augment.augment import AugmentRecipe, augmented
from data.creatures import expanded_kinds, make_creature
from data.formats.load import Refusal, find_meshes, load_asset, meshes_passed_over
from data.formats.rig_npz import RiggedMesh
from data.mesh import Mesh, MeshError
from data.rig import Rig
from data.sets.dataset import EVAL_FIRST_SEED
from data.sets.mixture import Mixture, MixtureSource
from data.sets.prepared import PreparedRigs, is_prepared
from data.typed_recipe import PathText, RecipeError
from policy.pretraining.point_cloud import RigExample, make_example, skeleton_example
from policy.pretraining.recent_items import RecentItems


@dataclass(frozen=True)
class SourceRecipe:
    """One source of rigs; exactly one of `prepared`, `files` and `creatures` is set."""

    prepared: PathText | None = None
    """Folder made by `python -m data.prepare`; its training split is used, and each rig is read when drawn.
    Source: this project."""

    files: PathText | list[PathText] | None = None
    """Pattern, or list of patterns, of skinned GLB files; all are read at the start. Source: this project."""

    creatures: bool = False
    """Procedural creatures, one seed each. Source: this project."""

    kinds: list[str] | None = None
    """Creature kinds to cycle through, such as `[quadruped, biped]`; a kind listed twice comes twice as
    often, and `lifelike` stands for all kinds that look like game artists' rigs. null lets each seed choose
    among the others. Source: this project."""

    weight: float = 1.0
    """Share of the examples relative to the other sources' weights; at least 0, and a source of weight 0 is
    not opened. Source: this project."""

    def __post_init__(self) -> None:
        if (self.prepared is not None) + (self.files is not None) + self.creatures != 1:
            raise ValueError(
                "set exactly one of 'prepared' (a folder), 'files' (a pattern), 'creatures: true'"
            )
        if self.kinds is not None and not self.creatures:
            raise ValueError("'kinds' needs 'creatures: true'; add it or remove 'kinds'")
        expanded_kinds(self.kinds or ())
        if self.kinds == []:
            raise ValueError("'kinds' is empty; list creature kinds or remove it")
        if not 0 <= self.weight < np.inf:
            raise ValueError(f"'weight' must be finite and at least 0, not {self.weight}")


@dataclass(frozen=True)
class RigDataRecipe:
    """Where training rigs come from, how they are augmented, and how many points of each are drawn."""

    sources: tuple[SourceRecipe, ...] = ()
    """Sources of rigs, mixed by weight, of which at least one is above 0; an empty list means procedural
    creatures. Source: this project."""

    augment: AugmentRecipe = field(default_factory=AugmentRecipe)
    """Augmentations of each rig."""

    first_seed: int = 10_000_000
    """Seed of the first procedural creature, and of all random draws of the data; at least 0 and below
    1,000,000,000, where held-out creatures start. Source: this project."""

    points: int = 1024
    """Uniform surface points per mesh, which the mesh encoder and the skin VAE's condition see; at least 1.
    Source: specification, section 12.2 (54,000)."""

    dense_pool: int = 3072
    """Further surface points, as many on a small bone as on a large one, from which points near a bone are
    taken; at least 0. Source: specification, section 12.2."""

    vertices: int = 2048
    """Maximum number of mesh vertices (welded) added to the points, with their own weights and vertex
    normals; at least 0. Source: specification, section 12.2 (16,384)."""

    max_joints: int = 64
    """Rigs with more joints are skipped; at least 1. Source: this project."""

    max_faces: int = 300_000
    """Rigs with more faces are skipped; at least 1. Source: this project."""

    cache_megabytes: int = 256
    """Memory (MiB) in which each data loader's process keeps the prepared rigs that it used last, of every
    source; at least 0, and 0 reads each rig again. Source: this project."""

    def __post_init__(self) -> None:
        for name, least in (
            ("points", 1),
            ("dense_pool", 0),
            ("vertices", 0),
            ("max_joints", 1),
            ("max_faces", 1),
            ("first_seed", 0),
            ("cache_megabytes", 0),
        ):
            if getattr(self, name) < least:
                raise RecipeError(f"'data.{name}' must be at least {least}, not {getattr(self, name)}")
        if self.first_seed >= EVAL_FIRST_SEED:
            raise RecipeError(
                f"'data.first_seed' must be below {EVAL_FIRST_SEED}, where the creatures held out for "
                f"evaluation start, not {self.first_seed}"
            )
        if self.sources and not any(source.weight for source in self.sources):
            raise RecipeError("'data.sources' all have weight 0; set at least one weight above 0")


@dataclass(frozen=True)
class _Source:
    """An opened source: `read(item, index)` returns one of its `count` rigs for example `index`."""

    name: str
    count: int
    read: Callable[[int, int], RiggedMesh]


class RigExamples(Dataset[RigExample]):
    """Training examples; example i is a function of the recipe and i alone, so training can resume anywhere.

    Unusable rigs are reported on standard error. Raises MeshError if a source has no usable rig, and later,
    naming the file, if a prepared rig cannot be read.
    """

    def __init__(self, recipe: RigDataRecipe) -> None:
        self.recipe = recipe
        listed = recipe.sources or (SourceRecipe(creatures=True),)
        weights = [source.weight for source in listed if source.weight]
        self.sources = [_opened(source, recipe) for source in listed if source.weight]
        self.mixture = Mixture(
            [
                MixtureSource(source.name, range(source.count), weight)
                for source, weight in zip(self.sources, weights, strict=True)
            ],
            recipe.first_seed,
        )

    def __getitem__(self, index: int) -> RigExample:
        return self.example(index)

    def example(self, index: int, skeleton: bool = False) -> RigExample:
        """Example `index`; with `skeleton`, only its uniform points, without weights, and its joints."""
        recipe = self.recipe
        source, item = self.mixture.place(index)
        read = self.sources[source].read(item, index)
        changes = np.random.default_rng((recipe.first_seed, index, 3))
        mesh, rig = augmented(read.mesh, read.rig, recipe.augment, changes)
        rng = np.random.default_rng((recipe.first_seed, index))
        if skeleton:
            example = skeleton_example(mesh, rig, recipe.points, rng)
        else:
            example = make_example(mesh, rig, recipe.points, recipe.dense_pool, recipe.vertices, rng)
        return replace(example, class_name=read.class_name)


def _opened(source: SourceRecipe, recipe: RigDataRecipe) -> _Source:
    """Open a source. Raises MeshError if it has no rig within the recipe's limits."""
    if source.prepared is not None:
        return _prepared_source(source.prepared, recipe)
    if source.files is not None:
        rigs, refusals = load_rigs(source.files, recipe.max_joints, recipe.max_faces)
        for line in meshes_passed_over(source.files):
            print(f"note: {line}", file=sys.stderr)
        for refusal in refusals:
            print(f"skipped: {refusal}", file=sys.stderr)
        return _Source(str(source.files), len(rigs), lambda item, index: RiggedMesh(*rigs[item]))
    kinds = expanded_kinds(source.kinds or ())

    def creature(item: int, index: int) -> RiggedMesh:
        seed = recipe.first_seed + index
        if seed >= EVAL_FIRST_SEED:
            raise RecipeError(
                f"'data.first_seed': example {index} would be a creature held out for evaluation "
                f"(seed {seed}); choose a smaller first seed"
            )
        made = make_creature(seed, kinds[index % len(kinds)] if kinds else None)
        return RiggedMesh(made.mesh, made.rig)

    # The example's index is the creature's seed, so one item gives a new creature every time.
    return _Source("creatures", 1, creature)


def _prepared_source(folder: str, recipe: RigDataRecipe) -> _Source:
    rigs = PreparedRigs(folder, "train")
    missing = [entry.file for entry in rigs.entries if not (rigs.folder / entry.file).is_file()]
    if missing:
        raise MeshError(
            f"{rigs.folder / missing[0]}: the file is missing ({len(missing)} of the manifest's "
            f"{len(rigs.entries)} are); prepare the folder again"
        )
    kept = [
        place
        for place, entry in enumerate(rigs.entries)
        if entry.joints <= recipe.max_joints and entry.faces <= recipe.max_faces
    ]
    over = len(rigs.entries) - len(kept)
    limits = f"more than {recipe.max_joints} joints or {recipe.max_faces} faces"
    if not kept:
        raise MeshError(
            f"{folder}: all {over} training rigs have {limits}; raise 'data.max_joints' or 'data.max_faces'"
        )
    if over:
        print(f"skipped: {folder}: {over} of {len(rigs.entries)} rigs have {limits}", file=sys.stderr)

    cache: RecentItems[RiggedMesh] = RecentItems(
        lambda item: rigs[kept[item]], _bytes, recipe.cache_megabytes * 2**20
    )
    return _Source(folder, len(kept), lambda item, index: cache[item])


def _bytes(rigged: RiggedMesh) -> int:
    mesh, rig = rigged.mesh, rigged.rig
    return sum(array.nbytes for array in (mesh.vertices, mesh.faces, rig.joints, rig.parents, rig.weights))


def load_rigs(
    pattern: str | Sequence[str], max_joints: int, max_faces: int
) -> tuple[list[tuple[Mesh, Rig]], list[Refusal]]:
    """All usable skinned files that match `pattern` (see `data.find_meshes`), and the refused files.

    Each vertex's weights are normalised to a sum of 1, unless all are 0. Raises MeshError, with each file's
    reason, if no rig is usable.
    """
    rigs: list[tuple[Mesh, Rig]] = []
    refusals: list[Refusal] = []
    files = find_meshes(pattern)
    for path in files:
        try:
            asset = load_asset(path, max_faces=sys.maxsize)
            mesh, rig = asset.mesh, asset.rig
            if rig is None:
                raise asset.skin_error or MeshError(f"{path}: the mesh has no skin; bind it to a skeleton")
        except MeshError as error:
            refusals.append(Refusal(str(path), str(error).removeprefix(f"{path}: ")))
            continue
        if asset.notes:
            print(f"note: {asset.note}", file=sys.stderr)
        sizes = (("joints", len(rig.joints), max_joints), ("faces", len(mesh.faces), max_faces))
        over = [
            f"the rig has {size} {what}, over the limit of {limit}; raise 'data.max_{what}'"
            for what, size, limit in sizes
            if size > limit
        ]
        if over:
            refusals.append(Refusal(str(path), over[0]))
            continue
        total = rig.weights.sum(axis=1, keepdims=True)
        shares = np.divide(rig.weights, total, out=np.zeros_like(rig.weights), where=total > 0)
        rigs.append((mesh, replace(rig, weights=shares)))
    if not rigs:
        reasons = "".join(f"\n  {refusal}" for refusal in refusals)
        raise MeshError(f"{pattern}: {_why_none(pattern, len(files))}{reasons}")
    return rigs, refusals


def _why_none(pattern: str | Sequence[str], files: int) -> str:
    """Why none of the `files` files that match `pattern` gave a rig, with the fix."""
    if files:
        return f"none of the {files} files is a usable rig; fix or replace them:"
    if isinstance(pattern, str) and is_prepared(pattern):
        return "this is a folder of prepared rigs; use 'prepared' instead of 'files'"
    passed_over = meshes_passed_over(pattern)
    if passed_over:
        return "; ".join(line.removeprefix(f"{pattern}: ") for line in passed_over)
    return "no file matches; check the path or pattern (quote patterns in the shell)"
