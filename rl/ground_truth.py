"""Measures sampled rigs against the meshes' ground-truth rigs: skeleton, skin and motion metrics."""

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
from rl.meshes import reward_meshes
from rl.metrics import (
    BOX_SIDE,
    FAILED_MOTION,
    FAILED_SKELETON,
    FAILED_SKIN,
    MetricError,
    SkeletonDistances,
    SkinScores,
    align_weights,
    corresponding_weights,
    motion_loss,
    skeleton_distances,
    skin_scores,
)
from rl.recipe import Recipe

MOTION_POSES = 5
MOTION_DEGREES = 30.0


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """A mesh with its ground-truth rig, and the points and poses at which rigs are compared with it.

    points, normals: (P, 3) float32, mesh frame, distinct vertices and their normals. rig: the ground truth,
    with weights (P, J) at the points. rotations: (poses, J, 3, 3) float64, local, identity for the root.
    """

    mesh: RewardMesh
    points: NDArray[np.float32]
    normals: NDArray[np.float32]
    rig: Rig
    rotations: NDArray[np.float64]


def make_ground_truth(sample: MeshSample, vertices: int, seed: int) -> GroundTruth | None:
    """The ground truth of this mesh, None if it has no rig.

    The points are the vertices used by faces with area, welded as in the rewards' scoring mesh: coincident
    vertices, which files repeat at seams, are one point with the weights of the first. Above `vertices`
    points a fixed random subset is used, which depends only on the mesh. `seed` is the seed of the poses.
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
    return GroundTruth(reward_meshes([sample])[0], points, normals, rig, rotations)


def rig_metrics(predicted: Rig, truth: GroundTruth, given: bool = False) -> dict[str, float]:
    """All metrics of a rig with weights at `truth.points`, by name; distances as shares of the box side.

    given: the rig has the ground truth's joints in the same order. Weights then correspond column by column,
    and there are no skeleton distances, which would be 0.
    """
    motion = motion_loss(truth.points, predicted, truth.rig, truth.rotations) / BOX_SIDE
    if given:
        return _by_name({}, skin_scores(*corresponding_weights(predicted, truth.rig)), motion)
    distances = {
        convention: skeleton_distances(
            predicted.joints, predicted.parents, truth.rig.joints, truth.rig.parents, convention
        )
        for convention in ("unirig", "rignet")
    }
    skin = skin_scores(*align_weights(predicted, truth.rig))
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


# The value of each metric for a failed rig.
FAILED_METRICS = _by_name(
    {"unirig": FAILED_SKELETON, "rignet": FAILED_SKELETON}, FAILED_SKIN, FAILED_MOTION / BOX_SIDE
)


def failed_metrics(recipe: Recipe) -> dict[str, float]:
    """The metrics that `eval` measures, each with its value for a failed rig."""
    if recipe.eval.skeleton == "given":
        return _by_name({}, FAILED_SKIN, FAILED_MOTION / BOX_SIDE)
    return FAILED_METRICS


class GroundTruthMetrics:
    """Measures rollouts of several meshes; meshes without a usable ground-truth rig are skipped.

    It decodes skinning weights itself: the reward service may run in other processes, does not return its
    weights, and decodes them only at the vertices that it scores.
    """

    def __init__(
        self, samples: Sequence[MeshSample], meshes: Sequence[int], skin_vae: SkinVAE, recipe: Recipe
    ):
        self._truths: dict[int, GroundTruth] = {}
        self._given = recipe.eval.skeleton == "given"
        for mesh in meshes:
            truth = make_ground_truth(samples[mesh], recipe.eval.metric_vertices, recipe.eval.seed)
            if truth is None:
                continue
            try:
                rig_metrics(truth.rig, truth, self._given)
            except MetricError as error:
                print(f"{truth.mesh.name}: ground-truth rig skipped ({error})", file=sys.stderr)
            else:
                self._truths[mesh] = truth
        device = torch.device(recipe.workers.decoder_device)
        # The recipe's device may belong to the workers of a remote cluster.
        available = device.type != "cuda" or (device.index or 0) < torch.cuda.device_count()
        self._decoder = SkinDecoder(skin_vae, str(device) if available else "cpu")

    def joints(self, mesh: int) -> int | None:
        """Number of joints of the ground-truth rig of `mesh`, None if it has none."""
        return len(self._truths[mesh].rig.joints) if mesh in self._truths else None

    def measure(self, mesh: int, rigs: Sequence[RolloutRig]) -> list[dict[str, float]]:
        """The metrics of rigs of one mesh that has a ground truth; one mapping per rig, by metric name."""
        truth = self._truths[mesh]
        weights = self._decoder.decode(truth.mesh, truth.points, truth.normals, [rig.codes for rig in rigs])
        return [
            rig_metrics(Rig(rig.joints, rig.parents, own), truth, self._given)
            for rig, own in zip(rigs, weights, strict=True)
        ]
