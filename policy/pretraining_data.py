"""Rig examples for both pre-training stages: clouds with weights, and what the skin encoder sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from data.creatures import make_creature
from data.load import find_meshes
from data.mesh import Mesh, MeshError
from data.rig import Rig, depth_first
from data.sampling import sample_surface_indexed
from data.skinned_glb import read_skinned_glb

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class RigDataRecipe:
    """Where rigs come from: a pattern of skinned GLB files, or (null) procedural creatures by seed."""

    rigs: str | None = None
    first_seed: int = 10_000_000
    points: int = 1024
    dense_pool: int = 3072
    max_joints: int = 64


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

    Raises MeshError when no rig can be used.
    """

    def __init__(self, recipe: RigDataRecipe) -> None:
        self.recipe = recipe
        self.rigs = None if recipe.rigs is None else load_rigs(recipe.rigs, recipe.max_joints)

    def __getitem__(self, index: int) -> RigExample:
        recipe = self.recipe
        rng = np.random.default_rng((recipe.first_seed, index))
        if self.rigs is None:
            creature = make_creature(recipe.first_seed + index)
            mesh, rig = creature.mesh, creature.rig
        else:
            mesh, rig = self.rigs[int(rng.integers(len(self.rigs)))]
        return make_example(mesh, rig, recipe.points, recipe.dense_pool, rng)


def load_rigs(pattern: str, max_joints: int) -> list[tuple[Mesh, Rig]]:
    """Every skinned GLB that matches `pattern`; refused files are named if none is left (MeshError)."""
    rigs: list[tuple[Mesh, Rig]] = []
    refused: list[str] = []
    for path in find_meshes(pattern):
        try:
            mesh, rig = read_skinned_glb(path)
        except MeshError as error:
            refused.append(str(error))
            continue
        if len(rig.joints) > max_joints:
            refused.append(f"{path}: {len(rig.joints)} joints; raise data.max_joints above {max_joints}")
            continue
        rigs.append((mesh, rig))
    if not rigs:
        raise MeshError(f"{pattern}: no usable rig; {'; '.join(refused) or 'no file matches'}")
    return rigs


def make_example(mesh: Mesh, rig: Rig, points: int, pool: int, rng: np.random.Generator) -> RigExample:
    """Sample `points` + `pool` surface points with interpolated weights; rows of weights sum to 1."""
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
