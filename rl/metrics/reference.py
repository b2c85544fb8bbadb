"""Plain loops for the skeleton distances: slow, obvious, and compared with the fast versions in tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rl.metrics.conventions import MERGE_DISTANCE, SAMPLES_PER_BONE, STEP, Convention, check_convention
from rl.metrics.inputs import BOX_SIDE, check_finite, check_skeleton
from rl.metrics.skeleton import SkeletonDistances


def skeleton_distances_reference(
    joints_a: ArrayLike,
    parents_a: ArrayLike,
    joints_b: ArrayLike,
    parents_b: ArrayLike,
    convention: Convention,
) -> SkeletonDistances | None:
    """`skeleton_distances` in plain Python: a loop over every bone, sample and pair."""
    check_convention(convention)
    read = {"unirig": _read_unirig, "rignet": _read_rignet, "exact": _read_exact}[convention]
    halved = []
    for name, points, up in (("a", joints_a, parents_a), ("b", joints_b, parents_b)):
        checked, parents = check_skeleton(name, points, up)
        halved.append(read([[x / BOX_SIDE for x in joint] for joint in checked.tolist()], parents.tolist()))
    joints, bones, samples = zip(*halved, strict=True)
    if not bones[0] or not bones[1]:
        return None

    def points_to_points(points: Any, targets: Any) -> float:
        return sum(min(math.dist(p, q) for q in targets) for p in points) / len(points)

    def points_to_bones(points: Any, segments: Any) -> float:
        return sum(min(_point_segment(p, s, e) for s, e in segments) for p in points) / len(points)

    def both_ways(measure: Callable[[Any, Any], float], source: Any, target: Any) -> float:
        return (measure(source[0], target[1]) + measure(source[1], target[0])) / 2

    j2j = both_ways(points_to_points, joints, joints)
    if convention == "exact":
        j2b, b2b = (both_ways(points_to_bones, source, bones) for source in (joints, samples))
    else:
        j2b, b2b = (both_ways(points_to_points, source, samples) for source in (joints, samples))
    return SkeletonDistances(j2j, j2b, b2b)


def point_segment_distances_reference(points: ArrayLike, segments: ArrayLike) -> NDArray[np.float64]:
    """`point_segment_distances`, one pair at a time."""
    p, s = check_finite("points", points, (3,)), check_finite("segments", segments, (2, 3))
    return np.array([[_point_segment(point, start, end) for start, end in s] for point in p])


def _read_unirig(joints: Any, parents: Any) -> tuple[Any, Any, Any]:
    bones = [(joints[parent], joints[joint]) for joint, parent in enumerate(parents) if parent >= 0]
    samples = [
        _between(*bone, k / SAMPLES_PER_BONE) for bone in bones for k in range(1, SAMPLES_PER_BONE + 1)
    ]
    return joints, bones, samples


def _read_rignet(joints: Any, parents: Any) -> tuple[Any, Any, Any]:
    group_of: dict[int, int] = {}
    places: list[Any] = []
    for i in range(len(joints)):
        if i in group_of:
            continue
        members = [i]
        for j in range(i + 1, len(joints)):
            if j not in group_of and math.dist(joints[i], joints[j]) < MERGE_DISTANCE:
                members.append(j)
        roots = [j for j in members if parents[j] < 0]
        group_of.update(dict.fromkeys(members, len(places)))
        places.append(joints[roots[0] if roots else i])
    directed: list[tuple[int, int]] = []
    for joint, parent in enumerate(parents):
        bone = (group_of[parent], group_of[joint]) if parent >= 0 else None
        if bone is not None and bone[0] != bone[1] and bone not in directed:
            directed.append(bone)
    on_a_bone = {group for bone in directed for group in bone}
    kept = [place for group, place in enumerate(places) if group in on_a_bone]
    bones, samples = [], []
    for parent, child in directed:
        start, end = places[parent], places[child]
        bones.append((start, end))
        steps = round(math.dist(start, end) / STEP)
        samples += [_between(start, end, k / steps if steps else 0.0) for k in range(steps + 1)]
    return kept, bones, samples


def _read_exact(joints: Any, parents: Any) -> tuple[Any, Any, Any]:
    groups: list[set[int]] = []
    for joint in range(len(joints)):
        near = {j for j in range(joint + 1) if math.dist(joints[joint], joints[j]) <= MERGE_DISTANCE}
        touched = [group for group in groups if group & near]
        groups = [group for group in groups if not group & near] + [{joint}.union(*touched)]
    merged = [[sum(joints[j][axis] for j in group) / len(group) for axis in range(3)] for group in groups]
    group_of = {joint: i for i, group in enumerate(groups) for joint in group}
    linked = {
        frozenset((group_of[joint], group_of[parent])) for joint, parent in enumerate(parents) if parent >= 0
    }
    linked = {pair for pair in linked if len(pair) == 2}
    linked |= {frozenset((i,)) for i in range(len(merged)) if not any(i in pair for pair in linked)}
    bones, samples = [], []
    for pair in linked:
        start, end = merged[min(pair)], merged[max(pair)]
        bones.append((start, end))
        pieces = max(math.ceil(math.dist(start, end) / STEP - 1e-9), 1)
        samples += [_between(start, end, (k + 0.5) / pieces) for k in range(pieces)]
    return merged, bones, samples


def _point_segment(point: Any, start: Any, end: Any) -> float:
    along = [e - s for s, e in zip(start, end, strict=True)]
    squared = sum(x * x for x in along)
    if squared == 0:
        return math.dist(point, start)
    way = sum((p - s) * x for p, s, x in zip(point, start, along, strict=True)) / squared
    return math.dist(point, _between(start, end, min(max(way, 0.0), 1.0)))


def _between(start: Sequence[float], end: Sequence[float], way: float) -> list[float]:
    return [s + way * (e - s) for s, e in zip(start, end, strict=True)]
