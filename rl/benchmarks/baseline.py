"""Compares a benchmark's ratios with a committed baseline; never absolute times."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

RATIOS = ("rollout_ratio", "logprob_ratio", "decoder_ratio", "step_ratio")


def shortfalls(found: Mapping[str, object], baseline: Mapping[str, Mapping[str, float]]) -> list[str]:
    """One sentence for each ratio that fell below its baseline by more than the tolerance.

    found: `Report.as_json`; baseline: by ratio, its `value` and `tolerance`, the share that it may fall.

    Raises ValueError if the baseline has none of the ratios.
    """
    known = [name for name in RATIOS if name in baseline]
    if not known:
        raise ValueError(f"the baseline has none of the ratios {', '.join(RATIOS)}")
    problems = []
    for name in known:
        least = baseline[name]["value"] * (1 - baseline[name]["tolerance"])
        ratio = found[name]
        assert isinstance(ratio, float)
        if not ratio >= least:
            problems.append(
                f"{name} is {ratio:.2f}, below {least:.2f} (baseline {baseline[name]['value']:.2f} less "
                f"{baseline[name]['tolerance']:.0%})"
            )
    return problems


def read_baseline(path: Path, size: str) -> Mapping[str, Mapping[str, float]]:
    """The baseline of one size; raises ValueError if the file has none."""
    sizes = json.loads(path.read_text())
    if size not in sizes:
        raise ValueError(f"{path} has no baseline for size '{size}'; it has {', '.join(sizes)}")
    found: Mapping[str, Mapping[str, float]] = sizes[size]
    return found
