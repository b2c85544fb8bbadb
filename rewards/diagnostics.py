"""Diagnostics of a rig, logged beside its rewards so that reward hacking shows."""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

DIAGNOSTIC_NAMES = (
    "joints",
    "duplicate_joints",
    "mean_bone_length",
    "unused_bones",
    "root_only_vertices",
    "worst_stretch",
)

# Joints closer than this (mesh frame, [-1, 1]) are one joint: half a step of the tokenizer's 256 bins.
DUPLICATE_DISTANCE = 1 / 256


def rig_diagnostics(
    joints: NDArray[np.float64],
    parents: NDArray[np.int64],
    weights: NDArray[Any],
    owned: NDArray[np.int64],
    worst_stretch: float,
) -> dict[str, float]:
    """What a rig looks like to a reader who suspects it.

    Args:
        joints: (J, 3) float64, mesh frame.
        parents: (J,) int64, -1 for a root.
        weights: (S, J) float, >= 0.
        owned: (J,) vertices on which each bone is strongest, see `owned_vertices`.
        worst_stretch: largest edge stretch over all poses, for the record.

    Returns:
        By DIAGNOSTIC_NAMES: `joints`; `duplicate_joints`: joints within DUPLICATE_DISTANCE of an earlier one;
        `mean_bone_length` in mesh units, 0 without bones; `unused_bones`: share of bones that are no vertex's
        strongest; `root_only_vertices`: share of the vertices whose every weight is a root's, of those with
        any weight; `worst_stretch`.
    """
    return joint_diagnostics(joints, parents) | {
        "unused_bones": float((owned == 0).mean()),
        "root_only_vertices": _root_only(weights, parents < 0) / max(int(owned.sum()), 1),
        "worst_stretch": worst_stretch,
    }


def joint_diagnostics(joints: NDArray[np.float64], parents: NDArray[np.int64]) -> dict[str, float]:
    """The part of `rig_diagnostics` that needs no weights."""
    bones = parents >= 0
    lengths = np.linalg.norm(joints[bones] - joints[parents[bones]], axis=1)
    return {
        "joints": float(len(joints)),
        "duplicate_joints": float(_duplicates(joints, DUPLICATE_DISTANCE)),
        "mean_bone_length": float(lengths.mean()) if len(lengths) else 0.0,
    }


@njit(cache=True)
def _root_only(weights: Any, is_root: Any) -> int:
    """Vertices that have weight, all of it on roots."""
    count = 0
    for v in range(weights.shape[0]):
        root = elsewhere = False
        for j in range(weights.shape[1]):
            root |= (weights[v, j] > 0) & is_root[j]
            elsewhere |= (weights[v, j] > 0) & (not is_root[j])
        count += root and not elsewhere
    return count


@njit(cache=True)
def _duplicates(joints: Any, distance: float) -> int:
    count = 0
    for i in range(joints.shape[0]):
        for j in range(i):
            dx, dy, dz = joints[i, 0] - joints[j, 0], joints[i, 1] - joints[j, 1], joints[i, 2] - joints[j, 2]
            if dx * dx + dy * dy + dz * dz <= distance * distance:
                count += 1
                break
    return count
