"""Swept surfaces (generalised cylinders) and grid patches with skinning weights: a creature's geometry."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from data.creatures.interior_points import interior_points

Floats = NDArray[np.float64]

# Latitudes of the rings of a rounded cap, from the last full ring towards the pole.
_CAP_LATITUDES = np.array([0.45, 0.95])


@dataclass(frozen=True, eq=False)
class SweptSurface:
    """A generalised cylinder: a superelliptic profile swept along a spine. Lengths in one arbitrary unit.

    `spine` (n + 1, 3): control points of the centre line, n >= 1. `radii` (n + 1, 2): half axes of the
    profile along `normal` and along the binormal. `joints`: the joint each of the n spine segments is bound
    to. `normal` (3,): reference direction, not parallel to the spine, that fixes the profile's first axis.
    `blend`: half width of the weight transition at an inner control point, as a fraction of the mean length
    of the segments on both sides, at most 0.5. `is_ellipsoid`: True for an ellipsoid whose poles are the two
    points of the spine. `corners`: corners of the profile, None for as many as its size needs; 4 give a box.
    `squareness`: 1 for an elliptic profile, towards 0 a rectangle (epsilon of Barr's superquadrics, 1981).
    `cap_length`: length of the rounded caps in radii, 0 for flat ones. `prop`: worn or held; a prop is
    neither culled where it lies inside the body nor culls the body.
    """

    spine: Floats
    radii: Floats
    joints: tuple[int, ...]
    normal: Floats
    blend: float
    is_ellipsoid: bool = False
    corners: int | None = None
    squareness: float = 1.0
    cap_length: float = 1.0
    prop: bool = False


@dataclass(frozen=True, eq=False)
class GridPatch:
    """An open surface patch: a grid of `points` (R, C, 3) with `weights` (R, C, n) for n different `joints`.

    `closed`: the last column is joined to the first, as in a skirt.
    """

    points: Floats
    joints: tuple[int, ...]
    weights: Floats
    closed: bool = False


@dataclass(frozen=True, eq=False)
class SampledSweep:
    """The vertices of a swept surface, pole by ring by pole, and its R rings (the poles count as rings).

    `vertices` (V, 3). `arc` (R,): arc length along the spine of every ring. `knots` (n + 1,): arc length of
    the spine's control points. `centres` (R, 3). `frames` (R, 3, 3): each ring's normal, binormal and
    tangent, divided by the ring's extent along them, so that points of the surface near that ring have
    coordinates of at most 1; zero at the poles.
    """

    vertices: Floats
    arc: Floats
    knots: Floats
    centres: Floats
    frames: Floats


def ellipsoid(
    centre: Floats,
    axis: Floats,
    radii: tuple[float, float],
    joint: int,
    normal: Floats,
    corners: int | None = None,
    prop: bool = False,
) -> SweptSurface:
    """An ellipsoid bound to one joint: half axis `axis` (3,) and radii along `normal` and the binormal."""
    spine = np.stack([centre - axis, centre + axis])
    both = np.array([radii, radii])
    return SweptSurface(spine, both, (joint,), normal, 0.0, is_ellipsoid=True, corners=corners, prop=prop)


def tessellate(
    sweeps: Sequence[SweptSurface],
    patches: Sequence[GridPatch],
    joint_count: int,
    target_vertices: int,
    min_vertices: int,
    max_vertices: int,
    cull_interior: bool = False,
) -> tuple[Floats, NDArray[np.int64], Floats]:
    """Triangulate surfaces: (vertices (V, 3), faces (F, 3) facing outward, weights (V, joint_count)).

    Every swept surface becomes a closed mesh component of its own. The ring spacing is chosen so that V
    comes near `target_vertices` and, where the number of surfaces allows it, into [min_vertices,
    max_vertices]. Weight rows sum to 1. `cull_interior`: drop the faces that lie inside another swept
    surface (props excepted), as a modeller would; the mesh is then open where another component covers the
    opening. Nothing is culled if that would leave a joint without vertices that follow it.
    """
    lengths = [_segment_lengths(sweep) for sweep in sweeps]
    area = sum(
        2 * np.pi * sweep.radii.mean() * length.sum() for sweep, length in zip(sweeps, lengths, strict=True)
    )
    fixed = sum(patch.points.shape[0] * patch.points.shape[1] for patch in patches)
    spacing = float(np.sqrt(area / max(target_vertices - fixed, 300)))
    resolutions = [_resolution(sweep, length, spacing) for sweep, length in zip(sweeps, lengths, strict=True)]
    for _ in range(12):
        counts = [
            _vertex_count(sweep, *resolution) for sweep, resolution in zip(sweeps, resolutions, strict=True)
        ]
        total = sum(counts) + fixed
        if min_vertices <= total <= max_vertices:
            break
        spacing *= 0.85 if total < min_vertices else 1.15
        resolutions = [
            _resolution(sweep, length, spacing) for sweep, length in zip(sweeps, lengths, strict=True)
        ]
    vertices, faces, weights, start = [], [], [], 0
    sampled = []
    for sweep, (rings, ring_size) in zip(sweeps, resolutions, strict=True):
        samples = _sample(sweep, rings, ring_size)
        sampled.append(samples)
        vertices.append(samples.vertices)
        faces.append(_sweep_faces(len(samples.arc) - 2, ring_size) + start)
        per_ring = _ring_weights(sweep, samples.arc, samples.knots, joint_count)
        repeats = np.full(len(samples.arc), ring_size)
        repeats[[0, -1]] = 1
        weights.append(np.repeat(per_ring, repeats, axis=0))
        start += len(samples.vertices)
    for patch in patches:
        rows, columns = patch.points.shape[:2]
        vertices.append(patch.points.reshape(-1, 3))
        faces.append(_grid_faces(rows, columns, patch.closed) + start)
        dense = np.zeros((rows * columns, joint_count))
        dense[:, list(patch.joints)] = patch.weights.reshape(rows * columns, -1)
        weights.append(dense)
        start += rows * columns
    points, triangles, skin = np.concatenate(vertices), np.concatenate(faces), np.concatenate(weights)
    if cull_interior:
        return _without_interior_faces(points, triangles, skin, sweeps, sampled)
    return points, triangles, skin


def _without_interior_faces(
    points: Floats,
    triangles: NDArray[np.int64],
    skin: Floats,
    sweeps: Sequence[SweptSurface],
    sampled: Sequence[SampledSweep],
) -> tuple[Floats, NDArray[np.int64], Floats]:
    """Drop the faces whose three corners all lie inside another swept surface."""
    sizes = np.array([len(samples.vertices) for samples in sampled])
    rings = np.array([len(samples.arc) for samples in sampled])
    interior = interior_points(
        points[: sizes.sum()],
        np.append(0, np.cumsum(sizes)),
        np.concatenate([samples.centres for samples in sampled]),
        np.concatenate([samples.frames for samples in sampled]),
        np.append(0, np.cumsum(rings)),
        np.array([sweep.prop for sweep in sweeps]),
    )
    hidden = np.append(interior, np.zeros(len(points) - len(interior), dtype=bool))
    kept = triangles[~hidden[triangles].all(axis=1)]
    used = np.zeros(len(points), dtype=bool)
    used[kept] = True
    if skin[used].max(axis=0).min() < 0.75:
        return points, triangles, skin
    return points[used], (np.cumsum(used) - 1)[kept], skin[used]


def _segment_lengths(sweep: SweptSurface) -> Floats:
    return np.sqrt(((sweep.spine[1:] - sweep.spine[:-1]) ** 2).sum(axis=1))


def _resolution(sweep: SweptSurface, lengths: Floats, spacing: float) -> tuple[NDArray[np.int64], int]:
    """How many rings each spine segment gets (n,), and how many vertices each ring has."""
    size = np.sqrt(sweep.radii[:, 0].max() * sweep.radii[:, 1].max())
    ring_size = int(np.clip(2 * np.pi * size / spacing, 6 if size > 0.03 else 5, 24))
    if sweep.is_ellipsoid:
        latitudes = max(3, min(14, ring_size // 2 + 1))
        return np.array([latitudes]), sweep.corners or ring_size
    if sweep.corners is not None:
        ring_size = sweep.corners
    return np.clip(np.rint(lengths / spacing), 2, 16).astype(np.int64), ring_size


def _vertex_count(sweep: SweptSurface, rings: NDArray[np.int64], ring_size: int) -> int:
    caps = 0 if sweep.is_ellipsoid else 1 + 2 * len(_CAP_LATITUDES)
    return (int(rings.sum()) + caps) * ring_size + 2


def _sample(sweep: SweptSurface, rings: NDArray[np.int64], ring_size: int) -> SampledSweep:
    """Place the rings (count per segment in `rings`) along the spine and the profile on every ring."""
    if sweep.is_ellipsoid:
        latitude = np.linspace(0, np.pi, int(rings[0]) + 2)
        axis = sweep.spine[1] - sweep.spine[0]
        arc, knots = (1 - np.cos(latitude)) / 2, np.array([0.0, 1.0])
        centres = sweep.spine[0] + arc[:, None] * axis
        tangents = np.broadcast_to(axis / np.sqrt(axis @ axis), centres.shape)
        radii = np.sin(latitude)[:, None] * sweep.radii[0]
    else:
        arc, knots, centres, tangents, radii = _spine_rings(sweep, rings)
    normals = sweep.normal - (tangents @ sweep.normal)[:, None] * tangents
    normals /= np.sqrt((normals**2).sum(axis=1, keepdims=True))
    binormals = _cross(tangents, normals)
    cos, sin, inner = _profile(ring_size, sweep.squareness)
    ring_points = (
        centres[1:-1, None]
        + (radii[1:-1, 0, None] * cos)[..., None] * normals[1:-1, None]
        + (radii[1:-1, 1, None] * sin)[..., None] * binormals[1:-1, None]
    )
    gaps = np.sqrt(((centres[1:] - centres[:-1]) ** 2).sum(axis=1))
    frames = np.zeros((len(centres), 3, 3))
    frames[1:-1, 0] = normals[1:-1] / (radii[1:-1, :1] * inner)
    frames[1:-1, 1] = binormals[1:-1] / (radii[1:-1, 1:] * inner)
    frames[1:-1, 2] = tangents[1:-1] / np.maximum(np.minimum(gaps[1:], gaps[:-1]), 1e-9)[:, None]
    vertices = np.concatenate([centres[:1], ring_points.reshape(-1, 3), centres[-1:]])
    return SampledSweep(vertices, arc, knots, centres, frames)


def _spine_rings(
    sweep: SweptSurface, rings: NDArray[np.int64]
) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Poles and rings along a Catmull-Rom spline through the spine's control points.

    Returns (arc lengths (R,), arc lengths of the control points (n + 1,), centres (R, 3), unit tangents
    (R, 3), radii (R, 2)). Caps are added beyond both ends of the spine.
    """
    spine, count = sweep.spine, len(sweep.joints)
    segment = np.repeat(np.arange(count), rings)
    offset = np.arange(len(segment)) - np.repeat(np.cumsum(rings) - rings, rings)
    fraction = offset / np.repeat(rings, rings)
    segment, fraction = np.append(segment, count - 1), np.append(fraction, 1.0)
    padded = np.concatenate([2 * spine[:1] - spine[1:2], spine, 2 * spine[-1:] - spine[-2:-1]])
    # Catmull-Rom directions (the longer neighbour dominates), but each segment's own length as speed, so
    # that a short segment beside a long one cannot overshoot.
    edges = padded[1:] - padded[:-1]
    heading = edges[1:] + edges[:-1]
    heading /= np.maximum(np.sqrt((heading**2).sum(axis=1, keepdims=True)), 1e-9)
    p0, p1 = spine[segment], spine[segment + 1]
    speed = np.sqrt((edges[1:-1] ** 2).sum(axis=1))[segment, None]
    m0, m1 = heading[segment] * speed, heading[segment + 1] * speed
    t = fraction[:, None]
    t2, t3 = t * t, t * t * t
    centres = (2 * t3 - 3 * t2 + 1) * p0 + (t3 - 2 * t2 + t) * m0 + (3 * t2 - 2 * t3) * p1 + (t3 - t2) * m1
    tangents = 6 * (t2 - t) * (p0 - p1) + (3 * t2 - 4 * t + 1) * m0 + (3 * t2 - 2 * t) * m1
    tangents /= np.sqrt((tangents**2).sum(axis=1, keepdims=True))
    arc = np.append(0.0, np.cumsum(np.sqrt(((centres[1:] - centres[:-1]) ** 2).sum(axis=1))))
    knots = arc[np.append(0, np.cumsum(rings))]
    ease = t2 * (3 - 2 * t)
    radii = sweep.radii[segment] * (1 - ease) + sweep.radii[segment + 1] * ease
    # Tangents are smoothed over about a radius: in a tight bend the rings would otherwise intersect.
    kernel = np.exp(-0.5 * ((arc[:, None] - arc) / radii.mean(axis=1)[:, None]) ** 2)
    tangents = kernel @ tangents
    tangents /= np.sqrt((tangents**2).sum(axis=1, keepdims=True))
    cap = np.append(_CAP_LATITUDES, np.pi / 2)
    length0, length1 = sweep.cap_length * radii[0].min(), sweep.cap_length * radii[-1].min()
    ends0 = centres[0] - tangents[0] * (length0 * np.sin(cap[::-1]))[:, None]
    ends1 = centres[-1] + tangents[-1] * (length1 * np.sin(cap))[:, None]
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


def _ring_weights(sweep: SweptSurface, arc: Floats, knots: Floats, joint_count: int) -> Floats:
    """Weights (R, joint_count) at arc lengths (R,): one joint per segment, smoothsteps between them.

    A transition is never much shorter than the surface is thick: the mesh would tear at a bent joint.
    """
    count = len(sweep.joints)
    segment_mean = (knots[2:] - knots[:-2]) / 2
    half = np.maximum(sweep.blend * segment_mean, 0.6 * sweep.radii[1:-1].mean(axis=1))
    half = np.minimum(half, 0.75 * segment_mean)
    t = np.clip((arc[:, None] - knots[1:-1] + half) / (2 * half), 0, 1)
    steps = np.ones((len(arc), count + 1))
    # Wide transitions may overlap around a short segment; a later step never exceeds an earlier one.
    steps[:, 1:count] = np.minimum.accumulate(t * t * (3 - 2 * t), axis=1)
    steps[:, count] = 0
    weights = np.zeros((len(arc), joint_count))
    for index, joint in enumerate(sweep.joints):
        weights[:, joint] += steps[:, index] - steps[:, index + 1]
    return weights


@lru_cache(maxsize=256)
def _profile(ring_size: int, squareness: float) -> tuple[Floats, Floats, float]:
    """A profile of unit radius with `ring_size` corners: (x, y, radius of the inscribed circle, less 3 %).

    Four corners make a square of half side 0.9; others lie on a superellipse (`squareness`).
    """
    turn = np.pi / 4 if ring_size == 4 else 0.0
    angle = turn + np.arange(ring_size) * (2 * np.pi / ring_size)
    cos, sin = np.cos(angle), np.sin(angle)
    if ring_size == 4:
        cos, sin = 0.9 * np.sqrt(2) * cos, 0.9 * np.sqrt(2) * sin
    else:
        cos, sin = np.sign(cos) * np.abs(cos) ** squareness, np.sign(sin) * np.abs(sin) ** squareness
    x, y = np.roll(cos, -1), np.roll(sin, -1)
    inner = np.min(np.abs(cos * y - x * sin) / np.hypot(x - cos, y - sin))
    return cos, sin, 0.97 * float(inner)


@lru_cache(maxsize=256)
def _grid_faces(rows: int, columns: int, closed: bool) -> NDArray[np.int64]:
    """Two triangles for each cell of a grid of vertices in row-major order."""
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
def _sweep_faces(rings: int, ring_size: int) -> NDArray[np.int64]:
    """Outward triangles of pole 0, `rings` rings of `ring_size` vertices, and the other pole."""
    here = 1 + np.arange(rings * ring_size).reshape(rings, ring_size)
    after = np.roll(here, -1, axis=1)
    a, b, c, d = here[:-1].ravel(), after[:-1].ravel(), after[1:].ravel(), here[1:].ravel()
    last = 1 + rings * ring_size
    start = np.stack([np.zeros(ring_size, dtype=np.int64), after[0], here[0]], axis=1)
    end = np.stack([np.full(ring_size, last), here[-1], after[-1]], axis=1)
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
