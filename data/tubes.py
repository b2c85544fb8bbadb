"""Closed tapered tubes swept along smooth chains, with skin weights: what creatures are made of."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Latitudes of the rings of a rounded end, from the tube's last full ring towards the pole.
_CAP = np.array([0.45, 0.95])


@dataclass(frozen=True, eq=False)
class Tube:
    """A swept part. All lengths in one arbitrary unit.

    `path` (n + 1, 3): points on the centre line, n >= 1. `radii` (n + 1, 2): radius along `side` and at
    right angles to it. `owners`: the joint each of the n segments belongs to. `side` (3,): a direction
    not parallel to the path. `blend`: half width of the weight transition at an inner point, as a
    fraction of the mean length of the segments on both sides, at most 0.5. `smooth`: False for an
    ellipsoid about the one segment of the path.
    """

    path: Floats
    radii: Floats
    owners: tuple[int, ...]
    side: Floats
    blend: float
    smooth: bool = True


def ellipsoid(centre: Floats, axis: Floats, radii: tuple[float, float], owner: int, side: Floats) -> Tube:
    """An ellipsoid owned by one joint: half axis `axis` (3,), and the two radii across it."""
    return Tube(
        np.stack([centre - axis, centre + axis]), np.array([radii, radii]), (owner,), side, 0.0, smooth=False
    )


def mesh_tubes(
    tubes: list[Tube], joint_count: int, target: int, lowest: int, highest: int
) -> tuple[Floats, NDArray[np.int64], Floats]:
    """Triangulate tubes: (vertices (V, 3), faces (F, 3) outward, weights (V, joint_count)).

    Every tube becomes a closed surface of its own. The ring spacing is chosen so that V comes near
    `target` and, where the number of tubes allows it, into [lowest, highest]. Weight rows sum to 1.
    """
    lengths = [_segment_lengths(tube) for tube in tubes]
    area = sum(
        2 * np.pi * tube.radii.mean() * length.sum() for tube, length in zip(tubes, lengths, strict=True)
    )
    spacing = float(np.sqrt(area / target))
    layouts = [_layout(tube, length, spacing) for tube, length in zip(tubes, lengths, strict=True)]
    for _ in range(12):
        total = sum(_vertex_count(tube, *layout) for tube, layout in zip(tubes, layouts, strict=True))
        if lowest <= total <= highest:
            break
        spacing *= 0.85 if total < lowest else 1.15
        layouts = [_layout(tube, length, spacing) for tube, length in zip(tubes, lengths, strict=True)]
    vertices, faces, weights, start = [], [], [], 0
    for tube, (rings, around) in zip(tubes, layouts, strict=True):
        points, arc, knots = _sweep(tube, rings, around)
        vertices.append(points)
        faces.append(_faces(len(arc) - 2, around) + start)
        per_ring = _ring_weights(tube, arc, knots, joint_count)
        repeats = np.full(len(arc), around)
        repeats[[0, -1]] = 1
        weights.append(np.repeat(per_ring, repeats, axis=0))
        start += len(points)
    return np.concatenate(vertices), np.concatenate(faces), np.concatenate(weights)


def _segment_lengths(tube: Tube) -> Floats:
    return np.sqrt(((tube.path[1:] - tube.path[:-1]) ** 2).sum(axis=1))


def _layout(tube: Tube, lengths: Floats, spacing: float) -> tuple[NDArray[np.int64], int]:
    """Rings per segment (n,) and vertices around each ring."""
    around = int(
        np.clip(2 * np.pi * np.sqrt(tube.radii[:, 0].max() * tube.radii[:, 1].max()) / spacing, 6, 24)
    )
    if not tube.smooth:
        return np.array([max(3, min(14, around // 2 + 1))]), around
    return np.clip(np.rint(lengths / spacing), 2, 16).astype(np.int64), around


def _vertex_count(tube: Tube, rings: NDArray[np.int64], around: int) -> int:
    caps = 1 + 2 * len(_CAP) if tube.smooth else 0
    return (int(rings.sum()) + caps) * around + 2


def _sweep(tube: Tube, rings: NDArray[np.int64], around: int) -> tuple[Floats, Floats, Floats]:
    """Vertices, pole by ring by pole; arc length of the poles and rings, and of the path's points."""
    if tube.smooth:
        arc, knots, centres, tangents, radii = _smooth_rings(tube, rings)
    else:
        latitude = np.linspace(0, np.pi, int(rings[0]) + 2)
        axis = tube.path[1] - tube.path[0]
        arc, knots = (1 - np.cos(latitude)) / 2, np.array([0.0, 1.0])
        centres = tube.path[0] + arc[:, None] * axis
        tangents = np.broadcast_to(axis / np.sqrt(axis @ axis), centres.shape)
        radii = np.sin(latitude)[:, None] * tube.radii[0]
    first = tube.side - (tangents @ tube.side)[:, None] * tangents
    first /= np.sqrt((first**2).sum(axis=1, keepdims=True))
    second = _cross(tangents, first)
    cos, sin = _circle(around)
    ring_points = (
        centres[1:-1, None]
        + (radii[1:-1, 0, None] * cos)[..., None] * first[1:-1, None]
        + (radii[1:-1, 1, None] * sin)[..., None] * second[1:-1, None]
    )
    return np.concatenate([centres[:1], ring_points.reshape(-1, 3), centres[-1:]]), arc, knots


