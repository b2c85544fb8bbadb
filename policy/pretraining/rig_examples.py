"""Rig examples for both pre-training stages: clouds with weights, and what the skin encoder sees."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch.utils.data import Dataset

from data.augment.augment import AugmentRecipe, augmented
from data.creatures import CREATURE_KINDS, make_creature
from data.formats.load import Refusal, find_meshes
from data.formats.rig_npz import RiggedMesh
from data.gltf.skinned import read_skinned_glb
from data.mesh import Mesh, MeshError
from data.rig import Rig, depth_first
from data.sampling import face_areas, sample_surface_indexed, vertex_normals
from data.sets.dataset import EVAL_FIRST_SEED
from data.sets.mixture import Mixture, MixtureSource
from data.sets.prepared import PreparedRigs, is_prepared
from data.typed_recipe import RecipeError

Floats = NDArray[np.float32]

# A bone influences a point with a weight above this.
INFLUENCE = 1e-3


@dataclass(frozen=True)
class SourceRecipe:
    """One source of rigs and its `weight` among all: exactly one of the three kinds.

    `prepared`: a folder made by `python -m data.prepare`, of which the training split is used, each rig read
    when it is drawn. `files`: a pattern, or several, of skinned GLB files, all read at the start.
    `creatures`: procedural ones by seed, of these `kinds` in turn, or (null) of the kind each seed chooses.
    A source of weight 0 is not opened.
    """

    prepared: str | None = None
    files: str | list[str] | None = None
    creatures: bool = False
    kinds: list[str] | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if (self.prepared is not None) + (self.files is not None) + self.creatures != 1:
            raise ValueError("give it one of 'prepared' (a folder), 'files' (a pattern), 'creatures: true'")
        if self.kinds is not None and not self.creatures:
            raise ValueError("'kinds' are of creatures; add 'creatures: true' or leave them out")
        for kind in self.kinds if self.kinds is not None else CREATURE_KINDS:
            if kind not in CREATURE_KINDS:
                raise ValueError(f"there is no creature kind '{kind}'; choose of {', '.join(CREATURE_KINDS)}")
        if self.kinds == []:
            raise ValueError("'kinds' is empty; name creature kinds or leave it out")
        if not 0 <= self.weight < np.inf:
            raise ValueError(f"'weight' must be 0 or a positive number, not {self.weight}")


@dataclass(frozen=True)
class RigDataRecipe:
    """Where rigs come from, how they are augmented, and how many points are drawn of each.

    `sources`: mixed by weight; none: procedural creatures by seed, counted from `first_seed`.
    `points`: the cloud a model sees. `dense_pool`: further points, from which those near a bone are taken,
    and `vertices`: at most so many of the mesh's vertices for the same end (specification, 12.2).
    Rigs with more than `max_joints` joints or `max_faces` faces are left out.
    """

    sources: tuple[SourceRecipe, ...] = ()
    augment: AugmentRecipe = field(default_factory=AugmentRecipe)
    first_seed: int = 10_000_000
    points: int = 1024
    dense_pool: int = 3072
    vertices: int = 2048
    max_joints: int = 64
    max_faces: int = 300_000

    def __post_init__(self) -> None:
        for name, least in (
            ("points", 1),
            ("dense_pool", 0),
            ("vertices", 0),
            ("max_joints", 1),
            ("max_faces", 1),
            ("first_seed", 0),
        ):
            if getattr(self, name) < least:
                raise RecipeError(f"'data.{name}' must be at least {least}, not {getattr(self, name)}")
        if self.first_seed >= EVAL_FIRST_SEED:
            raise RecipeError(
                f"'data.first_seed' must be below {EVAL_FIRST_SEED}, where the creatures held out for "
                f"evaluation begin, not {self.first_seed}"
            )
        if self.sources and not any(source.weight for source in self.sources):
            raise RecipeError("'data.sources' have weight 0 throughout; give one of them a weight above 0")


@dataclass(frozen=True, eq=False)
class RigExample:
    """A rig with a cloud that carries its weights; mesh frame, depth-first joint order.

    joints (J, 3), parents (J,); points, normals (P, 3) and weights (P, J), of which the first
    `uniform` rows are the cloud a model sees, the last `vertices` rows vertices of the mesh, and those
    between a pool for dense sampling. float32.
    `class_name`: what the rig's data set calls its kind, such as "articulation", if it says.
    `near`: rows near the bones asked for so far; `near_bone` fills it.
    """

    joints: Floats
    parents: NDArray[np.int64]
    points: Floats
    normals: Floats
    weights: Floats
    uniform: int
    vertices: int = 0
    class_name: str | None = None
    near: dict[int, NDArray[np.int64]] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class _Source:
    """An opened source: `read(item, index)` gives one of `count` items at place `index` of the stream."""

    name: str
    count: int
    read: Callable[[int, int], RiggedMesh]


class RigExamples(Dataset[RigExample]):
    """Example i is a function of the recipe and i alone, so training can resume anywhere.

    Rigs that cannot be used are named on standard error. Raises MeshError when a source has no rig to use,
    and later, naming the file, when a prepared rig cannot be read.
    """

    def __init__(self, recipe: RigDataRecipe) -> None:
        self.recipe = recipe
        wanted = recipe.sources or (SourceRecipe(creatures=True),)
        weights = [source.weight for source in wanted if source.weight]
        self.sources = [_opened(source, recipe) for source in wanted if source.weight]
        self.mixture = Mixture(
            [
                MixtureSource(source.name, range(source.count), weight)
                for source, weight in zip(self.sources, weights, strict=True)
            ],
            recipe.first_seed,
        )

    def __getitem__(self, index: int) -> RigExample:
        recipe = self.recipe
        source, item = self.mixture.place(index)
        read = self.sources[source].read(item, index)
        changes = np.random.default_rng((recipe.first_seed, index, 3))
        mesh, rig = augmented(read.mesh, read.rig, recipe.augment, changes)
        rng = np.random.default_rng((recipe.first_seed, index))
        example = make_example(mesh, rig, recipe.points, recipe.dense_pool, recipe.vertices, rng)
        return replace(example, class_name=read.class_name)


def _opened(source: SourceRecipe, recipe: RigDataRecipe) -> _Source:
    """A source ready to be read. Raises MeshError if it holds no rig within the recipe's limits."""
    if source.prepared is not None:
        return _prepared_source(source.prepared, recipe)
    if source.files is not None:
        rigs, refusals = load_rigs(source.files, recipe.max_joints, recipe.max_faces)
        for refusal in refusals:
            print(f"skipped: {refusal}", file=sys.stderr)
        return _Source(str(source.files), len(rigs), lambda item, index: RiggedMesh(*rigs[item]))
    kinds = source.kinds

    def creature(item: int, index: int) -> RiggedMesh:
        seed = recipe.first_seed + index
        if seed >= EVAL_FIRST_SEED:
            raise RecipeError(
                f"'data.first_seed': example {index} would be a creature held out for evaluation "
                f"(seed {seed}); choose a smaller first seed"
            )
        made = make_creature(seed, kinds[index % len(kinds)] if kinds else None)
        return RiggedMesh(made.mesh, made.rig)

    # The seed is the place in the stream, so there is one item, never the same twice.
    return _Source("creatures", 1, creature)


