"""Growth of each process of a long run after its warm-up, by a line fitted to the samples."""

import json
from pathlib import Path
from typing import Any

import numpy as np

# Of a process's anonymous memory, per 500 steps after the warm-up. Ray's helpers are small: share and amount.
GROWTH_PERCENT, GROWTH_MB = 2.0, 5.0
# Processes of this project, by role; the others are Ray's.
OURS = ("trainer", "decoder", "scorer", "scorer 2", "supervisor", "registry")


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of `watched_training.py`."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def growth(samples: list[dict[str, Any]], warm_up: int, per_steps: int) -> dict[str, dict[str, float]]:
    """How each process present in all samples after step `warm_up` grows in `per_steps` steps.

    Returns:
        By role: `mean_mb` of its anonymous memory; `growth_mb`, `growth_percent` of a robust line (the median
        of all slopes between two samples, so that a page cache or a checkpoint in the making does not count);
        `fds` and `threads`, smallest and largest; `first_mb`, at the first sample of all.
    """
    kept = [sample for sample in samples if sample["step"] >= warm_up]
    steps = np.array([sample["step"] for sample in kept], dtype=float)
    roles = set.intersection(*(set(sample["processes"]) for sample in kept))
    found = {}
    for role in sorted(roles):
        used = np.array([sample["processes"][role]["anon"] for sample in kept]) / 1e6
        first, second = np.triu_indices(len(steps), 1)
        slope = float(np.median((used[second] - used[first]) / (steps[second] - steps[first])))
        found[role] = {
            "first_mb": round(samples[0]["processes"].get(role, {}).get("anon", 0) / 1e6, 1),
            "mean_mb": round(float(used.mean()), 1),
            "growth_mb": round(slope * per_steps, 2),
            "growth_percent": round(100 * slope * per_steps / float(used.mean()), 2),
        }
        for key in ("fds", "threads"):
            values = [sample["processes"][role][key] for sample in kept]
            found[role] |= {f"{key}_min": min(values), f"{key}_max": max(values)}
    return found


def check(found: dict[str, dict[str, float]], store: list[int]) -> None:
    """Raise AssertionError with the processes that grow."""
    assert {"trainer", "decoder", "scorer", "scorer 2"} <= set(found)
    growing = {
        role: use
        for role, use in found.items()
        if use["growth_percent"] > GROWTH_PERCENT and (role in OURS or use["growth_mb"] > GROWTH_MB)
    }
    assert not growing, growing
    leaking = {r: use for r, use in found.items() if r in OURS and use["fds_min"] != use["fds_max"]}
    assert not leaking, leaking
    # Between steps, only meshes are in the store.
    assert max(store) == min(store), (min(store), max(store))
