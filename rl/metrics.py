"""The field's measures of a rig against another: skeleton distances, skin scores and the motion loss.

A failed rig (one that did not decode) has no numbers, and counting it is the caller's choice: leave it out
and say how many there were, or let it count as `FAILED_SKELETON`, `FAILED_SKIN` and `FAILED_MOTION`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from data.rig import Rig
from rewards.errors import RewardError
from rewards.lbs import check_rotations, linear_blend_skinning, skinning_matrices
from rewards.skeleton import check_joints, check_parents, hierarchy_levels
from rewards.weights import check_weights

Convention = Literal["unirig", "rignet"]

BOX_SIDE = 2.0  # the mesh frame's longest side, [-1, 1]: dividing by it makes a distance a share of the box
FRAME_LIMIT = 10.0  # a joint further out is in another frame or unit; it would also ask for endless samples
SAMPLES_PER_BONE = 100  # unirig
LONGEST_PIECE = 0.005  # rignet: bones are cut into pieces no longer than this share of the box side
MERGE_DISTANCE = LONGEST_PIECE / 2  # rignet: joints this close, in shares of the box side, are one joint

# Weights of the tie-breaks in `pair_joints`, against squared distances in the mesh frame: only joints closer
# than 3e-5 are told apart by depth (or else by index).
TIE_DEPTH, TIE_INDEX = 1e-9, 1e-12
CHUNK = 1 << 18  # point-segment pairs measured at once: about 20 MB of intermediates


class MetricError(ValueError):
    """Arrays that cannot be measured: empty, not finite, no hierarchy, or shapes that do not fit."""


@dataclass(frozen=True)
class SkeletonDistances:
    """Symmetric distances between two skeletons, in shares of the box's longest side (0.05 is 5 %)."""

    j2j: float
    j2b: float
    b2b: float


@dataclass(frozen=True)
class SkinScores:
    """Skin weights against the true ones, over the V vertices of one mesh.

    l1: mean over vertices of the L1 distance of their rows, 0 to 2 for rows that sum to 1. (Divide by the
    number of joints for the mean over all entries.)
    l1_variance: the population variance of that distance over the vertices.
    precision, recall, iou: of the entries above the threshold, counted over the whole matrix.
    """

    l1: float
    l1_variance: float
    precision: float
    recall: float
    iou: float


# The fixed worst values. Distances: the diagonal of the box, which no two skeletons inside it exceed. L1:
# rows that sum to 1 and share no joint; the variance of numbers between 0 and 2 is at most 1. The motion loss
# has no bound: the diagonal again, in the mesh frame's unit, is more than any useful rig has.
FAILED_SKELETON = SkeletonDistances(math.sqrt(3), math.sqrt(3), math.sqrt(3))
FAILED_SKIN = SkinScores(l1=2.0, l1_variance=1.0, precision=0.0, recall=0.0, iou=0.0)
FAILED_MOTION = BOX_SIDE * math.sqrt(3)


