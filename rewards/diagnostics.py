"""Diagnostics of a rig, logged with its rewards to expose reward hacking."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewards.kernels.geometry import duplicate_joints
from rewards.kernels.weights import root_only_vertices

DIAGNOSTIC_NAMES = (
    "joints",
    "duplicate_joints",
    "mean_bone_length",
    "unused_bones",
    "root_only_vertices",
    "worst_stretch",
)

# Joints closer than this (mesh frame, [-1, 1]) are duplicates: half a step of the tokenizer's 256 bins.
DUPLICATE_DISTANCE = 1 / 256


def rig_diagnostics(
    joints: NDArray[np.float64],
    parents: NDArray[np.int64],
    weights: NDArray[Any],
    owned: NDArray[np.int64],
    worst_stretch: float,
) -> dict[str, float]:
    """All diagnostics of one rig, none of which is rewarded.

    Args:
        joints: (J, 3) float64, mesh frame.
        parents: (J,) int64, -1 for a root.
        weights: (S, J) float, >= 0.
        owned: (J,) int64, the number of vertices on which each bone is strongest, from `owned_vertices`.
        worst_stretch: largest edge stretch over all poses.

    Returns:
        By DIAGNOSTIC_NAMES: `joints`; `duplicate_joints`: joints within DUPLICATE_DISTANCE of an earlier one;
        `mean_bone_length` in mesh units, 0 without bones; `unused_bones`: fraction of bones that are
        strongest on no vertex; `root_only_vertices`: of the vertices with weight, the fraction that has it on
        roots only; `worst_stretch`.
    """
    return joint_diagnostics(joints, parents) | {
        "unused_bones": float((owned == 0).mean()),
        "root_only_vertices": root_only_vertices(weights, parents < 0) / max(int(owned.sum()), 1),
        "worst_stretch": worst_stretch,
    }


def joint_diagnostics(joints: NDArray[np.float64], parents: NDArray[np.int64]) -> dict[str, float]:
    """The diagnostics that need no weights: joints, duplicate_joints, mean_bone_length."""
    bones = parents >= 0
    lengths = np.linalg.norm(joints[bones] - joints[parents[bones]], axis=1)
    return {
        "joints": float(len(joints)),
        "duplicate_joints": float(duplicate_joints(joints, DUPLICATE_DISTANCE)),
        "mean_bone_length": float(lengths.mean()) if len(lengths) else 0.0,
    }
