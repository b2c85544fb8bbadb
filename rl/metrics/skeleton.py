"""Skeleton distances: Chamfer distances between joints and bones (J2J, J2B, B2B) in two conventions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from rl.metrics.inputs import BOX_SIDE, MetricError, check_skeleton
from rl.metrics.segments import nearest_point, nearest_segment

Convention = Literal["unirig", "rignet"]

SAMPLES_PER_BONE = 100  # unirig
LONGEST_PIECE = 0.005  # rignet: bones are cut into pieces no longer than this share of the box side
MERGE_DISTANCE = LONGEST_PIECE / 2  # rignet: joints closer than this share of the box side are merged


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
) -> SkeletonDistances:
    """Chamfer distances between joints (J2J), joints and bones (J2B), bones and bones (B2B).

    Each is the mean of two directed distances, a to b and b to a: the mean, over the source's points, of the
    Euclidean distance to the nearest target. Both conventions take the mesh frame (longest side spans
    [-1, 1]) and return shares of that side, so distances are halved. A joint without parent or children (a
    skeleton of one joint) is a zero-length bone. The conventions differ in:

    ========  =================================================  =============================================
              unirig                                             rignet
    ========  =================================================  =============================================
    joints    as given; every duplicate counts                   joints within 0.0025 of the box side, also
                                                                 through others, merge into their mean
    bones     as given; zero-length bones count like any other   between merged joints, each pair once; bones
                                                                 inside a merged joint vanish
    J2B       to 101 points per bone, k/100 of the way from      exact, to the segments
              parent to child, k = 0..100
    B2B       100 samples per bone, the same without k = 0, to   midpoints of equal pieces of at most 0.005 of
              the other's samples: every bone has equal weight   the box side, to the exact segments: a bone's
                                                                 weight is its length
    ========  =================================================  =============================================

    So `unirig` depends on bookkeeping (duplicates, zero-length bones, which end is the parent), `rignet`
    only on the skeleton's geometry. A failed rig counts as `FAILED_SKELETON` in both.

    Args:
        joints_a, joints_b: (J, 3) float, (K, 3) float, mesh frame; J, K >= 1 may differ.
        parents_a, parents_b: (J,) int, (K,) int; -1 for a root, any order, several roots allowed.
        convention: "unirig" or "rignet".

    Raises:
        MetricError: an empty or non-finite skeleton, one far outside the mesh frame, parents that do not
            form a hierarchy, an unknown convention.

    Source: RigNet (Xu et al. 2020: CD-J2J, CD-J2B, CD-B2B). `unirig`'s scale and sampling reproduce the
        numbers of an independent implementation (tests/rewards/reference), which do not reveal whether its
        J2B includes k = 0; with it, a skeleton is at distance 0 from itself. In `rignet` the nearest point
        on a bone is exact; the length of the pieces and the merging are this project's choice.
    """
    check_convention(convention)
    read = _read_unirig if convention == "unirig" else _read_rignet
    a = read(*check_skeleton("a", joints_a, parents_a))
    b = read(*check_skeleton("b", joints_b, parents_b))
    if convention == "unirig":
        return SkeletonDistances(
            j2j=_symmetric(nearest_point, a.joints, b.joints, b.joints, a.joints),
            j2b=_symmetric(nearest_point, a.joints, _with_starts(b), b.joints, _with_starts(a)),
            b2b=_symmetric(nearest_point, a.samples, b.samples, b.samples, a.samples),
        )
    return SkeletonDistances(
        j2j=_symmetric(nearest_point, a.joints, b.joints, b.joints, a.joints),
        j2b=_symmetric(nearest_segment, a.joints, b.bones, b.joints, a.bones),
        b2b=_symmetric(nearest_segment, a.samples, b.bones, b.samples, a.bones),
    )


@dataclass(frozen=True)
class _Skeleton:
    """A skeleton as a convention reads it: joints (J, 3), bones (B, 2, 3), samples on the bones (N, 3)."""

    joints: NDArray[np.float64]
    bones: NDArray[np.float64]
    samples: NDArray[np.float64]


def check_convention(convention: str) -> None:
    """Raise MetricError for an unknown convention."""
    if convention not in get_args(Convention):
        raise MetricError(f"convention is {convention!r}; choose one of {', '.join(get_args(Convention))}")


def _read_unirig(joints: NDArray[np.float64], parents: NDArray[np.int64]) -> _Skeleton:
    child = np.flatnonzero(parents >= 0)
    edges = _with_lone_joints(np.stack([parents[child], child], axis=1), len(joints))
    bones = joints[edges]
    way = np.arange(1, SAMPLES_PER_BONE + 1)[:, None] / SAMPLES_PER_BONE
    start, end = bones[:, :1], bones[:, 1:]
    return _Skeleton(joints, bones, (start + way * (end - start)).reshape(-1, 3))


def _with_starts(skeleton: _Skeleton) -> NDArray[np.float64]:
    return np.concatenate([skeleton.bones[:, 0], skeleton.samples])


def _read_rignet(joints: NDArray[np.float64], parents: NDArray[np.int64]) -> _Skeleton:
    near = cKDTree(joints).query_pairs(MERGE_DISTANCE * BOX_SIDE, output_type="ndarray")
    graph = coo_array((np.ones(len(near)), (near[:, 0], near[:, 1])), shape=(len(joints), len(joints)))
    found, labels = connected_components(graph, directed=False)
    count, label = int(found), labels.astype(np.int64)
    merged = np.zeros((count, 3))
    np.add.at(merged, label, joints)
    merged /= np.bincount(label)[:, None]

    child = np.flatnonzero(parents >= 0)
    pairs = np.sort(np.stack([label[parents[child]], label[child]], axis=1), axis=1)
    pairs = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)
    bones = merged[_with_lone_joints(pairs, count)]

    # The tolerance keeps rounding from adding a piece to a length that is a whole number of pieces.
    lengths = np.linalg.norm(bones[:, 1] - bones[:, 0], axis=1)
    pieces = np.maximum(np.ceil(lengths / (LONGEST_PIECE * BOX_SIDE) - 1e-9), 1).astype(np.int64)
    samples = [
        start + (np.arange(n)[:, None] + 0.5) / n * (end - start)
        for (start, end), n in zip(bones, pieces, strict=True)
    ]
    return _Skeleton(merged, bones, np.concatenate(samples))


def _with_lone_joints(edges: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Edges (E, 2), with a self-edge added for each of `count` joints that no edge touches."""
    lone = np.setdiff1d(np.arange(count), edges)
    return np.concatenate([edges, np.stack([lone, lone], axis=1)])


def _symmetric(nearest: Callable[[Any, Any], Any], from_a: Any, to_b: Any, from_b: Any, to_a: Any) -> float:
    """Mean of both directed distances, as a share of the box side."""
    return float((nearest(from_a, to_b).mean() + nearest(from_b, to_a).mean()) / 2 / BOX_SIDE)