def skeleton_distances(
    joints_a: ArrayLike,
    parents_a: ArrayLike,
    joints_b: ArrayLike,
    parents_b: ArrayLike,
    convention: Convention,
) -> SkeletonDistances:
    """Chamfer distances between joints (J2J), joints and bones (J2B), bones and bones (B2B).

    Each is the mean of its two directions, from a to b and from b to a; a direction is the mean, over what it
    starts from, of the Euclidean distance to the nearest of what it goes to. Both conventions take the mesh
    frame (longest side spans [-1, 1]) and give shares of that side, so distances are halved. A joint without
    parent and children (a skeleton of one joint) is a bone of no length. They differ in:

    ========  =================================================  =============================================
              unirig                                             rignet
    ========  =================================================  =============================================
    joints    as given; duplicates count each                    joints within 0.0025 of the box side, also
                                                                 through others, are one, at their mean
    bones     as given; those of no length count like any other  between joints after merging, each pair once;
                                                                 those inside a merged joint vanish
    J2B       to 101 points per bone, k/100 of the way from      exact, to the segments
              parent to child, k = 0..100
    B2B       100 samples per bone, the same without k = 0, to   midpoints of equal pieces of at most 0.005 of
              the other's samples: every bone weighs the same    the box side, to the exact segments: bones
                                                                 weigh by length
    ========  =================================================  =============================================

    So `unirig` sees the bookkeeping (duplicates, zero-length bones, which end is the parent) and `rignet` the
    drawn skeleton alone. A failed rig counts as `FAILED_SKELETON` in both.

    Args:
        joints_a, joints_b: (J, 3) float, (K, 3) float, mesh frame; J, K >= 1 may differ.
        parents_a, parents_b: (J,) int, (K,) int; -1 for a root, any order, several roots allowed.
        convention: "unirig" or "rignet".

    Raises:
        MetricError: an empty or non-finite skeleton, one far outside the mesh frame, parents that are no
            hierarchy, an unknown convention.

    Source: the measures are RigNet's (Xu et al. 2020: CD-J2J, CD-J2B, CD-B2B). `unirig`'s scale and sampling
        are those of an independent program's numbers (tests/rewards/reference), which do not tell whether its
        J2B has k = 0; with it, a skeleton is at distance 0 from itself. In `rignet` the nearest point of a
        bone is exact; the length of the pieces and the merging are this project's choice.
    """
    _check_convention(convention)
    read = _read_unirig if convention == "unirig" else _read_rignet
    a = read(*_check_skeleton("a", joints_a, parents_a))
    b = read(*_check_skeleton("b", joints_b, parents_b))
    if convention == "unirig":
        return SkeletonDistances(
            j2j=_symmetric(_nearest_point, a.joints, b.joints, b.joints, a.joints),
            j2b=_symmetric(_nearest_point, a.joints, _with_starts(b), b.joints, _with_starts(a)),
            b2b=_symmetric(_nearest_point, a.samples, b.samples, b.samples, a.samples),
        )
    return SkeletonDistances(
        j2j=_symmetric(_nearest_point, a.joints, b.joints, b.joints, a.joints),
        j2b=_symmetric(_nearest_segment, a.joints, b.bones, b.joints, a.bones),
        b2b=_symmetric(_nearest_segment, a.samples, b.bones, b.samples, a.bones),
    )


def skeleton_distances_reference(
    joints_a: ArrayLike,
    parents_a: ArrayLike,
    joints_b: ArrayLike,
    parents_b: ArrayLike,
    convention: Convention,
) -> SkeletonDistances:
    """`skeleton_distances` in plain Python: a loop over every bone, sample and pair."""
    _check_convention(convention)
    read = _read_unirig_reference if convention == "unirig" else _read_rignet_reference
    joints, bones, samples = zip(
        read(*_check_skeleton("a", joints_a, parents_a)),
        read(*_check_skeleton("b", joints_b, parents_b)),
        strict=True,
    )

    def points_to_points(points: Any, targets: Any) -> float:
        return sum(min(math.dist(p, q) for q in targets) for p in points) / len(points)

    def points_to_bones(points: Any, segments: Any) -> float:
        return sum(min(_point_segment(p, s, e) for s, e in segments) for p in points) / len(points)

    def halved_mean(measure: Callable[[Any, Any], float], source: Any, target: Any) -> float:
        return (measure(source[0], target[1]) + measure(source[1], target[0])) / 2 / BOX_SIDE

    j2j = halved_mean(points_to_points, joints, joints)
    if convention == "unirig":
        j2b = halved_mean(points_to_points, joints, [[s for s, _ in bones[i]] + samples[i] for i in (0, 1)])
        b2b = halved_mean(points_to_points, samples, samples)
    else:
        j2b, b2b = (halved_mean(points_to_bones, source, bones) for source in (joints, samples))
    return SkeletonDistances(j2j, j2b, b2b)


def point_segment_distances(points: ArrayLike, segments: ArrayLike) -> NDArray[np.float64]:
    """Exact Euclidean distances of points to segments; a segment of no length is its point.

    Args:
        points: (N, 3) float, N >= 1.
        segments: (S, 2, 3) float, S >= 1: both ends, in any order.

    Returns:
        (N, S) float64, in the unit of the arguments.

    Raises:
        MetricError: a wrong shape or a coordinate that is not finite.
    """
    return _point_segments(_finite("points", points, (3,)), _finite("segments", segments, (2, 3)))


