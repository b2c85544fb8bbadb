"""Which points a sweep tries: all of a grid, random ones, or those that W&B's Bayesian search proposes."""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from data.typed_recipe import RecipeError
from rl.sweeps.parameters import Parameter, draw, grid_values
from rl.sweeps.sweep_file import SweepRecipe
from rl.sweeps.trials import Point, trial_id

# Consecutive draws of a point that is there already, after which a space counts as exhausted.
_DRAWS = 1000
_PROPOSALS = 20


def fixed_points(sweep: SweepRecipe) -> list[Point]:
    """The points of a grid or random sweep, at most `run_cap`, each once."""
    parameters = sweep.read_parameters()
    points = _grid(parameters) if sweep.method == "grid" else _random(parameters, sweep.seed)
    return list(itertools.islice(_distinct(points), sweep.run_cap))


def sample_points(sweep: SweepRecipe, count: int) -> list[Point]:
    """Some random points of a sweep of any method, to check what its trials would be."""
    return list(itertools.islice(_random(sweep.read_parameters(), sweep.seed), count))


def check_bayes() -> None:
    """Raise RecipeError if W&B's package for Bayesian search is not installed."""
    found = find_spec("sweeps")
    if found is None or found.origin is None:  # a mere folder of that name
        raise RecipeError(
            "'method' is bayes, which needs W&B's package sweeps; pip install 'tokenrig-rl[sweeps]', or set "
            "method=random"
        )


def propose(
    sweep: SweepRecipe, finished: Mapping[str, float | None], known: Mapping[str, Point]
) -> Point | None:
    """The next point of a Bayesian sweep: a function of its arguments. None if it proposes known ones only.

    finished: the metric of each trial that has ended, by id, None for a failed one. known: the points of all
    trials, by id; those that have not ended count as running.
    """
    parameters = sweep.read_parameters()
    with warnings.catch_warnings():  # of the package about its own fits and dependencies
        warnings.simplefilter("ignore")
        import sweeps

        runs = [
            sweeps.SweepRun(
                name=name,
                config={one.key: {"value": point[one.path]} for one in parameters},
                state=_state(name, finished),
                summary_metrics={sweep.metric.name: finished[name]} if finished.get(name) is not None else {},
            )
            for name, point in known.items()
        ]
        config = {
            "method": "bayes",
            "metric": {
                "name": sweep.metric.name,
                "goal": sweep.metric.goal,
                "impute": sweep.metric.impute,
            },
            "parameters": {one.key: {**one.settings, "distribution": one.distribution} for one in parameters},
        }
        for attempt in range(_PROPOSALS):
            seed = int(np.random.SeedSequence([sweep.seed, len(known), attempt]).generate_state(1)[0])
            np.random.seed(seed)  # noqa: NPY002 (what the package draws from)
            random.seed(seed)
            proposed = sweeps.next_run(config, runs).config
            point = {one.path: _plain(proposed[one.key]["value"]) for one in parameters}
            if trial_id(point) not in known:
                return point
    return None


def _state(name: str, finished: Mapping[str, float | None]) -> str:
    if name not in finished:
        return "running"
    return "failed" if finished[name] is None else "finished"


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, (np.generic, np.ndarray)) else value


def _grid(parameters: Sequence[Parameter]) -> Iterator[Point]:
    names = [parameter.path for parameter in parameters]
    for values in itertools.product(*map(grid_values, parameters)):
        yield dict(zip(names, values, strict=True))


def _random(parameters: Sequence[Parameter], seed: int) -> Iterator[Point]:
    """Endless; the n-th point depends on the seed and the parameters alone, not on their order."""
    for number in itertools.count():
        generator = np.random.default_rng([seed, number])
        values = {each.path: draw(each, generator) for each in sorted(parameters, key=lambda one: one.key)}
        yield {parameter.path: values[parameter.path] for parameter in parameters}


def _distinct(points: Iterator[Point]) -> Iterator[Point]:
    """Each point once; ends when there have been no new ones for long."""
    seen: set[str] = set()
    repeated = 0
    for point in points:
        name = trial_id(point)
        if name not in seen:
            seen.add(name)
            repeated = 0
            yield point
        elif (repeated := repeated + 1) == _DRAWS:
            return
