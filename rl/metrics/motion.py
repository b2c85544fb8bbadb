"""Motion loss: how far apart a mesh's vertices are when two rigs move them through the same poses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.rig import Rig
from rewards.errors import RewardError
from rewards.lbs import check_rotations, linear_blend_skinning, skinning_matrices
from rl.metrics.inputs import BOX_SIDE, MetricError, check_finite


@dataclass(frozen=True)
class MotionLoss:
    """Distances between the vertices as two rigs move them, over poses and vertices.

    mean: of the distances, in the unit of the vertices. squared: mean of the squared distances.
    """

    mean: float
    squared: float


# The motion loss has no upper bound. The diagonal of the box, in the mesh frame's unit, is worse than any
# useful rig.
FAILED_MOTION = MotionLoss(BOX_SIDE * math.sqrt(3), 3 * BOX_SIDE**2)


def motion_loss(
    vertices: ArrayLike,
    predicted: Rig,
    truth: Rig,
    rotations: ArrayLike,
    pairing: NDArray[np.int64],
) -> MotionLoss:
    """Distances between the vertices as posed by each rig, under the same poses.

    Poses are local rotations of the ground-truth joints, about world-aligned axes. A predicted joint takes
    the rotation of the joint that `pairing` pairs it with; an unpaired one does not rotate and so
    follows its parent. Ground-truth joints without a partner do rotate: what they move counts. Pass
    identities for the root to ignore its position, since it turns the whole mesh. A failed rig counts as
    `FAILED_MOTION`.

    Args:
        vertices: (V, 3) float, rest positions, mesh frame.
        predicted, truth: rigs of this mesh. Weights are normalised per vertex; a vertex without weights does
            not move.
        rotations: (P, J, 3, 3) float, P >= 1, J the number of ground-truth joints, as from
            `rewards.poses.random_rotations`.
        pairing: (number of predicted joints,) int64, from `pair_joints` or `same_joints`.

    Raises:
        MetricError: mismatched shapes, or vertices or rotations that are not finite.

    Source: this project. With the true skeleton, `squared` is UniRig's measure (specification, section 17),
        under other poses.
    """
    points = check_finite("vertices", vertices, (3,))
    for name, rig in (("predicted", predicted), ("ground-truth", truth)):
        if len(rig.weights) != len(points):
            raise MetricError(
                f"the {name} rig has weights for {len(rig.weights)} vertices, but the mesh has "
                f"{len(points)}; pass rigs of this mesh"
            )
    try:
        true_rotations = check_rotations(rotations, len(truth.joints))
    except RewardError as error:
        raise MetricError(str(error)) from error
    own_rotations = np.where((pairing >= 0)[:, None, None], true_rotations[:, pairing], np.eye(3))
    moved, expected = (
        linear_blend_skinning(points, rig.weights, skinning_matrices(rig.joints, rig.parents, local))
        for rig, local in ((predicted, own_rotations), (truth, true_rotations))
    )
    squared = ((moved - expected) ** 2).sum(axis=-1)
    return MotionLoss(float(np.sqrt(squared).mean()), float(squared.mean()))
