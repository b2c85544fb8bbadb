"""Skin coverage and sparsity: values by hand, comparison with the reference, properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import RigRewardError, skin_sparsity
from rewards.references import skin_sparsity_reference

GOOD = [0.6, 0.4, 0.0, 0.0, 0.0, 0.0]
UNINFLUENCED = [0.09, 0.09, 0.09, 0.09, 0.09, 0.09]  # every weight below 0.1, though they sum to 0.54
OVERINFLUENCED = [0.2, 0.2, 0.2, 0.2, 0.2, 0.0]  # five weights above 0.1
FULL = [0.25, 0.25, 0.25, 0.25, 0.05, 0.05]  # four: still allowed

BOTH = pytest.mark.parametrize("sparsity", [skin_sparsity, skin_sparsity_reference])


@BOTH
@pytest.mark.parametrize(
    ("rows", "options", "expected"),
    [
        ([GOOD, FULL], {}, 1.0),
        ([GOOD, UNINFLUENCED], {}, 1 - (1 / 2) / 2),
        ([GOOD, OVERINFLUENCED], {}, 1 - (1 / 2) / 2),
        ([UNINFLUENCED, OVERINFLUENCED], {}, 1 - (1 / 2) / 2 - (1 / 2) / 2),
        ([UNINFLUENCED], {}, 0.5),
        ([OVERINFLUENCED], {}, 0.5),
        # powers: R_z = (1/4)^2 = 1/16, R_m = (1/4)^0.5 = 1/2
        (
            [GOOD, GOOD, UNINFLUENCED, OVERINFLUENCED],
            {"unbound_power": 2, "crowded_power": 0.5},
            1 - 1 / 32 - 1 / 4,
        ),
        # with threshold 0.05 the row has six weights above it: influenced, but by too many bones
        ([UNINFLUENCED], {"threshold": 0.05}, 0.5),
        ([OVERINFLUENCED], {"max_influences": 5}, 1.0),
        ([FULL], {"max_influences": 3}, 0.5),
        # exactly at the threshold is neither below nor above
        ([[0.1, 0, 0, 0, 0, 0]], {}, 1.0),
        ([[0.1] * 6], {}, 1.0),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_by_hand(sparsity, dtype, rows, options, expected):
    assert sparsity(np.array(rows, dtype=dtype), **options) == pytest.approx(expected, abs=1e-12)


def test_weights_are_not_normalised():
    # 0.02 and 0.02: normalised they would be 0.5 each and look influenced.
    assert skin_sparsity(np.array([[0.02, 0.02]])) == 0.5


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 12), st.floats(0.2, 3), st.floats(0.2, 3)
)
def test_fast_is_the_reference(seed, vertices, joints, unbound_power, crowded_power):
    rng = np.random.default_rng(seed)
    weights = np.round(rng.random((vertices, joints)) ** 3, 1).astype(rng.choice([np.float32, np.float64]))
    options = {"unbound_power": unbound_power, "crowded_power": crowded_power}
    value = skin_sparsity(weights, **options)
    assert 0 <= value <= 1
    assert value == pytest.approx(skin_sparsity_reference(weights, **options), abs=1e-12)
    # neither the order of joints nor that of vertices matters
    shuffled = weights[rng.permutation(vertices)][:, rng.permutation(joints)]
    assert skin_sparsity(shuffled, **options) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ([[0.5, np.nan]], "vertex 0 .* not finite"),
        ([[0.5, 0.5], [np.inf, 0.0]], "vertex 1 .* not finite"),
        ([[0.5, -0.01]], "negative"),
        (np.zeros((0, 4)), "shape"),
        (np.zeros((4, 0)), "shape"),
        (np.zeros(4), "shape"),
        ([["a", "b"]], "dtype"),
    ],
)
def test_bad_weights(weights, reason):
    for sparsity in (skin_sparsity, skin_sparsity_reference):
        with pytest.raises(RigRewardError, match=reason):
            sparsity(np.asarray(weights))


def test_bad_options():
    for option in ("unbound_power", "crowded_power"):
        with pytest.raises(ValueError, match="must be positive"):
            skin_sparsity(np.array([GOOD]), **{option: 0.0})
    for threshold in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="between 0 and 1"):
            skin_sparsity(np.array([GOOD]), threshold=threshold)