def point_segment_distances_reference(points: ArrayLike, segments: ArrayLike) -> NDArray[np.float64]:
    """`point_segment_distances`, one pair at a time."""
    p, s = _finite("points", points, (3,)), _finite("segments", segments, (2, 3))
    return np.array([[_point_segment(point, start, end) for start, end in s] for point in p])


def skin_scores(predicted: ArrayLike, truth: ArrayLike, threshold: float = 1e-2) -> SkinScores:
    """How well skin weights agree with the true ones, vertex by vertex and joint by joint.

    Weights are compared as given. Published numbers are of rows that sum to 1: normalise others (a sigmoid
    per bone, an asset's rounded weights) first. Columns are the same joints in the same order.

    Precision is the share of the predicted entries above the threshold that are so in truth, recall the share
    of the true ones found, IoU their intersection over their union. A share of nothing is 1 if neither matrix
    has an entry above the threshold, else 0: a prediction that binds nothing is not precise. A failed rig
    counts as `FAILED_SKIN`.

    Args:
        predicted, truth: (V, J) float >= 0; V, J >= 1.
        threshold: >= 0; an influence is a weight strictly above it.

    Raises:
        MetricError: shapes that differ or are empty, negative or non-finite weights, a negative threshold.

    Source: RigNet (Xu et al. 2020) for L1 per vertex, precision and recall; agrees with an independent
        program's numbers (tests/rewards/reference). The population variance is this project's choice.
    """
    if not 0 <= threshold < math.inf:
        raise MetricError(f"threshold is {threshold}; give a finite number, 0 or more")
    p, t = _check_skin("predicted", predicted), _check_skin("true", truth)
    if p.shape != t.shape:
        raise MetricError(
            f"predicted weights have shape {p.shape} and true ones {t.shape}; give both as (V, J) of one rig"
        )
    per_vertex = np.abs(p - t).sum(axis=1)
    said, is_so = p > threshold, t > threshold
    both, either = int((said & is_so).sum()), int((said | is_so).sum())

    def share(count: int) -> float:
        return both / count if count else float(either == 0)

    return SkinScores(
        l1=float(per_vertex.mean()),
        l1_variance=float(per_vertex.var()),
        precision=share(int(said.sum())),
        recall=share(int(is_so.sum())),
        iou=share(either),
    )


def motion_loss(vertices: ArrayLike, predicted: Rig, truth: Rig, rotations: ArrayLike) -> float:
    """Mean distance between the vertices as the two rigs move them, under the same poses.

    Poses are local rotations of the true joints, about world-aligned axes. A predicted joint takes those of
    the joint that `pair_joints` gives it; an unpaired one does not turn and so follows its parent. True
    joints that nobody predicted do turn: what they move counts. Give the root identities to leave out how it
    is placed, since it turns the whole mesh. A failed rig counts as `FAILED_MOTION`.

    Args:
        vertices: (V, 3) float, rest positions, mesh frame.
        predicted, truth: rigs of this mesh. Weights are normalised per vertex; a vertex with none does
            not move.
        rotations: (P, J, 3, 3) float, P >= 1, J the number of true joints, as from
            `rewards.poses.random_rotations`.

    Returns:
        The mean over poses and vertices, in the unit of `vertices` (over BOX_SIDE, it is a share of the box).

    Raises:
        MetricError: shapes that do not fit, or vertices or rotations that are not finite.
    """
    points = _finite("vertices", vertices, (3,))
    for name, rig in (("predicted", predicted), ("true", truth)):
        if len(rig.weights) != len(points):
            raise MetricError(
                f"the {name} rig weighs {len(rig.weights)} vertices and the mesh has {len(points)}; "
                "give rigs of this mesh"
            )
    try:
        turns = check_rotations(rotations, len(truth.joints))
    except RewardError as error:
        raise MetricError(str(error)) from error
    pairing = pair_joints(predicted, truth)
    taken = np.where((pairing >= 0)[:, None, None], turns[:, pairing], np.eye(3))
    moved, expected = (
        linear_blend_skinning(points, rig.weights, skinning_matrices(rig.joints, rig.parents, local))
        for rig, local in ((predicted, taken), (truth, turns))
    )
    return float(np.linalg.norm(moved - expected, axis=-1).mean())


