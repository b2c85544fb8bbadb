"""Metrics of a rig against its ground truth: skeleton distances, skin scores and the motion loss.

A failed rig (one that could not be decoded) has no metrics. The caller either skips it and reports how many
there were, or counts it as `FAILED_SKELETON`, `FAILED_SKIN` and `FAILED_MOTION`.
"""

from rl.metrics.inputs import BOX_SIDE, FRAME_LIMIT, MetricError
from rl.metrics.motion import FAILED_MOTION, motion_loss
from rl.metrics.pairing import align_weights, corresponding_weights, pair_joints
from rl.metrics.reference import point_segment_distances_reference, skeleton_distances_reference
from rl.metrics.segments import point_segment_distances
from rl.metrics.skeleton import (
    FAILED_SKELETON,
    LONGEST_PIECE,
    MERGE_DISTANCE,
    SAMPLES_PER_BONE,
    Convention,
    SkeletonDistances,
    skeleton_distances,
)
from rl.metrics.skin import FAILED_SKIN, SkinScores, skin_scores

__all__ = [
    "BOX_SIDE",
    "FAILED_MOTION",
    "FAILED_SKELETON",
    "FAILED_SKIN",
    "FRAME_LIMIT",
    "LONGEST_PIECE",
    "MERGE_DISTANCE",
    "SAMPLES_PER_BONE",
    "Convention",
    "MetricError",
    "SkeletonDistances",
    "SkinScores",
    "align_weights",
    "corresponding_weights",
    "motion_loss",
    "pair_joints",
    "point_segment_distances",
    "point_segment_distances_reference",
    "skeleton_distances",
    "skeleton_distances_reference",
    "skin_scores",
]
