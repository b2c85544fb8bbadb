"""Metrics of a rig against its ground truth: skeleton distances, skin scores and the motion loss.

A failed rig (one that could not be decoded) has no metrics. The caller either skips it and reports how many
there were, or counts it as `FAILED_SKELETON`, `failed_skin` and `FAILED_MOTION`.
"""

from rl.metrics.conventions import MERGE_DISTANCE, SAMPLES_PER_BONE, STEP, Convention
from rl.metrics.inputs import BOX_SIDE, FRAME_LIMIT, MetricError
from rl.metrics.motion import FAILED_MOTION, MotionLoss, motion_loss
from rl.metrics.pairing import align_weights, pair_joints, same_joints
from rl.metrics.reference import point_segment_distances_reference, skeleton_distances_reference
from rl.metrics.segments import point_segment_distances
from rl.metrics.skeleton import FAILED_SKELETON, PRINTED_SCALE, SkeletonDistances, skeleton_distances
from rl.metrics.skin import (
    CUTS,
    SkinConvention,
    SkinScores,
    failed_skin,
    normalised_rows,
    puppeteer_skin_scores,
    skin_scores,
)

__all__ = [
    "BOX_SIDE",
    "CUTS",
    "FAILED_MOTION",
    "FAILED_SKELETON",
    "FRAME_LIMIT",
    "MERGE_DISTANCE",
    "PRINTED_SCALE",
    "SAMPLES_PER_BONE",
    "STEP",
    "Convention",
    "MetricError",
    "MotionLoss",
    "SkeletonDistances",
    "SkinConvention",
    "SkinScores",
    "align_weights",
    "failed_skin",
    "motion_loss",
    "normalised_rows",
    "pair_joints",
    "point_segment_distances",
    "point_segment_distances_reference",
    "puppeteer_skin_scores",
    "same_joints",
    "skeleton_distances",
    "skeleton_distances_reference",
    "skin_scores",
]