def pair_joints(predicted: Rig, truth: Rig) -> NDArray[np.int64]:
    """For each predicted joint the index of the true joint it stands for, or -1.

    The roots are each other's: both turn the whole mesh. The other joints are paired one to one, as many as
    the smaller rig has, with the least sum of squared distances (of distances, a chain shifted along itself
    would have many best pairings). Joints at one place are told apart by depth, then by index.

    Returns:
        (J,) int64, J the number of predicted joints; no true joint occurs twice.
    """
    offsets = predicted.joints[1:, None].astype(np.float64) - truth.joints[1:].astype(np.float64)
    cost = (offsets**2).sum(axis=-1)
    cost += TIE_DEPTH * np.abs(_depths(predicted)[1:, None] - _depths(truth)[1:])
    cost += TIE_INDEX * np.abs(np.arange(cost.shape[0])[:, None] - np.arange(cost.shape[1]))
    pairing = np.full(len(predicted.joints), -1, dtype=np.int64)
    pairing[0] = 0
    rows, columns = linear_sum_assignment(cost)
    pairing[rows + 1] = columns + 1
    return pairing


def align_weights(predicted: Rig, truth: Rig) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights of two rigs of one mesh, rows normalised, with a column per joint of either: for `skin_scores`.

    Column k < K is true joint k; the prediction's is that of the joint `pair_joints` gives it, or nothing.
    Then comes a column for every predicted joint without a partner, with nothing in truth. So a missing joint
    costs recall, a superfluous one precision, and both L1, which stays between 0 and 2.

    Args:
        predicted, truth: J and K joints, weights (V, J) and (V, K) for the same V vertices. A vertex without
            weights keeps none.

    Returns:
        predicted and true weights, (V, K + U) float64 each, U the predicted joints without a partner.

    Raises:
        MetricError: weights for different numbers of vertices.
    """
    if len(predicted.weights) != len(truth.weights):
        raise MetricError(
            f"the predicted rig weighs {len(predicted.weights)} vertices and the true one "
            f"{len(truth.weights)}; give rigs of one mesh at the same points"
        )
    pairing = pair_joints(predicted, truth)
    count, paired = len(truth.joints), pairing >= 0
    said = _normalised(predicted.weights)
    aligned = np.zeros((len(said), count + int((~paired).sum())))
    aligned[:, pairing[paired]] = said[:, paired]
    aligned[:, count:] = said[:, ~paired]
    is_so = np.zeros_like(aligned)
    is_so[:, :count] = _normalised(truth.weights)
    return aligned, is_so


def _normalised(weights: NDArray[np.float32]) -> NDArray[np.float64]:
    sums = weights.sum(axis=1, keepdims=True, dtype=np.float64)
    return np.divide(weights, sums, out=np.zeros(weights.shape), where=sums > 0)


@dataclass(frozen=True)
class _Skeleton:
    """What a convention makes of a skeleton: joints (J, 3), bones (B, 2, 3), samples on the bones (N, 3)."""

    joints: NDArray[np.float64]
    bones: NDArray[np.float64]
    samples: NDArray[np.float64]


def _check_convention(convention: str) -> None:
    if convention not in get_args(Convention):
        raise MetricError(f"convention is {convention!r}; give one of {', '.join(get_args(Convention))}")


def _check_skeleton(
    name: str, joints: ArrayLike, parents: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
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
            "bring it into the frame of its normalised mesh"
        )
    return points, up


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

    # A length that is a whole number of pieces up to rounding gets that many.
    lengths = np.linalg.norm(bones[:, 1] - bones[:, 0], axis=1)
    pieces = np.maximum(np.ceil(lengths / (LONGEST_PIECE * BOX_SIDE) - 1e-9), 1).astype(np.int64)
    samples = [
        start + (np.arange(n)[:, None] + 0.5) / n * (end - start)
        for (start, end), n in zip(bones, pieces, strict=True)
    ]
    return _Skeleton(merged, bones, np.concatenate(samples))


def _with_lone_joints(edges: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Edges (E, 2) and, for every joint of `count` that no edge touches, one to itself."""
    lone = np.setdiff1d(np.arange(count), edges)
    return np.concatenate([edges, np.stack([lone, lone], axis=1)])


