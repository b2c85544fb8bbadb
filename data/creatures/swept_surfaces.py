"""Tapered tubes swept along smooth chains, and open sheets, with skin weights: what creatures are made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numba import njit
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
    ellipsoid about the one segment of the path. `sides`: corners of the cross section, None for as many
    as the size asks for; 4 give a box. `square`: 1 for an elliptic cross section, towards 0 a rectangle.
    `cap`: length of the rounded ends in radii, 0 for flat ones. `prop`: a thing worn or held, which is
    neither cut where it lies within the body nor cuts the body.
    """

    path: Floats
    radii: Floats
    owners: tuple[int, ...]
    side: Floats
    blend: float
    smooth: bool = True
    sides: int | None = None
    square: float = 1.0
    cap: float = 1.0
    prop: bool = False


@dataclass(frozen=True, eq=False)
class Sheet:
    """An open part: a grid of `points` (R, C, 3) with `weights` (R, C, n) of n different `owners`.

    `closed`: the last column is joined to the first, as in a skirt.
    """

    points: Floats
    owners: tuple[int, ...]
    weights: Floats
    closed: bool = False


def ellipsoid(
    centre: Floats,
    axis: Floats,
    radii: tuple[float, float],
    owner: int,
    side: Floats,
    sides: int | None = None,
    prop: bool = False,
) -> Tube:
    """An ellipsoid owned by one joint: half axis `axis` (3,), and the two radii across it."""
    path = np.stack([centre - axis, centre + axis])
    return Tube(path, np.array([radii, radii]), (owner,), side, 0.0, smooth=False, sides=sides, prop=prop)


def mesh_parts(
    tubes: Sequence[Tube],
    sheets: Sequence[Sheet],
    joint_count: int,
    target: int,
    lowest: int,
    highest: int,
    trim: bool = False,
) -> tuple[Floats, NDArray[np.int64], Floats]:
    """Triangulate parts: (vertices (V, 3), faces (F, 3) outward, weights (V, joint_count)).

    Every tube becomes a closed surface of its own. The ring spacing is chosen so that V comes near
    `target` and, where the number of parts allows it, into [lowest, highest]. Weight rows sum to 1.
    `trim`: leave out the faces that lie within another tube (props excepted), as a modeller would; the
    tubes are then open where another covers the opening. It is not done where a joint would lose its hold.
    """
    lengths = [_segment_lengths(tube) for tube in tubes]
    area = sum(
        2 * np.pi * tube.radii.mean() * length.sum() for tube, length in zip(tubes, lengths, strict=True)
    )
    fixed = sum(sheet.points.shape[0] * sheet.points.shape[1] for sheet in sheets)
    spacing = float(np.sqrt(area / max(target - fixed, 300)))
    layouts = [_layout(tube, length, spacing) for tube, length in zip(tubes, lengths, strict=True)]
    for _ in range(12):
        total = sum(_vertex_count(tube, *layout) for tube, layout in zip(tubes, layouts, strict=True)) + fixed
        if lowest <= total <= highest:
            break
        spacing *= 0.85 if total < lowest else 1.15
        layouts = [_layout(tube, length, spacing) for tube, length in zip(tubes, lengths, strict=True)]
    vertices, faces, weights, start = [], [], [], 0
    sweeps = []
    for tube, (rings, around) in zip(tubes, layouts, strict=True):
        sweep = _sweep(tube, rings, around)
        sweeps.append(sweep)
        vertices.append(sweep.vertices)
        faces.append(_faces(len(sweep.arc) - 2, around) + start)
        per_ring = _ring_weights(tube, sweep.arc, sweep.knots, joint_count)
        repeats = np.full(len(sweep.arc), around)
        repeats[[0, -1]] = 1
        weights.append(np.repeat(per_ring, repeats, axis=0))
        start += len(sweep.vertices)
    for sheet in sheets:
        rows, columns = sheet.points.shape[:2]
        vertices.append(sheet.points.reshape(-1, 3))
        faces.append(_sheet_faces(rows, columns, sheet.closed) + start)
        spread = np.zeros((rows * columns, joint_count))
        spread[:, list(sheet.owners)] = sheet.weights.reshape(rows * columns, -1)
        weights.append(spread)
        start += rows * columns
    points, triangles, skin = np.concatenate(vertices), np.concatenate(faces), np.concatenate(weights)
    if trim:
        return _trimmed(points, triangles, skin, tubes, sweeps)
    return points, triangles, skin


