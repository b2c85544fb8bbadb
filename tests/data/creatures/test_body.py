"""Helpers of the creature builder: joints per length and curved spines."""

import numpy as np
import pytest

from data.creatures.body import curved_spine, joints_for_length


@pytest.mark.parametrize(
    ("length", "spacing", "count"),
    [(0.5, 0.25, 2), (0.6, 0.25, 2), (0.65, 0.25, 3), (0.01, 0.25, 1), (9.0, 0.25, 6)],
)
def test_a_chain_has_a_joint_for_every_spacing(length: float, spacing: float, count: int) -> None:
    # 0.6 / 0.25 = 2.4 and 0.65 / 0.25 = 2.6; never fewer than 1 nor more than 6 here.
    assert joints_for_length(length, spacing, 1, 6) == count


def test_a_curved_spine_is_evenly_spaced() -> None:
    line = curved_spine(np.zeros(3), [0, 0, -2.0], 1.2, 4, [0, 0.8, 0])
    np.testing.assert_allclose(np.linalg.norm(np.diff(line, axis=0), axis=1), 0.3)
    np.testing.assert_allclose(line[1], [0, 0, -0.3])
    assert (np.diff(line[:, 1]) >= 0).all()
    assert line[-1, 1] > 0.1
