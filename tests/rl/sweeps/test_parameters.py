"""Parameters of a sweep file: what they are drawn from, what a grid lists, and what is refused."""

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from data.typed_recipe import RecipeError
from rl.sweeps.parameters import draw, grid_values, nested, read_parameters

RANGE = {"min": 0.5, "max": 4.0}


def parameter(**own: object):
    # A second one, because constants alone are refused.
    found = read_parameters({"a.b": own, "other": {"values": [1, 2]}})
    return found[0]


def many(one, count: int = 1000) -> list:
    generator = np.random.default_rng(0)
    return [draw(one, generator) for _ in range(count)]


@pytest.mark.parametrize(
    ("own", "cumulative"),
    [
        (RANGE, stats.uniform(0.5, 3.5).cdf),
        ({**RANGE, "distribution": "uniform"}, stats.uniform(0.5, 3.5).cdf),
        # log X is uniform from 0.5 to 4.
        ({**RANGE, "distribution": "log_uniform"}, stats.loguniform(math.exp(0.5), math.exp(4)).cdf),
        # log 1/X is: X is between exp(-4) and exp(-0.5).
        ({**RANGE, "distribution": "inv_log_uniform"}, stats.loguniform(math.exp(-4), math.exp(-0.5)).cdf),
        ({**RANGE, "distribution": "log_uniform_values"}, stats.loguniform(0.5, 4).cdf),
        ({**RANGE, "distribution": "inv_log_uniform_values"}, stats.loguniform(0.5, 4).cdf),
        ({"distribution": "normal"}, stats.norm.cdf),
        ({"distribution": "normal", "mu": 3, "sigma": 0.5}, stats.norm(3, 0.5).cdf),
        ({"distribution": "log_normal", "mu": 1, "sigma": 0.5}, stats.lognorm(0.5, scale=math.e).cdf),
        ({"distribution": "beta", "a": 2, "b": 5}, stats.beta(2, 5).cdf),
    ],
)
def test_continuous_distributions(own, cumulative):
    values = many(parameter(**own))
    assert all(type(value) is float for value in values)
    assert stats.kstest(values, cumulative).pvalue > 0.01


@pytest.mark.parametrize(
    ("own", "shares"),
    [
        ({"value": 7}, {7: 1}),
        ({"values": [1, "b", None]}, {1: 1 / 3, "b": 1 / 3, None: 1 / 3}),
        ({"values": [1, 2, 3], "probabilities": [0.5, 0.5, 0]}, {1: 0.5, 2: 0.5}),
        ({"min": 1, "max": 4}, {1: 0.25, 2: 0.25, 3: 0.25, 4: 0.25}),
        # Halves of the steps at both ends.
        ({"min": 0, "max": 4, "distribution": "q_uniform", "q": 2}, {0: 0.25, 2: 0.5, 4: 0.25}),
        ({"min": 0.0, "max": 0.2, "distribution": "q_uniform", "q": 0.1}, {0.0: 0.25, 0.1: 0.5, 0.2: 0.25}),
        # P(|X| < 5) of a normal with sigma 10 is 0.383, and so on by tens.
        (
            {"distribution": "q_normal", "sigma": 10, "q": 10},
            {0: 0.383, 10: 0.242, -10: 0.242, 20: 0.061, -20: 0.061},
        ),
    ],
)
def test_discrete_distributions(own, shares):
    values = many(parameter(**own), 4000)
    for value, share in shares.items():
        assert values.count(value) / 4000 == pytest.approx(share, abs=0.03)
    if len(shares) < 5:
        assert set(values) == set(shares)
    if isinstance(own.get("q"), int):
        assert all(type(value) is int for value in values)


@pytest.mark.parametrize("kind", ["q_log_uniform_values", "q_log_uniform", "q_log_normal", "q_beta"])
def test_steps_of_the_other_distributions(kind):
    own = {"distribution": kind, "q": 0.25} | ({} if kind in ("q_log_normal", "q_beta") else RANGE)
    values = many(parameter(**own), 200)
    assert all(value * 4 == round(value * 4) for value in values)
    assert len(set(values)) > 2


@given(st.floats(1e-8, 1e3), st.floats(1.01, 1e6), st.sampled_from(["", "inv_"]))
@settings(max_examples=50)
def test_log_uniform_values_stay_in_their_range(low, factor, form):
    one = parameter(min=low, max=low * factor, distribution=f"{form}log_uniform_values")
    assert all(low <= value <= low * factor for value in many(one, 5))


