"""Exact distances from points to line segments and to point sets."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from rl.metrics.inputs import check_finite

CHUNK = 1 << 18  # point-segment pairs computed at once: about 20 MB of intermediates


def point_segment_distances(points: ArrayLike, segments: ArrayLike) -> NDArray[np.float64]:
    """Exact Euclidean distances from points to segments; a zero-length segment is a point.

    Args:
        points: (N, 3) float, N >= 1.
        segments: (S, 2, 3) float, S >= 1: both ends, in any order.

    Returns:
        (N, S) float64, in the unit of the arguments.

    Raises:
        MetricError: a wrong shape or a non-finite coordinate.
    """
    return _distances(check_finite("points", points, (3,)), check_finite("segments", segments, (2, 3)))


def nearest_point(points: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) distances from points (N, 3) to the nearest of targets (M, 3)."""
    return np.asarray(cKDTree(targets).query(points)[0])


def nearest_segment(points: NDArray[np.float64], segments: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) distances from points (N, 3) to the nearest of segments (S, 2, 3)."""
    rows = max(1, CHUNK // len(segments))
    parts = [points[i : i + rows] for i in range(0, len(points), rows)]
    return np.concatenate([_distances(part, segments).min(axis=1) for part in parts])


def _distances(points: NDArray[np.float64], segments: NDArray[np.float64]) -> NDArray[np.float64]:
    start = segments[:, 0]
    along = segments[:, 1] - start
    squared = (along**2).sum(axis=1)
    offset = points[:, None] - start
    # Position of the perpendicular's foot along the segment, 0 to 1; 0 if the segment has no length.
    way = np.einsum("nsi,si->ns", offset, along)
    way = np.clip(np.divide(way, squared, out=np.zeros_like(way), where=squared > 0), 0, 1)
    return np.asarray(np.linalg.norm(offset - way[..., None] * along, axis=-1))