@dataclass(frozen=True, eq=False)
class _Sweep:
    """A tube's vertices, pole by ring by pole, and its R rings.

    `arc` (R,): arc length of the poles and rings. `knots`: arc length of the path's points. `frames`
    (R, 3, 3): the three directions of each ring, each divided by the ring's extent along it, so that
    points of the tube near that ring have coordinates of at most 1; poles are left out (zeros).
    """

    vertices: Floats
    arc: Floats
    knots: Floats
    centres: Floats
    frames: Floats


def _trimmed(
    points: Floats,
    triangles: NDArray[np.int64],
    skin: Floats,
    tubes: Sequence[Tube],
    sweeps: Sequence[_Sweep],
) -> tuple[Floats, NDArray[np.int64], Floats]:
    """The parts without the faces whose three corners lie within another tube."""
    sizes = np.array([len(sweep.vertices) for sweep in sweeps])
    rings = np.array([len(sweep.arc) for sweep in sweeps])
    buried = buried_points(
        points[: sizes.sum()],
        np.append(0, np.cumsum(sizes)),
        np.concatenate([sweep.centres for sweep in sweeps]),
        np.concatenate([sweep.frames for sweep in sweeps]),
        np.append(0, np.cumsum(rings)),
        np.array([tube.prop for tube in tubes]),
    )
    hidden = np.append(buried, np.zeros(len(points) - len(buried), dtype=bool))
    left = triangles[~hidden[triangles].all(axis=1)]
    used = np.zeros(len(points), dtype=bool)
    used[left] = True
    if skin[used].max(axis=0).min() < 0.75:
        return points, triangles, skin
    return points[used], (np.cumsum(used) - 1)[left], skin[used]