@pytest.mark.parametrize(
    ("own", "values"),
    [
        ({"value": "x"}, ["x"]),
        ({"values": [3, 1, [2]]}, [3, 1, [2]]),
        ({"min": 2, "max": 4}, [2, 3, 4]),
        ({"min": 0, "max": 4, "distribution": "q_uniform"}, [0, 1, 2, 3]),
        ({"min": 0, "max": 1, "distribution": "q_uniform", "q": 0.3}, [0, 0.3, 0.6, 0.9]),
        ({"min": 0.0, "max": 0.3, "distribution": "q_uniform", "q": 0.1}, [0.0, 0.1, 0.2]),
    ],
)
def test_values_of_a_grid(own, values):
    assert list(grid_values(parameter(**own))) == values


def test_nested_parameters():
    found = read_parameters(
        {"train": {"parameters": {"beta": {"values": [0, 1]}, "seed": {"value": 3}}}, "x.y": {"value": 1}}
    )
    assert [one.key for one in found] == ["train.beta", "train.seed", "x.y"]
    point = {one.path: place for place, one in enumerate(found)}
    assert nested(point) == {"train": {"beta": 0, "seed": 1}, "x.y": 2}


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (3, "'parameters.a.b' must be a section such as {values: [1, 2]}, not 3"),
        ({}, "'parameters.a.b' needs 'value', 'values', 'min' and 'max', or 'distribution'"),
        ({"min": 1}, "needs 'value', 'values', 'min' and 'max'"),
        ({"values": []}, "'parameters.a.b.values' must be a list with at least one value"),
        ({"value": 1, "values": [1]}, "'parameters.a.b.values' does not belong to constant; remove it"),
        ({"min": 0, "max": 1.0}, "has an integer and a number with a point as 'min' and 'max'"),
        ({"min": "1e-5", "max": 1.0}, "min' must be a number, not '1e-5'"),
        (
            {"min": "1e-5", "max": 1.0, "distribution": "log_uniform_values"},
            "'parameters.a.b.min' must be a number, not '1e-5'; YAML reads 1e-5 as text: write 1.0e-5",
        ),
        ({"min": 2, "max": 2}, "'parameters.a.b.min' 2 must be below 'max' 2"),
        ({**RANGE, "distribution": "int_uniform"}, "min' must be an integer for int_uniform, not 0.5"),
        ({"min": 0, "max": 1, "distribution": "log_uniform_values"}, "min' must be above 0"),
        ({**RANGE, "distribution": "flat"}, "distribution' must be one of constant, categorical"),
        ({"distribution": "q_normal", "q": 0}, "q' must be above 0 for q_normal, not 0"),
        ({"distribution": "normal", "sigma": -1}, "sigma' must not be negative, not -1"),
        ({"distribution": "uniform", "min": 1}, "is uniform and needs 'max'; add it"),
        ({"values": [1, 2], "probabilities": [0.5, 0.6]}, "must be 2 numbers with the sum 1, not"),
        ({"values": [1, 2], "probabilities": [1]}, "must be 2 numbers with the sum 1"),
    ],
)
def test_refusals(own, message):
    with pytest.raises(RecipeError, match=re.escape(message)):
        parameter(**own) if isinstance(own, dict) else read_parameters({"a.b": own})


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "'parameters' is empty"),
        ({"a": {"parameters": {}}}, "'parameters.a' is empty"),
        ({"a b": {"value": 1}}, "'parameters.a b' is no key of a recipe"),
        ({"a": {"value": 1}}, "'parameters' has constants only"),
        (
            {"a.b": {"values": [1, 2]}, "a": {"parameters": {"b": {"value": 1}}}},
            "'parameters' has 'a.b' twice, nested and dotted",
        ),
    ],
)
def test_refused_sections(parameters, message):
    with pytest.raises(RecipeError, match=re.escape(message)):
        read_parameters(parameters)


@pytest.mark.parametrize(
    "own", [RANGE, {"distribution": "normal"}, {"values": [1, 2], "probabilities": [0.5, 0.5]}]
)
def test_a_grid_needs_values(own):
    with pytest.raises(RecipeError, match=r"'parameters\.a\.b' is \w+, which has no grid"):
        grid_values(parameter(**own))
