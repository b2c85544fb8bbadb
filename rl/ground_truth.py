"""Rollouts against the known rigs of their meshes: the field's metrics of `rl.metrics`, rig by rig."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from data.rig import Rig
from data.sets.dataset import MeshSample
from policy.skintokens.skin_vae import SkinVAE
from rewards.occupancy import solid_faces
from rewards.poses import pose_seed, random_rotations
from rewards.scoring_mesh import vertex_normals, weld
from rewards.skin_decoder import SkinDecoder
from rewards.worker import RewardMesh, RolloutRig
from rl.metrics import (
    BOX_SIDE,
    FAILED_MOTION,
    FAILED_SKELETON,
    FAILED_SKIN,
    MetricError,
    SkeletonDistances,
    SkinScores,
    align_weights,
    motion_loss,
    skeleton_distances,
    skin_scores,
)
from rl.recipe import Recipe
from rl.session import reward_meshes

MOTION_POSES = 5
MOTION_DEGREES = 30.0


@dataclass(frozen=True, eq=False)
class KnownRig:
    """A mesh with its known rig, and where and how rigs are compared with it.

    points, normals (P, 3) float32, mesh frame: distinct vertices and their normals. rig: the known one,
    weights (P, J) at the points. rotations (poses, J, 3, 3) float64, local, the root's identity.
    """

    mesh: RewardMesh
    points: NDArray[np.float32]
    normals: NDArray[np.float32]
    rig: Rig
    rotations: NDArray[np.float64]


def known_rig(sample: MeshSample, vertices: int, seed: int) -> KnownRig | None:
    """What rigs of this mesh are measured against, None if its rig is not known.

    The points are the mesh's vertices that a face with area uses, as the rewards' scoring mesh has them:
    vertices at one place, which files repeat at seams, are one, with the known weights of the first. Of more
    than `vertices` a fixed random choice is taken, which depends on the mesh alone.
    """
    if sample.rig is None:
        return None
    whole, triangles, solid = solid_faces(sample.mesh.vertices, sample.mesh.faces)
    used, local = np.unique(triangles[solid], return_inverse=True)
    first, welded = weld(whole[used].astype(np.float32), local.reshape(-1, 3).astype(np.int64))
    source = used[first]
    points = whole[source].astype(np.float32)
    normals = vertex_normals(points, welded)
    if len(source) > vertices:
        rng = np.random.Generator(np.random.Philox(pose_seed(0, sample.name, 0)))
        kept = np.sort(rng.choice(len(source), vertices, replace=False))
        source, points, normals = source[kept], points[kept], normals[kept]
    rig = Rig(sample.rig.joints, sample.rig.parents, sample.rig.weights[source], sample.rig.names)
    rotations = random_rotations(
        MOTION_POSES, len(rig.joints), MOTION_DEGREES, pose_seed(seed, sample.name, 0)
    )
    rotations[:, 0] = np.eye(3)
    return KnownRig(reward_meshes([sample])[0], points, normals, rig, rotations)


def measure(predicted: Rig, known: KnownRig) -> dict[str, float]:
    """All metrics of a rig whose weights are given at `known.points`; distances in shares of the box side."""
    distances = {
        convention: skeleton_distances(
            predicted.joints, predicted.parents, known.rig.joints, known.rig.parents, convention
        )
        for convention in ("unirig", "rignet")
    }
    skin = skin_scores(*align_weights(predicted, known.rig))
    motion = motion_loss(known.points, predicted, known.rig, known.rotations) / BOX_SIDE
    return _by_name(distances, skin, motion)


def _by_name(distances: dict[str, SkeletonDistances], skin: SkinScores, motion: float) -> dict[str, float]:
    return {
        **{
            f"{convention}_{name}": getattr(found, name)
            for convention, found in distances.items()
            for name in ("j2j", "j2b", "b2b")
        },
        **{
            f"skin_{name}": getattr(skin, name)
            for name in ("l1", "l1_variance", "precision", "recall", "iou")
        },
        "motion_loss": motion,
    }


# What a rig that failed counts as, by metric.
FAILED = _by_name(
    {"unirig": FAILED_SKELETON, "rignet": FAILED_SKELETON}, FAILED_SKIN, FAILED_MOTION / BOX_SIDE
)


class GroundTruth:
    """Measures rollouts against the known rigs of a bank's meshes; decodes their skin itself.

    The reward service keeps the weights it decodes, in other processes perhaps, and only at the vertices that
    it scores.
    """

    def __init__(
        self, samples: Sequence[MeshSample], meshes: Sequence[int], skin_vae: SkinVAE, recipe: Recipe
    ):
        self._known: dict[int, KnownRig] = {}
        for mesh in meshes:
            known = known_rig(samples[mesh], recipe.eval.metric_vertices, recipe.eval.seed)
            if known is None:
                continue
            try:
                measure(known.rig, known)
            except MetricError as error:
                print(f"{known.mesh.name}: its known rig is not used ({error})", file=sys.stderr)
            else:
                self._known[mesh] = known
        device = torch.device(recipe.workers.decoder_device)
        here = device.type != "cuda" or (device.index or 0) < torch.cuda.device_count()
        # A device of a remote cluster's workers need not be here.
        self._decoder = SkinDecoder(skin_vae, str(device) if here else "cpu")

    def joints(self, mesh: int) -> int | None:
        """Number of joints of the known rig of `mesh`, None if there is none."""
        return len(self._known[mesh].rig.joints) if mesh in self._known else None

    def measure(self, mesh: int, rigs: Sequence[RolloutRig]) -> list[dict[str, float]]:
        """The metrics of rigs of one mesh whose own rig is known, by name."""
        known = self._known[mesh]
        weights = self._decoder.decode(known.mesh, known.points, known.normals, [rig.codes for rig in rigs])
        return [
            measure(Rig(rig.joints, rig.parents, own), known) for rig, own in zip(rigs, weights, strict=True)
        ]
