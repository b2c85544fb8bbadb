"""`python -m rl.benchmarks.sweep`: step time by group size, tokens, meshes and scoring points, as a plot.

Measures the product's side of `rl.benchmark` on a CPU, at the shipped pair's sizes around 2 meshes of 8
rollouts with 25 joints and 512 scoring points, changing one number at a time. Writes a JSON file and an SVG.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from rl.benchmarks.sizes import SIZES, Size
from rl.benchmarks.step_parts import Parts
from rl.benchmarks.workload import make_workload

A = TypeVar("A")

PARTS = ("rollout", "reference", "update", "decode", "score")
AXES: dict[str, tuple[str, tuple[int, ...]]] = {
    "group": ("rollouts per mesh", (8, 16, 32, 64)),
    "joints": ("tokens per rollout", (12, 25, 50)),
    "meshes": ("meshes per step", (1, 2, 4, 8)),
    "points": ("scoring points", (256, 512, 1024)),
}


def changed(size: Size, axis: str, value: int) -> Size:
    """`size` with one number changed; joints change the tokens, 7 J + 2."""
    if axis == "joints":
        return replace(size, joints=(value, value))
    return replace(size, **{axis: value})  # type: ignore[arg-type]


def time_step(size: Size, rounds: int = 1) -> dict[str, float]:
    """Least seconds of each part of the product's step over `rounds`, after one that warms up.

    The least, because another program can only make a part slower.
    """
    parts = Parts(make_workload(size, torch.device("cpu")))
    seconds: dict[str, list[float]] = {name: [] for name in PARTS}

    def timed(name: str, work: Callable[[], A]) -> A:
        start = time.perf_counter()
        result = work()
        seconds[name].append(time.perf_counter() - start)
        return result

    for _ in range(rounds + 1):
        completions = timed("rollout", parts.rollout)
        timed("reference", partial(parts.reference, completions, packed=True))
        timed("update", partial(parts.update, completions, packed=True))
        parts.optimizer.zero_grad()
        codes = [codes for *_, codes in parts.read(completions)]
        weights = timed("decode", partial(parts.decode, codes))
        timed("score", partial(parts.score, parts.rigs(completions, weights)))
    return {name: min(times[1:]) for name, times in seconds.items()}


def sweep(rounds: int) -> dict[str, list[dict[str, float]]]:
    """For each axis one entry per value: `value`, `x` (tokens for joints) and the parts' seconds."""
    size = SIZES["shipped"]
    found: dict[str, list[dict[str, float]]] = {}
    for axis, (_, values) in AXES.items():
        for value in values:
            own = changed(size, axis, value)
            seconds = time_step(own, rounds)
            print(f"{axis} {value}: {sum(seconds.values()):.2f} s", file=sys.stderr)
            x = own.most_tokens if axis == "joints" else value
            found.setdefault(axis, []).append({"value": value, "x": x, **seconds})
    return found


def draw(found: dict[str, list[dict[str, float]]], file: Path) -> None:
    """One panel per axis, the parts stacked."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(AXES), figsize=(12, 3), sharey=True, layout="constrained")
    for panel, (axis, (label, _)) in zip(panels, AXES.items(), strict=True):
        x = [row["x"] for row in found[axis]]
        panel.stackplot(x, *([row[part] for row in found[axis]] for part in PARTS), labels=PARTS)
        panel.set_xlabel(label)
        panel.set_xticks(x)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("seconds")
    panels[0].legend(reverse=True, frameon=False, loc="upper left")
    figure.savefig(file, metadata={"Date": None})


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, or with `--draw-only` plot the measurements of an earlier run."""
    parser = argparse.ArgumentParser(prog="python -m rl.benchmarks.sweep", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", type=Path, default=Path("docs/step_time.json"), help="measurements")
    parser.add_argument("--svg", type=Path, default=Path("docs/images/step_time.svg"), help="plot")
    parser.add_argument("--rounds", type=int, default=2, help="rounds after the warm-up; the least counts")
    parser.add_argument("--draw-only", action="store_true", help="plot the JSON file as it is")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, not {options.rounds}")
    if not options.draw_only:
        found = {
            "date": datetime.now(tz=UTC).date().isoformat(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "rounds": options.rounds,
            "axes": sweep(options.rounds),
        }
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    draw(json.loads(options.json.read_text())["axes"], options.svg)
    print(f"{options.json}, {options.svg}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
