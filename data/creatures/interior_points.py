"""Finds vertices of a creature that lie inside another of its swept surfaces, so that they can be culled."""

import numpy as np
from numpy.typing import NDArray

from data.compiled import kernel

Floats = NDArray[np.float64]


@kernel()
def interior_points(
    points: Floats,
    starts: NDArray[np.int64],
    centres: Floats,
    frames: Floats,
    ring_starts: NDArray[np.int64],
    ignored: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Which points (V,) lie inside a swept surface other than their own; returns (V,) bool.

    The test is local: a point is inside if it lies within the ring of the other surface that is nearest to
    it. Surface i has points starts[i] to starts[i + 1] of `points` (V, 3) and rings ring_starts[i] to
    ring_starts[i + 1] of `centres` (R, 3) and `frames` (R, 3, 3), as in `SampledSweep`. Surfaces that are
    `ignored` (S,) neither contain points nor have their own tested.
    """
    count = len(starts) - 1
    interior = np.zeros(len(points), dtype=np.bool_)
    low = np.full((count, 3), np.inf)
    high = np.full((count, 3), -np.inf)
    for surface in range(count):
        for vertex in range(starts[surface], starts[surface + 1]):
            for axis in range(3):
                low[surface, axis] = min(low[surface, axis], points[vertex, axis])
                high[surface, axis] = max(high[surface, axis], points[vertex, axis])
    for surface in range(count):
        if ignored[surface]:
            continue
        for other in range(count):
            if other == surface or ignored[other]:
                continue
            disjoint = False
            for axis in range(3):
                disjoint |= low[surface, axis] > high[other, axis] or high[surface, axis] < low[other, axis]
            if disjoint:
                continue
            for vertex in range(starts[surface], starts[surface + 1]):
                if interior[vertex]:
                    continue
                x, y, z = points[vertex, 0], points[vertex, 1], points[vertex, 2]
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
                normal = f[0, 0] * dx + f[0, 1] * dy + f[0, 2] * dz
                binormal = f[1, 0] * dx + f[1, 1] * dy + f[1, 2] * dz
                tangent = f[2, 0] * dx + f[2, 1] * dy + f[2, 2] * dz
                interior[vertex] = normal * normal + binormal * binormal < 1 and abs(tangent) < 1
    return interior
