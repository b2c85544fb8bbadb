"""Measures sampled rigs against the meshes' ground-truth rigs: skeleton, skin and motion metrics."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from data.rig import Rig
from data.sets.dataset import MeshSample
from data.welding import weld_surface
from policy.skintokens.skin_vae import SkinVAE
from rewards.poses import pose_seed, random_rotations
from rewards.skin_decoder import SkinDecoder
from rewards.worker import RewardMesh, RolloutRig
from rl.meshes import reward_meshes
from rl.metrics import (
    BOX_SIDE,
    CUTS,
    FAILED_MOTION,
    FAILED_SKELETON,
    PRINTED_SCALE,
    Convention,
    MetricError,
    MotionLoss,
    SkeletonDistances,
    SkinConvention,
    SkinScores,
    align_weights,
    failed_skin,
    motion_loss,
    normalised_rows,
    pair_joints,
    puppeteer_skin_scores,
    same_joints,
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


def make_ground_truth(sample: MeshSample, vertices: int | None, seed: int) -> GroundTruth | None:
    """The ground truth of this mesh, None if it has no rig.

    The points are those of the welded surface, as in the rewards' scoring mesh: coincident vertices, which
    files repeat at seams, are one point with the weights of the first. Above `vertices` points a fixed random
    subset is used, which depends only on the mesh; None keeps all. `seed` is the seed of the poses.
    """
    if sample.rig is None:
        return None
    surface = weld_surface(sample.mesh.vertices, sample.mesh.faces)
    source, points, normals = surface.source, surface.points, surface.normals
    if vertices is not None and len(source) > vertices:
        rng = np.random.Generator(np.random.Philox(pose_seed(0, sample.name, 0)))
        kept = np.sort(rng.choice(len(source), vertices, replace=False))
        source, points, normals = source[kept], points[kept], normals[kept]
    rig = Rig(sample.rig.joints, sample.rig.parents, sample.rig.weights[source], sample.rig.names)
    rotations = random_rotations(
        MOTION_POSES, len(rig.joints), MOTION_DEGREES, pose_seed(seed, sample.name, 0)
    )
    rotations[:, 0] = np.eye(3)
    return GroundTruth(reward_meshes([sample])[0], points, normals, rig, rotations)


def rig_metrics(
    predicted: Rig, truth: GroundTruth, skin: SkinConvention = "plain", given_skeleton: bool = False
) -> dict[str, float]:
    """All metrics of a rig with weights at `truth.points`, by name and in the units of docs/metrics.md.

    A metric that is not defined for these rigs is absent: skeleton distances without a bone, skin scores
    without a vertex that counts. With `given_skeleton` the rig has the true skeleton, so joint i corresponds
    to joint i, and there are no skeleton distances; otherwise joints are paired.
    """
    distances: dict[Convention, SkeletonDistances | None] = {}
    if not given_skeleton:
        distances = {
            convention: skeleton_distances(
                predicted.joints, predicted.parents, truth.rig.joints, truth.rig.parents, convention
            )
            for convention in PRINTED_SCALE
        }
    pairing = (same_joints if given_skeleton else pair_joints)(predicted, truth.rig)
    own, true = align_weights(predicted, truth.rig, pairing)
    scores = (
        skin_scores(own, normalised_rows(true))
        if skin == "plain"
        else puppeteer_skin_scores(own, true, CUTS[skin])
    )
    return _by_name(
        distances, scores, motion_loss(truth.points, predicted, truth.rig, truth.rotations, pairing)
    )


def _by_name(
    distances: Mapping[Convention, SkeletonDistances | None], skin: SkinScores | None, motion: MotionLoss
) -> dict[str, float]:
    return {
        **{
            f"{convention}_{name}": value * PRINTED_SCALE[convention]
            for convention, found in distances.items()
            if found is not None
            for name, value in asdict(found).items()
        },
        **({f"skin_{name}": value for name, value in asdict(skin).items()} if skin is not None else {}),
        "motion_loss": motion.mean / BOX_SIDE,
        "motion_mse": motion.squared,
    }


def failed_metrics(true_joints: int) -> dict[str, float]:
    """The value of each metric for a failed rig, where the ground truth has `true_joints` joints."""
    return _by_name(dict.fromkeys(PRINTED_SCALE, FAILED_SKELETON), failed_skin(true_joints), FAILED_MOTION)


METRICS = tuple(failed_metrics(1))  # names, in the order of tables and files


def own_decoder(skin_vae: SkinVAE, recipe: Recipe) -> SkinDecoder:
    """A skin decoder in this process: the reward service keeps its weights to itself.

    On the recipe's device, or on the CPU if that device belongs to the workers of a remote cluster.
    """
    device = torch.device(recipe.workers.decoder_device)
    available = device.type != "cuda" or (device.index or 0) < torch.cuda.device_count()
    return SkinDecoder(skin_vae, str(device) if available else "cpu")


class GroundTruthMetrics:
    """Measures rollouts of several meshes; meshes without a usable ground-truth rig are skipped.

    It decodes skinning weights itself: the reward service may run in other processes, does not return its
    weights, and decodes them only at the vertices that it scores.
    """

    def __init__(
        self,
        samples: Sequence[MeshSample],
        meshes: Sequence[int],
        skin_vae: SkinVAE,
        recipe: Recipe,
        given_skeleton: bool = False,
    ):
        self._convention = recipe.eval.skin_convention
        self._given_skeleton = given_skeleton
        self._truths: dict[int, GroundTruth] = {}
        self._failed: dict[int, dict[str, float]] = {}
        for mesh in meshes:
            truth = make_ground_truth(samples[mesh], recipe.eval.metric_vertices, recipe.eval.seed)
            if truth is None:
                continue
            try:
                defined = rig_metrics(truth.rig, truth, self._convention, given_skeleton)
            except MetricError as error:
                print(f"{truth.mesh.name}: ground-truth rig skipped ({error})", file=sys.stderr)
            else:
                self._truths[mesh] = truth
                failed = failed_metrics(len(truth.rig.joints))
                self._failed[mesh] = {name: value for name, value in failed.items() if name in defined}
        self._decoder = own_decoder(skin_vae, recipe)

    def joints(self, mesh: int) -> int | None:
        """Number of joints of the ground-truth rig of `mesh`, None if it has none."""
        return len(self._truths[mesh].rig.joints) if mesh in self._truths else None

    def failed(self, mesh: int) -> dict[str, float]:
        """A failed rig's value of each metric that the ground truth of `mesh` defines, by name."""
        return self._failed[mesh]

    def measure(self, mesh: int, rigs: Sequence[RolloutRig]) -> list[dict[str, float]]:
        """The metrics of rigs of one mesh that has a ground truth; one mapping per rig, by metric name.

        A metric that is not defined for a rig is absent: the rig counts as failed in this metric.
        """
        truth = self._truths[mesh]
        weights = self._decoder.decode(truth.mesh, truth.points, truth.normals, [rig.codes for rig in rigs])
        return [
            rig_metrics(Rig(rig.joints, rig.parents, own), truth, self._convention, self._given_skeleton)
            for rig, own in zip(rigs, weights, strict=True)
        ]
