"""How each published convention reads a skeleton: its joints, bones and the samples on its bones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from rl.metrics.inputs import BOX_SIDE, MetricError

Convention = Literal["unirig", "rignet", "exact"]

SAMPLES_PER_BONE = 100  # unirig
STEP = 0.005  # rignet: distance between samples; exact: longest piece. Shares of the box side
MERGE_DISTANCE = 0.0025  # rignet, exact: joints closer than this share of the box side are merged


@dataclass(frozen=True)
class ReadSkeleton:
    """A skeleton as a convention reads it, in a box of side 1.

    joints: (J, 3), bones: (B, 2, 3), parent first, samples: (N, 3), all float64.
    """

    joints: NDArray[np.float64]
    bones: NDArray[np.float64]
    samples: NDArray[np.float64]


def check_convention(convention: str) -> None:
    """Raise MetricError for an unknown convention."""
    if convention not in get_args(Convention):
        raise MetricError(f"convention is {convention!r}; choose one of {', '.join(get_args(Convention))}")


def read_skeleton(
    joints: NDArray[np.float64], parents: NDArray[np.int64], convention: Convention
) -> ReadSkeleton | None:
    """The skeleton as `convention` reads it; see `rl.metrics.skeleton_distances`.

    Args:
        joints: (J, 3) float64, mesh frame. parents: (J,) int64, -1 for a root. Both checked.

    Returns:
        None if the convention finds no bone. `exact` always finds one.
    """
    read = {"unirig": _read_unirig, "rignet": _read_rignet, "exact": _read_exact}[convention]
    return read(joints / BOX_SIDE, parents)


def _read_unirig(joints: NDArray[np.float64], parents: NDArray[np.int64]) -> ReadSkeleton | None:
    child = np.flatnonzero(parents >= 0)
    if not len(child):
        return None
    bones = joints[np.stack([parents[child], child], axis=1)]
    way = np.arange(1, SAMPLES_PER_BONE + 1)[:, None] / SAMPLES_PER_BONE
    start, end = bones[:, :1], bones[:, 1:]
    return ReadSkeleton(joints, bones, (start + way * (end - start)).reshape(-1, 3))


def _read_rignet(joints: NDArray[np.float64], parents: NDArray[np.int64]) -> ReadSkeleton | None:
    leader = np.arange(len(joints))
    waiting = np.ones(len(joints), dtype=bool)
    for i in range(len(joints)):
        if waiting[i]:
            group = waiting & (np.linalg.norm(joints - joints[i], axis=1) < MERGE_DISTANCE)
            group[i] = True
            roots = np.flatnonzero(group & (parents < 0))
            leader[group] = roots[0] if len(roots) else i
            waiting &= ~group
    child = np.flatnonzero(parents >= 0)
    edges = np.stack([leader[parents[child]], leader[child]], axis=1)
    edges = np.unique(edges[edges[:, 0] != edges[:, 1]], axis=0)
    if not len(edges):
        return None
    bones = joints[edges]
    # np.round rounds halves to even, as the published code does. A bone of no steps gives its parent.
    steps = np.round(np.linalg.norm(bones[:, 1] - bones[:, 0], axis=1) / STEP).astype(np.int64)
    samples = [
        start + np.arange(n + 1)[:, None] / max(n, 1) * (end - start)
        for (start, end), n in zip(bones, steps, strict=True)
    ]
    return ReadSkeleton(joints[np.unique(edges)], bones, np.concatenate(samples))


def _read_exact(joints: NDArray[np.float64], parents: NDArray[np.int64]) -> ReadSkeleton:
    near = cKDTree(joints).query_pairs(MERGE_DISTANCE, output_type="ndarray")
    graph = coo_array((np.ones(len(near)), (near[:, 0], near[:, 1])), shape=(len(joints), len(joints)))
    found, labels = connected_components(graph, directed=False)
    count, label = int(found), labels.astype(np.int64)
    merged = np.zeros((count, 3))
    np.add.at(merged, label, joints)
    merged /= np.bincount(label)[:, None]

    child = np.flatnonzero(parents >= 0)
    pairs = np.sort(np.stack([label[parents[child]], label[child]], axis=1), axis=1)
    pairs = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)
    lone = np.setdiff1d(np.arange(count), pairs)
    bones = merged[np.concatenate([pairs, np.stack([lone, lone], axis=1)])]

    # The tolerance keeps rounding from adding a piece to a length that is a whole number of pieces.
    lengths = np.linalg.norm(bones[:, 1] - bones[:, 0], axis=1)
    pieces = np.maximum(np.ceil(lengths / STEP - 1e-9), 1).astype(np.int64)
    samples = [
        start + (np.arange(n)[:, None] + 0.5) / n * (end - start)
        for (start, end), n in zip(bones, pieces, strict=True)
    ]
    return ReadSkeleton(merged, bones, np.concatenate(samples))
