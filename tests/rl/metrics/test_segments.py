"""Distances to segments by hand and against plain loops."""

from dataclasses import astuple

import numpy as np
import pytest

from rl.metrics import (
    MetricError,
    point_segment_distances,
    point_segment_distances_reference,
    segments,
    skeleton_distances,
)


def test_many_points_are_measured_in_chunks(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = rng.uniform(-1, 1, (7, 3)), rng.uniform(-1, 1, (5, 3))
    parents = np.array([-1, 0, 1, 1, 3, 0, 5])
    whole = skeleton_distances(a, parents, b, parents[:5], "exact")
    monkeypatch.setattr(segments, "CHUNK", 13)
    chunked = skeleton_distances(a, parents, b, parents[:5], "exact")
    assert astuple(chunked) == pytest.approx(astuple(whole), abs=1e-15)


@pytest.mark.parametrize(
    ("point", "segment", "expected"),
    [
        ((0.5, 2, 0), ((0, 0, 0), (1, 0, 0)), 2),  # the foot is inside
        ((4, 4, 0), ((0, 0, 0), (1, 0, 0)), 5),  # past the end: 3-4-5
        ((-3, 0, 4), ((0, 0, 0), (1, 0, 0)), 5),  # before the start
        ((0.3, 0, 0), ((0, 0, 0), (1, 0, 0)), 0),  # on it
        ((1, 2, 2), ((0, 0, 0), (0, 0, 0)), 3),  # no length: sqrt(1 + 4 + 4)
        ((0, 0, 1), ((0, 0, 0), (1e-170, 0, 0)), 1),  # a length whose square is 0
    ],
)
@pytest.mark.parametrize("distances", [point_segment_distances, point_segment_distances_reference])
def test_point_segment_by_hand(distances, point, segment, expected):
    assert distances([point], [segment]).tolist() == [[pytest.approx(expected, abs=1e-12)]]
    assert distances([point], [segment[::-1]]).tolist() == [[pytest.approx(expected, abs=1e-12)]]


def test_point_segment_distances_match_the_loop():
    rng = np.random.default_rng(1)
    points, segments = rng.normal(size=(17, 3)), rng.normal(size=(11, 2, 3))
    segments[3, 1] = segments[3, 0]
    found = point_segment_distances(points, segments)
    assert found.shape == (17, 11)
    np.testing.assert_allclose(found, point_segment_distances_reference(points, segments), atol=1e-13)


@pytest.mark.parametrize(
    ("points", "segments", "message"),
    [
        (np.empty((0, 3)), np.zeros((1, 2, 3)), r"points have shape \(0, 3\); pass \(N, 3\)"),
        (np.zeros((1, 3)), np.zeros((2, 3)), r"segments have shape \(2, 3\); pass \(N, 2, 3\)"),
        (np.full((1, 3), np.inf), np.zeros((1, 2, 3)), "points are not all finite"),
    ],
)
def test_unusable_points_are_refused(points, segments, message):
    with pytest.raises(MetricError, match=message):
        point_segment_distances(points, segments)
