"""Which points a sweep tries: grids, random draws, W&B's Bayesian proposals."""

import pytest

from data.typed_recipe import RecipeError, build
from rl.sweeps.search import check_bayes, fixed_points, propose
from rl.sweeps.sweep_file import SweepRecipe
from rl.sweeps.trials import trial_id


def sweep(parameters: dict, **own: object) -> SweepRecipe:
    values = {
        "method": "random",
        "run_cap": 5,
        "metric": {"name": "eval/total", "goal": "maximize"},
        "program": "rl/train_grpo.py",
        "command": [],
    }
    return build(SweepRecipe, {**values, "parameters": parameters, **own})


TWO = {"a": {"values": [1, 2]}, "b": {"min": 3, "max": 5}, "c": {"value": 9}}


def plain(points: list) -> list[tuple]:
    return [tuple(point.values()) for point in points]


def test_a_grid_has_all_combinations():
    found = fixed_points(sweep(TWO, method="grid", run_cap=None))
    assert plain(found) == [(1, 3, 9), (1, 4, 9), (1, 5, 9), (2, 3, 9), (2, 4, 9), (2, 5, 9)]
    assert fixed_points(sweep(TWO, method="grid", run_cap=2)) == found[:2]


def test_a_grid_is_that_of_wandb():
    engine = pytest.importorskip("sweeps")
    parameters = {**TWO, "d": {"distribution": "q_uniform", "min": 0, "max": 1, "q": 0.3}}
    theirs = engine.next_runs({"method": "grid", "parameters": parameters}, [], n=100)
    expected = {tuple(run.config[name]["value"] for name in parameters) for run in theirs if run is not None}
    found = plain(fixed_points(sweep(parameters, method="grid", run_cap=None)))
    assert len(found) == len(expected) == 24
    rounded = {tuple(round(value, 9) for value in values) for values in expected}
    assert set(found) == rounded


def test_random_points_depend_on_the_seed_and_the_parameters_alone():
    parameters = {"a": {"min": 0.0, "max": 1.0}, "b": {"distribution": "normal"}}
    found = fixed_points(sweep(parameters))
    assert len(set(plain(found))) == 5
    assert fixed_points(sweep(dict(reversed(parameters.items())))) == found
    assert fixed_points(sweep(parameters, run_cap=8))[:5] == found
    assert fixed_points(sweep(parameters, seed=1)) != found


def test_random_points_of_a_small_space_are_each_there_once():
    found = plain(fixed_points(sweep(TWO, run_cap=20)))
    assert len(found) == len(set(found)) == 6


def test_the_id_depends_on_the_values_alone():
    one = {("a",): 1, ("b", "c"): 0.5}
    assert trial_id(one) == trial_id({("b", "c"): 0.5, ("a",): 1}) == "4dae33ae"
    assert trial_id(one) != trial_id({("a",): 1, ("b.c",): 0.5})
    assert trial_id(one) != trial_id({("a",): 1.5, ("b", "c"): 0.5})


def test_bayes_is_refused_without_its_package(monkeypatch):
    monkeypatch.setattr("rl.sweeps.search.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="'method' is bayes, which needs W&B's package sweeps; pip install"):
        check_bayes()


@pytest.mark.parametrize("goal", ["maximize", "minimize"])
def test_bayes_comes_near_the_best_value(goal):
    """A parabola over [0, 1] with its best value at 0.3; a failed trial and one that runs do not hurt."""
    pytest.importorskip("sweeps")
    check_bayes()
    metric = {"name": "eval/total" if goal == "maximize" else "eval/unirig_j2j", "goal": goal}
    own = sweep({"a": {"min": 0.0, "max": 1.0}, "b": {"value": 2}}, method="bayes", metric=metric)
    sign = -1 if goal == "maximize" else 1
    finished: dict[str, float | None] = {}
    known = {}
    for number in range(14):
        point = propose(own, finished, known)
        assert point is not None
        assert point == propose(own, finished, known)
        assert point["b",] == 2
        known[trial_id(point)] = point
        if number == 3:
            finished[trial_id(point)] = None
        elif number != 4:
            finished[trial_id(point)] = sign * (point["a",] - 0.3) ** 2
    best = min(known, key=lambda name: abs(finished[name] if finished.get(name) is not None else 9))
    assert known[best]["a",] == pytest.approx(0.3, abs=0.1)


def test_bayes_proposes_every_point_of_a_small_space_once():
    pytest.importorskip("sweeps")
    own = sweep({"a": {"parameters": {"b": {"values": [1, 2, 3]}}}}, method="bayes")
    known: dict = {}
    while (point := propose(own, {name: float(len(name)) for name in known}, known)) is not None:
        known[trial_id(point)] = point
    assert sorted(point["a", "b"] for point in known.values()) == [1, 2, 3]