def _read_unirig_reference(joints: Any, parents: Any) -> tuple[Any, Any, Any]:
    bones = []
    for joint, parent in enumerate(parents):
        if parent >= 0:
            bones.append((joints[parent], joints[joint]))
        elif joint not in parents:
            bones.append((joints[joint], joints[joint]))
    samples = [
        _between(*bone, k / SAMPLES_PER_BONE) for bone in bones for k in range(1, SAMPLES_PER_BONE + 1)
    ]
    return joints, bones, samples


def _read_rignet_reference(joints: Any, parents: Any) -> tuple[Any, Any, Any]:
    groups: list[set[int]] = []
    for joint in range(len(joints)):
        near = {
            j for j in range(joint + 1) if math.dist(joints[joint], joints[j]) <= MERGE_DISTANCE * BOX_SIDE
        }
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
        pieces = max(math.ceil(math.dist(start, end) / (LONGEST_PIECE * BOX_SIDE) - 1e-9), 1)
        samples += [_between(start, end, (k + 0.5) / pieces) for k in range(pieces)]
    return merged, bones, samples


def _symmetric(nearest: Callable[[Any, Any], Any], from_a: Any, to_b: Any, from_b: Any, to_a: Any) -> float:
    """The mean of both directions, as a share of the box side."""
    return float((nearest(from_a, to_b).mean() + nearest(from_b, to_a).mean()) / 2 / BOX_SIDE)


def _nearest_point(points: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) exact distance to the nearest target."""
    return np.asarray(cKDTree(targets).query(points)[0])


def _nearest_segment(points: NDArray[np.float64], segments: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) exact distance to the nearest segment."""
    rows = max(1, CHUNK // len(segments))
    parts = [points[i : i + rows] for i in range(0, len(points), rows)]
    return np.concatenate([_point_segments(part, segments).min(axis=1) for part in parts])


def _point_segments(points: NDArray[np.float64], segments: NDArray[np.float64]) -> NDArray[np.float64]:
    start = segments[:, 0]
    along = segments[:, 1] - start
    squared = (along**2).sum(axis=1)
    offset = points[:, None] - start
    # Where along the segment the foot of the perpendicular is; at its start if it has no length.
    way = np.einsum("nsi,si->ns", offset, along)
    way = np.clip(np.divide(way, squared, out=np.zeros_like(way), where=squared > 0), 0, 1)
    return np.asarray(np.linalg.norm(offset - way[..., None] * along, axis=-1))


def _point_segment(point: Any, start: Any, end: Any) -> float:
    along = [e - s for s, e in zip(start, end, strict=True)]
    squared = sum(x * x for x in along)
    if squared == 0:
        return math.dist(point, start)
    way = sum((p - s) * x for p, s, x in zip(point, start, along, strict=True)) / squared
    return math.dist(point, _between(start, end, min(max(way, 0.0), 1.0)))


def _between(start: Sequence[float], end: Sequence[float], way: float) -> list[float]:
    return [s + way * (e - s) for s, e in zip(start, end, strict=True)]


def _depths(rig: Rig) -> NDArray[np.int64]:
    depth = np.zeros(len(rig.joints), dtype=np.int64)
    for joint, parent in enumerate(rig.parents[1:], start=1):
        depth[joint] = depth[parent] + 1
    return depth


def _check_skin(name: str, weights: ArrayLike) -> NDArray[np.float64]:
    try:
        return check_weights(weights).astype(np.float64)
    except RewardError as error:
        raise MetricError(f"{name} weights: {error}") from error


def _finite(name: str, given: ArrayLike, row: tuple[int, ...]) -> NDArray[np.float64]:
    """A finite float64 array of one or more rows of this shape."""
    array = np.asarray(given, dtype=np.float64)
    if array.shape[1:] != row or array.size == 0:
        wanted = ", ".join(map(str, row))
        raise MetricError(f"{name} have shape {array.shape}; give (N, {wanted}), N at least 1")
    if not np.isfinite(array).all():
        raise MetricError(f"{name} are not all finite; give finite numbers")
    return array
