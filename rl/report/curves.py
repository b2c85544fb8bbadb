"""The training curves of the page: one chart per metric, with bands and held-out evaluations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl.report.read_run import RunFiles

MOST_POINTS = 240
_SMOOTHING = 15  # a curve is the running mean over this part of its points

_STD, _RANGE, _NEAR = "std", "range", "near"
_BANDS = {
    _STD: "band: ± standard deviation over a step's rollouts",
    _RANGE: "band: from the shortest to the longest",
    _NEAR: "band: lowest and highest of neighbouring steps",
}


@dataclass(frozen=True)
class _Metric:
    """A metric to draw: `low` and `high` are its metrics for the band, `held_out` the evaluation's column."""

    title: str
    name: str
    band: str = _NEAR
    spread: str = ""
    low: str = ""
    high: str = ""
    held_out: str = ""


_OPTIMISATION = (
    _Metric("KL to the starting policy", "kl"),
    _Metric("entropy", "entropy"),
    _Metric("loss", "loss"),
    _Metric("gradient norm", "grad_norm"),
    _Metric("learning rate", "learning_rate"),
    _Metric("clipped ratios", "clip_ratio/region_mean"),
    _Metric("groups whose rewards are all equal", "frac_reward_zero_std"),
    _Metric("groups with equal skeleton rewards", "credit/skeleton_zero_std"),
    _Metric("groups with equal skin rewards", "credit/skin_zero_std"),
    _Metric("KL between sampler and trainer", "sampling/kl"),
)
_LENGTHS = (
    _Metric(
        "tokens per rollout",
        "completions/mean_length",
        _RANGE,
        low="completions/min_length",
        high="completions/max_length",
    ),
    _Metric("rollouts cut off by the token limit", "completions/clipped_ratio"),
)
_REWARD = re.compile(r"rewards/(.+)/mean")
_TIMES = ("rollout", "wait_for_rewards", "train", "decode", "score")


def curve_groups(runs: Sequence[RunFiles]) -> list[dict[str, Any]]:
    """Titled groups of charts; a chart has a series per run that logged its metric."""
    known = list(dict.fromkeys(key for run in runs for row in run.steps for key in row))
    rewards = [found[1] for key in known if (found := _REWARD.fullmatch(key))]
    groups = {
        "Rewards": [
            _Metric("total reward", "reward", _STD, spread="reward_std", held_out="total"),
            *(
                _Metric(name, f"rewards/{name}/mean", _STD, spread=f"rewards/{name}/std", held_out=name)
                for name in rewards
            ),
        ],
        "Optimisation": list(_OPTIMISATION),
        "Rollouts": [
            _Metric("valid rigs", "rig/valid", held_out="valid"),
            _Metric("joints per rig", "rig/joints", held_out="joints"),
            *_LENGTHS,
            *(
                _Metric(_words(key), key)
                for key in known
                if key.startswith("rig/") and key not in ("rig/valid", "rig/joints")
            ),
        ],
        "Time": [
            *(_Metric(f"{_words(f'seconds/{name}')}, seconds", f"seconds/{name}") for name in _TIMES),
            _Metric("tokens per second", "tokens_per_second"),
        ],
    }
    titled = [
        {"title": title, "charts": [chart for metric in metrics if (chart := _chart(metric, runs))]}
        for title, metrics in groups.items()
    ]
    return [group for group in titled if group["charts"]]


def _words(key: str) -> str:
    return key.partition("/")[2].replace("_", " ")


def _chart(metric: _Metric, runs: Sequence[RunFiles]) -> dict[str, Any] | None:
    series = []
    for place, run in enumerate(runs):
        curve = _curve(metric, run.steps)
        points = _held_out(metric.held_out, run) if metric.held_out else []
        if curve is not None or points:
            series.append({"run": place, **(asdict(curve) if curve else {}), "heldOut": points})
    if not any("steps" in own for own in series):
        return None
    return {"title": metric.title, "metric": metric.name, "note": _BANDS[metric.band], "series": series}


@dataclass(frozen=True)
class Curve:
    """Points of a curve: `values` by step, their running mean `smooth`, and a band around that."""

    steps: list[float]
    values: list[float]
    smooth: list[float]
    low: list[float]
    high: list[float]


def _curve(metric: _Metric, rows: Sequence[dict[str, float | None]]) -> Curve | None:
    names = [name for name in (metric.name, metric.spread, metric.low, metric.high) if name]
    kept = [row for row in rows if all(row.get(name) is not None for name in names)]
    if not kept:
        return None
    steps = _column(kept, "step")
    values = _column(kept, metric.name)
    if metric.band == _STD:
        spread = _column(kept, metric.spread)
        return curve(steps, values, values - spread, values + spread)
    if metric.band == _RANGE:
        return curve(steps, values, _column(kept, metric.low), _column(kept, metric.high))
    return curve(steps, values)


def _column(rows: Sequence[dict[str, float | None]], name: str) -> NDArray[np.float64]:
    return np.array([row[name] for row in rows], dtype=np.float64)


def curve(
    steps: NDArray[np.float64],
    values: NDArray[np.float64],
    low: NDArray[np.float64] | None = None,
    high: NDArray[np.float64] | None = None,
) -> Curve:
    """At most 240 points of a metric (n,): means of neighbouring steps if there are more.

    The band is the running mean of `low` and `high` (n,); without them it goes from the lowest to the highest
    value that a point of the running mean covers.
    """
    size = -(-len(steps) // MOST_POINTS)
    buckets = [slice(start, start + size) for start in range(0, len(steps), size)]
    middle = np.array([steps[part].mean() for part in buckets])
    means = np.array([values[part].mean() for part in buckets])
    window = max(1, len(means) // _SMOOTHING)
    window += 1 - window % 2

    def running(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.array([numbers[part].mean() for part in _windows(len(numbers), window)])

    if low is None or high is None:
        lowest = np.array([values[part].min() for part in buckets])
        highest = np.array([values[part].max() for part in buckets])
        below = np.array([lowest[part].min() for part in _windows(len(means), window)])
        above = np.array([highest[part].max() for part in _windows(len(means), window)])
    else:
        below = running(np.array([low[part].mean() for part in buckets]))
        above = running(np.array([high[part].mean() for part in buckets]))
    return Curve(*(_short(numbers) for numbers in (middle, means, running(means), below, above)))


def _windows(count: int, window: int) -> list[slice]:
    """For each place the places around it, fewer at the ends, the same number on both sides."""
    sides = [min(window // 2, place, count - 1 - place) for place in range(count)]
    return [slice(place - side, place + side + 1) for place, side in enumerate(sides)]


def _short(numbers: NDArray[np.float64]) -> list[float]:
    return [float(f"{number:.5g}") for number in numbers]


def _held_out(column: str, run: RunFiles) -> list[dict[str, float]]:
    """Evaluations of a column by step, each with its standard error.

    Those during training, first and last step included; without any, those before and after, which may have
    other meshes and numbers of rigs, except for totals that are not weighted like the curve's.
    """
    points: dict[int, dict[str, float]] = {}

    def add(step: int, mean: float | None, error: float | None) -> None:
        if mean is not None:
            points[step] = {"step": step, "mean": mean, "error": error or 0.0}

    for row in run.evaluations:
        add(int(row["step"] or 0), row.get(f"eval/{column}"), row.get(f"eval/se/{column}"))
    if not run.evaluations and (column != "total" or run.weighs_alike):
        for step, whole in ((0, run.before), (run.last_step, run.after)):
            if whole is not None:
                add(step, whole.mean.get(column), whole.standard_error.get(column))
    return [points[step] for step in sorted(points)]
