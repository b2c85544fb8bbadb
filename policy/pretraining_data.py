"""Rig examples for both pre-training stages: clouds with weights, and what the skin encoder sees."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from data.creatures import make_creature
from data.dataset import EVAL_FIRST_SEED
from data.load import Refusal, find_meshes
from data.mesh import Mesh, MeshError
from data.rig import Rig, depth_first
from data.sampling import sample_surface_indexed
from data.skinned_glb import read_skinned_glb
from data.typed_recipe import RecipeError

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class RigDataRecipe:
    """Where rigs come from: a pattern of skinned GLB files, or (null) procedural creatures by seed.

    `points`: the cloud a model sees. `dense_pool`: further points, from which those near a bone are taken.
    Rigs of files with more than `max_joints` joints are left out.
    """

    rigs: str | list[str] | None = None
    first_seed: int = 10_000_000
    points: int = 1024
    dense_pool: int = 3072
    max_joints: int = 64

    def __post_init__(self) -> None:
        for name, least in (("points", 1), ("dense_pool", 0), ("max_joints", 1), ("first_seed", 0)):
            if getattr(self, name) < least:
                raise RecipeError(f"'data.{name}' must be at least {least}, not {getattr(self, name)}")
        if self.first_seed >= EVAL_FIRST_SEED:
            raise RecipeError(
                f"'data.first_seed' must be below {EVAL_FIRST_SEED}, where the creatures held out for "
                f"evaluation begin, not {self.first_seed}"
            )


@dataclass(frozen=True, eq=False)
class RigExample:
    """A rig with a cloud that carries its weights; mesh frame, depth-first joint order.

    joints (J, 3), parents (J,); points, normals (P, 3) and weights (P, J), of which the first
    `uniform` rows are the cloud a model sees and the rest a pool for dense sampling. float32.
    """

    joints: Floats
    parents: NDArray[np.int64]
    points: Floats
    normals: Floats
    weights: Floats
    uniform: int


class RigExamples(Dataset[RigExample]):
    """Example i is a function of the recipe and i alone, so training can resume anywhere.

    Files that cannot be used are named on standard error. Raises MeshError when no rig can be used.
    """

    def __init__(self, recipe: RigDataRecipe) -> None:
        self.recipe = recipe
        self.rigs: list[tuple[Mesh, Rig]] | None = None
        if recipe.rigs is not None:
            self.rigs, refusals = load_rigs(recipe.rigs, recipe.max_joints)
            for refusal in refusals:
                print(f"skipped: {refusal}", file=sys.stderr)

    def __getitem__(self, index: int) -> RigExample:
        recipe = self.recipe
        rng = np.random.default_rng((recipe.first_seed, index))
        if self.rigs is None:
            creature = make_creature(recipe.first_seed + index)
            mesh, rig = creature.mesh, creature.rig
        else:
            mesh, rig = self.rigs[int(rng.integers(len(self.rigs)))]
        return make_example(mesh, rig, recipe.points, recipe.dense_pool, rng)


def load_rigs(pattern: str | Sequence[str], max_joints: int) -> tuple[list[tuple[Mesh, Rig]], list[Refusal]]:
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
        joints = len(rig.joints)
        if joints > max_joints:
            reason = f"it has {joints} joints, the limit is {max_joints}; raise 'data.max_joints'"
            refusals.append(Refusal(str(path), reason))
            continue
        total = rig.weights.sum(axis=1, keepdims=True)
        shares = np.divide(rig.weights, total, out=np.zeros_like(rig.weights), where=total > 0)
        rigs.append((mesh, replace(rig, weights=shares)))
    if not rigs:
        reasons = "".join(f"\n  {refusal}" for refusal in refusals)
        why = (
            f"none of its {len(files)} files is a usable rig; mend or replace them:"
            if files
            else ("no file matches; check the path or pattern (quote it in a shell)")
        )
        raise MeshError(f"{pattern}: {why}{reasons}")
    return rigs, refusals


def make_example(mesh: Mesh, rig: Rig, points: int, pool: int, rng: np.random.Generator) -> RigExample:
    """Sample `points` + `pool` surface points of a mesh with the rig's weights interpolated there."""
    cloud, normals, face_index, barycentric = sample_surface_indexed(
        mesh.vertices, mesh.faces, points + pool, rng
    )
    weights = np.einsum("nk,nkj->nj", barycentric, rig.weights[mesh.faces[face_index]])
    ordered = depth_first(Rig(rig.joints, rig.parents, weights.astype(np.float32), rig.names))
    return RigExample(ordered.joints, ordered.parents, cloud, normals, ordered.weights, points)


def skin_points(
    example: RigExample, bones: Sequence[int] | NDArray[np.integer], count: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Rows of the cloud to show for each bone: (len(bones), count), half uniform, half near the bone.

    "Near" is the box of the points the bone influences (weight > 1e-3), grown by a tenth of its
    diagonal on each side; a bone without influence gets uniform points only.
    """
    uniform = count // 2
    rows = np.empty((len(bones), count), dtype=np.int64)
    for row, bone in zip(rows, bones, strict=True):
        row[:uniform] = rng.choice(example.uniform, uniform, replace=uniform > example.uniform)
        influenced = example.points[example.weights[:, bone] > 1e-3]
        near = np.arange(len(example.points))
        if len(influenced):
            low, high = influenced.min(axis=0), influenced.max(axis=0)
            margin = 0.1 * float(np.linalg.norm(high - low)) + 1e-3
            inside = ((example.points >= low - margin) & (example.points <= high + margin)).all(axis=1)
            near = np.flatnonzero(inside)
        row[uniform:] = rng.choice(near, count - uniform, replace=len(near) < count - uniform)
    return rows
