"""Interior points against a plain NumPy implementation."""

import numpy as np
import pytest

from data.creatures.interior_points import interior_points


@pytest.mark.parametrize("seed", range(4))
def test_interior_points_match_a_plain_implementation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes, rings = np.array([9, 14, 11]), np.array([4, 5, 3])
    starts, ring_starts = np.append(0, np.cumsum(sizes)), np.append(0, np.cumsum(rings))
    points = rng.normal(size=(sizes.sum(), 3))
    centres = rng.normal(size=(rings.sum(), 3)) * 0.5
    frames = rng.normal(size=(rings.sum(), 3, 3)) * 0.6
    frames[ring_starts[:-1]] = 0  # poles
    ignored = np.array([False, False, seed == 3])
    expected = np.zeros(len(points), dtype=bool)
    for own in range(3):
        for other in range(3):
            if own == other or ignored[own] or ignored[other]:
                continue
            box = points[starts[other] : starts[other + 1]]
            span = np.arange(ring_starts[other] + 1, ring_starts[other + 1])
            for vertex in range(starts[own], starts[own + 1]):
                p = points[vertex]
                if ((p <= box.min(axis=0)) | (p >= box.max(axis=0))).any():
                    continue
                nearest = span[np.linalg.norm(centres[span] - p, axis=1).argmin()]
                across, over, along = frames[nearest] @ (p - centres[nearest])
                expected[vertex] |= across**2 + over**2 < 1 and abs(along) < 1
    np.testing.assert_array_equal(
        interior_points(points, starts, centres, frames, ring_starts, ignored), expected
    )
    assert expected.any()