@njit(cache=True)
def buried_points(
    points: Floats,
    starts: NDArray[np.int64],
    centres: Floats,
    frames: Floats,
    ring_starts: NDArray[np.int64],
    ignored: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Which points (V,) lie within a tube other than their own, by the nearest ring of that tube.

    Points starts[i] to starts[i + 1] are those of tube i, with the rings ring_starts[i] to
    ring_starts[i + 1]; `centres` (R, 3) and `frames` (R, 3, 3) as in a sweep. Tubes that are `ignored`
    (T,) take no part.
    """
    count = len(starts) - 1
    buried = np.zeros(len(points), dtype=np.bool_)
    low = np.empty((count, 3))
    high = np.empty((count, 3))
    for tube in range(count):
        for axis in range(3):
            own = points[starts[tube] : starts[tube + 1], axis]
            low[tube, axis], high[tube, axis] = own.min(), own.max()
    for tube in range(count):
        if ignored[tube]:
            continue
        for other in range(count):
            if other == tube or ignored[other]:
                continue
            apart = False
            for axis in range(3):
                apart |= low[tube, axis] > high[other, axis] or high[tube, axis] < low[other, axis]
            if apart:
                continue
            for vertex in range(starts[tube], starts[tube + 1]):
                if buried[vertex]:
                    continue
                x, y, z = points[vertex]
                if not (
                    low[other, 0] < x < high[other, 0]
                    and low[other, 1] < y < high[other, 1]
                    and low[other, 2] < z < high[other, 2]
                ):
                    continue
                nearest, best = 0, np.inf
                for ring in range(ring_starts[other], ring_starts[other + 1]):
                    dx, dy, dz = x - centres[ring, 0], y - centres[ring, 1], z - centres[ring, 2]
                    distance = dx * dx + dy * dy + dz * dz
                    if (
                        distance < best
                        and frames[ring, 2, 0] ** 2 + frames[ring, 2, 1] ** 2 + (frames[ring, 2, 2] ** 2) > 0
                    ):
                        nearest, best = ring, distance
                dx, dy, dz = x - centres[nearest, 0], y - centres[nearest, 1], z - centres[nearest, 2]
                f = frames[nearest]
                across = f[0, 0] * dx + f[0, 1] * dy + f[0, 2] * dz
                over = f[1, 0] * dx + f[1, 1] * dy + f[1, 2] * dz
                along = f[2, 0] * dx + f[2, 1] * dy + f[2, 2] * dz
                buried[vertex] = across * across + over * over < 1 and abs(along) < 1
    return buried


def _segment_lengths(tube: Tube) -> Floats:
    return np.sqrt(((tube.path[1:] - tube.path[:-1]) ** 2).sum(axis=1))


def _layout(tube: Tube, lengths: Floats, spacing: float) -> tuple[NDArray[np.int64], int]:
    """Rings per segment (n,) and vertices around each ring."""
    size = np.sqrt(tube.radii[:, 0].max() * tube.radii[:, 1].max())
    around = int(np.clip(2 * np.pi * size / spacing, 6 if size > 0.03 else 5, 24))
    if not tube.smooth:
        latitudes = max(3, min(14, around // 2 + 1))
        return np.array([latitudes]), tube.sides or around
    if tube.sides is not None:
        around = tube.sides
    return np.clip(np.rint(lengths / spacing), 2, 16).astype(np.int64), around


def _vertex_count(tube: Tube, rings: NDArray[np.int64], around: int) -> int:
    caps = 1 + 2 * len(_CAP) if tube.smooth else 0
    return (int(rings.sum()) + caps) * around + 2


def _sweep(tube: Tube, rings: NDArray[np.int64], around: int) -> _Sweep:
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
    cos, sin, inner = _section(around, tube.square)
    ring_points = (
        centres[1:-1, None]
        + (radii[1:-1, 0, None] * cos)[..., None] * first[1:-1, None]
        + (radii[1:-1, 1, None] * sin)[..., None] * second[1:-1, None]
    )
    gaps = np.sqrt(((centres[1:] - centres[:-1]) ** 2).sum(axis=1))
    frames = np.zeros((len(centres), 3, 3))
    frames[1:-1, 0] = first[1:-1] / (radii[1:-1, :1] * inner)
    frames[1:-1, 1] = second[1:-1] / (radii[1:-1, 1:] * inner)
    frames[1:-1, 2] = tangents[1:-1] / np.maximum(np.minimum(gaps[1:], gaps[:-1]), 1e-9)[:, None]
    vertices = np.concatenate([centres[:1], ring_points.reshape(-1, 3), centres[-1:]])
    return _Sweep(vertices, arc, knots, centres, frames)


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
    reach0, reach1 = tube.cap * radii[0].min(), tube.cap * radii[-1].min()
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


@lru_cache(maxsize=256)
def _section(around: int, square: float) -> tuple[Floats, Floats, float]:
    """A cross section of unit radius with `around` corners: (x, y, radius of the largest circle within).

    Four corners make a square of half side 0.9. `square` is the exponent of a superellipse.
    """
    turn = np.pi / 4 if around == 4 else 0.0
    angle = turn + np.arange(around) * (2 * np.pi / around)
    cos, sin = np.cos(angle), np.sin(angle)
    if around == 4:
        cos, sin = 0.9 * np.sqrt(2) * cos, 0.9 * np.sqrt(2) * sin
    else:
        cos, sin = np.sign(cos) * np.abs(cos) ** square, np.sign(sin) * np.abs(sin) ** square
    x, y = np.roll(cos, -1), np.roll(sin, -1)
    inner = np.min(np.abs(cos * y - x * sin) / np.hypot(x - cos, y - sin))
    return cos, sin, 0.97 * float(inner)


@lru_cache(maxsize=256)
def _sheet_faces(rows: int, columns: int, closed: bool) -> NDArray[np.int64]:
    index = np.arange(rows * columns).reshape(rows, columns)
    if closed:
        index = np.concatenate([index, index[:, :1]], axis=1)
    a, b, c, d = (
        index[:-1, :-1].ravel(),
        index[:-1, 1:].ravel(),
        index[1:, 1:].ravel(),
        index[1:, :-1].ravel(),
    )
    return np.concatenate([np.stack([a, b, c], axis=1), np.stack([a, c, d], axis=1)])


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