def _smooth_rings(tube: Tube, rings: NDArray[np.int64]) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Poles and rings along a Catmull-Rom curve through the path.

    Returns (arc lengths, arc lengths of the path's points, centres, unit ring axes, radii). Rounded ends
    are added beyond both end points of the path.
    """
    path, count = tube.path, len(tube.owners)
    segment = np.repeat(np.arange(count), rings)
    offset = np.arange(len(segment)) - np.repeat(np.cumsum(rings) - rings, rings)
    fraction = offset / np.repeat(rings, rings)
    segment, fraction = np.append(segment, count - 1), np.append(fraction, 1.0)
    padded = np.concatenate([2 * path[:1] - path[1:2], path, 2 * path[-1:] - path[-2:-1]])
    # Catmull-Rom directions (the longer neighbour decides), with each segment's own length as speed:
    # a short segment beside a long one cannot overshoot.
    edges = padded[1:] - padded[:-1]
    heading = edges[1:] + edges[:-1]
    heading /= np.maximum(np.sqrt((heading**2).sum(axis=1, keepdims=True)), 1e-9)
    p0, p1 = path[segment], path[segment + 1]
    reach = np.sqrt((edges[1:-1] ** 2).sum(axis=1))[segment, None]
    m0, m1 = heading[segment] * reach, heading[segment + 1] * reach
    t = fraction[:, None]
    t2, t3 = t * t, t * t * t
    centres = (2 * t3 - 3 * t2 + 1) * p0 + (t3 - 2 * t2 + t) * m0 + (3 * t2 - 2 * t3) * p1 + (t3 - t2) * m1
    tangents = 6 * (t2 - t) * (p0 - p1) + (3 * t2 - 4 * t + 1) * m0 + (3 * t2 - 2 * t) * m1
    tangents /= np.sqrt((tangents**2).sum(axis=1, keepdims=True))
    arc = np.append(0.0, np.cumsum(np.sqrt(((centres[1:] - centres[:-1]) ** 2).sum(axis=1))))
    knots = arc[np.append(0, np.cumsum(rings))]
    ease = t2 * (3 - 2 * t)
    radii = tube.radii[segment] * (1 - ease) + tube.radii[segment + 1] * ease
    # Rings turn more slowly than a tight bend does, or they would meet on its inner side: axes are
    # averaged over about a radius.
    nearness = np.exp(-0.5 * ((arc[:, None] - arc) / radii.mean(axis=1)[:, None]) ** 2)
    tangents = nearness @ tangents
    tangents /= np.sqrt((tangents**2).sum(axis=1, keepdims=True))
    cap = np.append(_CAP, np.pi / 2)
    reach0, reach1 = radii[0].min(), radii[-1].min()
    ends0 = centres[0] - tangents[0] * (reach0 * np.sin(cap[::-1]))[:, None]
    ends1 = centres[-1] + tangents[-1] * (reach1 * np.sin(cap))[:, None]
    shrink = np.cos(cap)[:, None]
    return (
        np.concatenate([np.zeros(len(cap)), arc, np.full(len(cap), arc[-1])]),
        knots,
        np.concatenate([ends0, centres, ends1]),
        np.concatenate(
            [np.repeat(tangents[:1], len(cap), axis=0), tangents, np.repeat(tangents[-1:], len(cap), axis=0)]
        ),
        np.concatenate([shrink[::-1] * radii[0], radii, shrink * radii[-1]]),
    )


def _ring_weights(tube: Tube, arc: Floats, knots: Floats, joint_count: int) -> Floats:
    """Weights (R, joint_count) at arc lengths (R,): one owner per segment, smoothsteps at inner knots.

    A transition is never much shorter than the tube is thick: that would tear when the joint bends.
    """
    count = len(tube.owners)
    around_knot = (knots[2:] - knots[:-2]) / 2
    half = np.maximum(tube.blend * around_knot, 0.6 * tube.radii[1:-1].mean(axis=1))
    half = np.minimum(half, 0.75 * around_knot)
    t = np.clip((arc[:, None] - knots[1:-1] + half) / (2 * half), 0, 1)
    steps = np.ones((len(arc), count + 1))
    # Wide transitions may overtake one another around a short segment; the next never leads.
    steps[:, 1:count] = np.minimum.accumulate(t * t * (3 - 2 * t), axis=1)
    steps[:, count] = 0
    weights = np.zeros((len(arc), joint_count))
    for index, owner in enumerate(tube.owners):
        weights[:, owner] += steps[:, index] - steps[:, index + 1]
    return weights


@lru_cache(maxsize=64)
def _circle(around: int) -> tuple[Floats, Floats]:
    angle = np.arange(around) * (2 * np.pi / around)
    return np.cos(angle), np.sin(angle)


@lru_cache(maxsize=4096)
def _faces(rings: int, around: int) -> NDArray[np.int64]:
    """Outward triangles of pole 0, `rings` rings of `around` vertices, and the other pole."""
    here = 1 + np.arange(rings * around).reshape(rings, around)
    after = np.roll(here, -1, axis=1)
    a, b, c, d = here[:-1].ravel(), after[:-1].ravel(), after[1:].ravel(), here[1:].ravel()
    last = 1 + rings * around
    start = np.stack([np.zeros(around, dtype=np.int64), after[0], here[0]], axis=1)
    end = np.stack([np.full(around, last), here[-1], after[-1]], axis=1)
    return np.concatenate([start, np.stack([a, b, c], axis=1), np.stack([a, c, d], axis=1), end])


def _cross(a: Floats, b: Floats) -> Floats:
    """Row-wise cross product; np.cross costs several times as much on short arrays."""
    return np.stack(
        [
            a[:, 1] * b[:, 2] - a[:, 2] * b[:, 1],
            a[:, 2] * b[:, 0] - a[:, 0] * b[:, 2],
            a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0],
        ],
        axis=1,
    )
