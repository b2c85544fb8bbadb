"""The four largest weights of a vertex and the share of the dropped ones, by hand."""

import tracemalloc

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from data.gltf.influences import dropped_weight, top_influences


def test_top_influences_by_hand() -> None:
    weights = np.array(
        [
            [0.1, 0.2, 0.3, 0.4, 0.0, 0.5],  # the 0.1 falls out: the rest sums to 1.4
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],  # bound to the root
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.2],
            [0.2, 0.2, 0.2, 0.2, 0.2, 0.2],  # ties: the first four
        ],
        dtype=np.float32,
    )
    joints, values = top_influences(weights, 4)
    assert joints.tolist() == [[5, 3, 2, 1], [0, 0, 0, 0], [5, 0, 0, 0], [0, 1, 2, 3]]
    expected = [[5 / 14, 4 / 14, 3 / 14, 2 / 14], [1, 0, 0, 0], [1, 0, 0, 0], [0.25] * 4]
    np.testing.assert_allclose(values, expected, atol=1e-6)
    # Fewer joints than influences.
    joints, values = top_influences(np.array([[0.5], [0.0]], dtype=np.float32), 4)
    assert joints.tolist() == [[0, 0, 0, 0]] * 2
    assert values.tolist() == [[1, 0, 0, 0]] * 2


def test_memory_does_not_grow_with_the_number_of_joints() -> None:
    """A million vertices by a hundred joints are 400 MB already; sorting them took another 1.2 GB."""
    weights = np.random.default_rng(0).random((200_000, 100), dtype=np.float32)
    tracemalloc.start()
    top_influences(weights)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < weights.nbytes


def test_dropped_weight_by_hand() -> None:
    weights = np.array(
        [
            [0.1, 0.2, 0.3, 0.4, 0.0, 0.5],  # 0.1 of 1.5
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.2],
            [0.2, 0.2, 0.2, 0.2, 0.2, 0.2],  # 2 of 6
        ],
        dtype=np.float32,
    )
    np.testing.assert_allclose(dropped_weight(weights), [1 / 15, 0, 0, 1 / 3], atol=1e-6)
    np.testing.assert_array_equal(dropped_weight(weights[:, :4]), np.zeros(4))


@given(arrays(np.float32, (7, 6), elements=st.floats(0, 1, width=32)))
def test_rows_sum_to_one_within_the_tolerance_of_the_validator(weights: np.ndarray) -> None:
    """gltf-validator allows 2e-7 for each weight that is not zero; joints of zero weight must be 0."""
    joints, values = top_influences(weights)
    error = np.abs(values.astype(np.float64).sum(axis=1) - 1)
    assert (error <= 2e-7).all()
    assert (values >= 0).all()
    assert (joints[values == 0] == 0).all()
    for row, used in zip(joints, values > 0, strict=True):
        assert len(set(row[used])) == used.sum(), "no joint twice"
