"""Input checks and constants that the metrics share."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rewards.errors import RewardError
from rewards.skeleton import check_joints, check_parents, hierarchy_levels

BOX_SIDE = 2.0  # longest side of the mesh frame, [-1, 1]: distance / BOX_SIDE is a share of the box
FRAME_LIMIT = 10.0  # a joint beyond this is in another frame or unit, and would need a huge number of samples


class MetricError(ValueError):
    """Arrays that cannot be measured: empty, non-finite, not a hierarchy, or of mismatched shapes."""


def check_skeleton(
    name: str, joints: ArrayLike, parents: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Joints (J, 3) float64 and parents (J,) int64 of a usable skeleton.

    Raises:
        MetricError: an empty or non-finite skeleton, one far outside the mesh frame, or parents that do not
            form a hierarchy. `name` identifies the skeleton in the message.
    """
    try:
        points = check_joints(joints)
        up = check_parents(parents, len(points))
        hierarchy_levels(up)  # refuses cycles
    except RewardError as error:
        raise MetricError(f"skeleton {name}: {error}") from error
    outside = np.flatnonzero((np.abs(points) > FRAME_LIMIT).any(axis=1))
    if len(outside):
        raise MetricError(
            f"skeleton {name}: joint {outside[0]} is at {points[outside[0]].tolist()}, far outside [-1, 1]; "
            "transform it into the frame of its normalised mesh"
        )
    return points, up


def check_finite(name: str, given: ArrayLike, row: tuple[int, ...]) -> NDArray[np.float64]:
    """A finite (N, *row) float64 array, N >= 1; raises MetricError otherwise."""
    array = np.asarray(given, dtype=np.float64)
    if array.shape[1:] != row or array.size == 0:
        wanted = ", ".join(map(str, row))
        raise MetricError(f"{name} have shape {array.shape}; pass (N, {wanted}), N at least 1")
    if not np.isfinite(array).all():
        raise MetricError(f"{name} are not all finite; pass finite numbers")
    return array