def _prepared_source(folder: str, recipe: RigDataRecipe) -> _Source:
    rigs = PreparedRigs(folder, "train")
    missing = [entry.file for entry in rigs.entries if not (rigs.folder / entry.file).is_file()]
    if missing:
        raise MeshError(
            f"{rigs.folder / missing[0]}: it is missing, with {len(missing) - 1} other rigs of the manifest; "
            "prepare the folder again"
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
            f"{folder}: all of its {over} rigs for training have {limits}; raise 'data.max_joints' or "
            "'data.max_faces'"
        )
    if over:
        print(f"skipped: {folder}: {over} of {len(rigs.entries)} rigs have {limits}", file=sys.stderr)

    return _Source(folder, len(kept), lambda item, index: rigs[kept[item]])


def load_rigs(
    pattern: str | Sequence[str], max_joints: int, max_faces: int
) -> tuple[list[tuple[Mesh, Rig]], list[Refusal]]:
    """Every usable skinned file that `pattern` names (see `data.find_meshes`), and the refused files.

    Files need not store weights that sum to 1; here each vertex's do, unless it has none. Raises MeshError,
    with each file's reason, if no rig is usable.
    """
    rigs: list[tuple[Mesh, Rig]] = []
    refusals: list[Refusal] = []
    files = find_meshes(pattern)
    for path in files:
        try:
            mesh, rig = read_skinned_glb(path)
        except MeshError as error:
            refusals.append(Refusal(str(path), str(error).removeprefix(f"{path}: ")))
            continue
        sizes = (("joints", len(rig.joints), max_joints), ("faces", len(mesh.faces), max_faces))
        over = [
            f"it has {size} {what}, the limit is {limit}; raise 'data.max_{what}'"
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
        why = (
            f"none of its {len(files)} files is a usable rig; mend or replace them:"
            if files
            else "it is a folder of prepared rigs; name it as 'prepared' rather than as 'files'"
            if isinstance(pattern, str) and is_prepared(pattern)
            else "no file matches; check the path or pattern (quote it in a shell)"
        )
        raise MeshError(f"{pattern}: {why}{reasons}")
    return rigs, refusals


def make_example(
    mesh: Mesh, rig: Rig, points: int, pool: int, vertices: int, rng: np.random.Generator
) -> RigExample:
    """Sample `points` uniform and `pool` bone-wise surface points, and at most `vertices` of the vertices.

    Surface points have the normals of their faces and interpolated weights. Vertices have vertex normals and
    their own weights: what a decoder is asked for in the end, and sharper, since next to a vertex that a bone
    does influence interpolation spreads the bone over whole faces. The pool has the density `bone_density`:
    small bones get as many points as large ones. Raises MeshError if no face has an area.
    """
    parts = [sample_surface_indexed(mesh.vertices, mesh.faces, points, rng)]
    if pool:
        density = bone_density(mesh, rig.weights)
        parts.append(sample_surface_indexed(mesh.vertices, mesh.faces, pool, rng, density))
    cloud, normals, face_index, barycentric = map(np.concatenate, zip(*parts, strict=True))
    weights = np.einsum("nk,nkj->nj", barycentric, rig.weights[mesh.faces[face_index]]).astype(np.float32)
    if vertices:
        own = rng.permutation(len(mesh.vertices))[:vertices]
        vertices = len(own)
        cloud = np.concatenate([cloud, mesh.vertices[own]])
        normals = np.concatenate([normals, vertex_normals(mesh.vertices, mesh.faces)[own]])
        weights = np.concatenate([weights, rig.weights[own]])
    ordered = depth_first(Rig(rig.joints, rig.parents, weights, rig.names))
    return RigExample(ordered.joints, ordered.parents, cloud, normals, ordered.weights, points, vertices)


def bone_density(mesh: Mesh, weights: Floats) -> NDArray[np.float64]:
    """Points per area (F,) such that every bone's faces get equally many on the bone's account.

    A bone's faces are those with a vertex it influences (specification, section 12.2). A face of several
    bones gets the sum of their shares; if no bone has a face of positive area, all faces get the same.
    weights (V, J).
    """
    influenced = weights > INFLUENCE
    a, b, c = mesh.faces.T
    touched = influenced[a] | influenced[b] | influenced[c]
    areas = face_areas(mesh.vertices, mesh.faces) @ touched
    shares = np.divide(1.0, areas, out=np.zeros_like(areas), where=areas > 0)
    return touched @ shares if shares.any() else np.ones(len(mesh.faces))


def skin_points(
    example: RigExample, bones: Sequence[int] | NDArray[np.integer], count: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Rows of the cloud to show for each bone: (len(bones), count), half from everywhere, half near the bone.

    Everywhere: of the uniform points and the vertices alike.
    "Near" (specification, section 12.2): influenced by the bone (weight above 1e-3), or no further from such
    a point than a tenth of the diagonal of their box, 0.1 at most; the two limits are this project's. Near a
    bone without influence is everywhere.
    """
    half = count // 2
    last = len(example.points)
    everywhere = np.r_[: example.uniform, last - example.vertices : last]
    rows = np.empty((len(bones), count), dtype=np.int64)
    for row, bone in zip(rows, bones, strict=True):
        row[:half] = rng.choice(everywhere, half, replace=half > len(everywhere))
        near = near_bone(example, int(bone))
        row[half:] = rng.choice(near, count - half, replace=len(near) < count - half)
    return rows


def near_bone(example: RigExample, bone: int) -> NDArray[np.int64]:
    """Rows of the cloud near a bone, ascending, as `skin_points` says; remembered in the example."""
    if bone not in example.near:
        points = example.points
        near = example.weights[:, bone] > INFLUENCE
        influenced = points[near]
        if len(influenced):
            columns = influenced.T.copy()  # numpy reduces long rows far faster than short ones
            low, high = columns.min(axis=1), columns.max(axis=1)
            reach = min(0.1 * float(np.linalg.norm(high - low)), 0.1)
            in_box = ~near
            for axis in range(3):
                in_box &= points[:, axis] >= low[axis] - reach
                in_box &= points[:, axis] <= high[axis] + reach
            others = np.flatnonzero(in_box)
            if len(others):
                tree = cKDTree(influenced, balanced_tree=False, compact_nodes=False)
                near[others] = np.isfinite(tree.query(points[others], distance_upper_bound=reach)[0])
        else:
            near[:] = True
        example.near[bone] = np.flatnonzero(near)
    return example.near[bone]
