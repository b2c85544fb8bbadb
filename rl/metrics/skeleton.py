"""Skeleton distances: Chamfer distances between joints and bones (J2J, J2B, B2B) in three conventions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import ArrayLike

from rl.metrics.conventions import Convention, check_convention, read_skeleton
from rl.metrics.inputs import check_skeleton
from rl.metrics.segments import nearest_point, nearest_segment

# What published tables multiply a share of the box side by.
PRINTED_SCALE: dict[Convention, float] = {"unirig": 1.0, "rignet": 100.0, "exact": 1.0}


@dataclass(frozen=True)
class SkeletonDistances:
    """Symmetric distances between two skeletons, as shares of the box's longest side (0.05 is 5 %)."""

    j2j: float
    j2b: float
    b2b: float


# The worst values: the diagonal of the box, which no two skeletons inside it exceed.
FAILED_SKELETON = SkeletonDistances(math.sqrt(3), math.sqrt(3), math.sqrt(3))


def skeleton_distances(
    joints_a: ArrayLike,
    parents_a: ArrayLike,
    joints_b: ArrayLike,
    parents_b: ArrayLike,
    convention: Convention,
) -> SkeletonDistances | None:
    """Chamfer distances between joints (J2J), joints and bones (J2B), bones and bones (B2B).

    Each is the mean of two directed distances, a to b and b to a: the mean, over the source's points, of the
    Euclidean distance to the nearest target. All conventions take the mesh frame (longest side spans
    [-1, 1]) and return shares of that side; `PRINTED_SCALE` gives the factor of published tables.

    - `unirig`: joints and bones as given, duplicates and zero-length bones included. A bone gives 100
      samples, k/100 of the way from parent to child, k = 1..100, so every bone has equal weight. J2B goes
      from joints to samples, B2B from samples to samples. The parent's end is not a sample, so J2B of a
      skeleton with itself is not 0: the root is 1 % of a bone away.
    - `rignet` (RigNet, MagicArticulate, Puppeteer): each joint that no earlier group has taken, in index
      order, forms a group with all later free joints closer than 0.0025 of the box side. A group has the
      position of its first joint, or of the root if it holds one. Bones inside a group vanish, each
      directed bone counts once, joints on no bone are dropped. A bone gives round(length / 0.005) + 1
      samples (halves to even), evenly spaced from end to end; if that is 1, the parent. J2B and B2B as above.
    - `exact` (this project): joints within 0.0025 of the box side, also through others, merge at their mean;
      each undirected bone counts once; a joint on no bone is a zero-length bone. J2B and B2B go to the exact
      segments, B2B from the midpoints of equal pieces of at most 0.005. It depends only on the geometry.

    A failed rig counts as `FAILED_SKELETON`.

    Args:
        joints_a, joints_b: (J, 3) float, (K, 3) float, mesh frame; J, K >= 1 may differ.
        parents_a, parents_b: (J,) int, (K,) int; -1 for a root, any order, several roots allowed.
        convention: "unirig", "rignet" or "exact".

    Returns:
        None if either skeleton has no bone under this convention: published evaluations skip such a
        skeleton. Never None for `exact`.

    Raises:
        MetricError: an empty or non-finite skeleton, one far outside the mesh frame, parents that do not
            form a hierarchy, an unknown convention.

    Source: specification, section 17; RigNet (Xu et al. 2020: CD-J2J, CD-J2B, CD-B2B). `unirig` reproduces
        the numbers of an independent implementation (tests/rewards/reference). The published code of the
        `rignet` line scales the box to 0.9995 rather than 1, a difference of 0.05 % of each number.
    """
    check_convention(convention)
    a = read_skeleton(*check_skeleton("a", joints_a, parents_a), convention)
    b = read_skeleton(*check_skeleton("b", joints_b, parents_b), convention)
    if a is None or b is None:
        return None
    j2j = _symmetric(nearest_point, a.joints, b.joints, b.joints, a.joints)
    if convention == "exact":
        return SkeletonDistances(
            j2j,
            j2b=_symmetric(nearest_segment, a.joints, b.bones, b.joints, a.bones),
            b2b=_symmetric(nearest_segment, a.samples, b.bones, b.samples, a.bones),
        )
    return SkeletonDistances(
        j2j,
        j2b=_symmetric(nearest_point, a.joints, b.samples, b.joints, a.samples),
        b2b=_symmetric(nearest_point, a.samples, b.samples, b.samples, a.samples),
    )


def _symmetric(nearest: Callable[[Any, Any], Any], from_a: Any, to_b: Any, from_b: Any, to_a: Any) -> float:
    """Mean of both directed distances."""
    return float((nearest(from_a, to_b).mean() + nearest(from_b, to_a).mean()) / 2)
