"""`python -m rl.benchmark`: times a GRPO step's parts against plain implementations of the same work.

Sizes: `small` (two CPU cores, under five minutes), `released` and `released-24` (one GPU, random weights).
Prints a table; the last line is JSON. docs/performance.md explains the parts and records results.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from rl.benchmarks.baseline import read_baseline, shortfalls
from rl.benchmarks.limits import machine_peaks
from rl.benchmarks.measure import Report, measure
from rl.benchmarks.sizes import SIZES


def print_table(report: Report) -> None:
    """Print parts, totals and shares of the machine's limits."""
    found = report.as_json()
    print(f"{report.size} on {report.device}, torch {found['torch']}, {found['threads']} threads")
    print(f"{'part':<12} {'ours s':>9} {'plain s':>9} {'ratio':>7}")
    for part in report.parts:
        print(f"{part.name:<12} {part.ours:>9.3f} {part.plain:>9.3f} {part.ratio:>6.1f}x")
    print(
        f"{'step':<12} {found['step_seconds']:>9.3f} {found['plain_step_seconds']:>9.3f} "
        f"{found['step_ratio']:>6.1f}x"
    )
    print(
        f"rollout: {found['tokens_per_second']:,.0f} tokens/s "
        f"(plain {found['plain_tokens_per_second']:,.0f}), "
        f"{found['milliseconds_per_token']:.2f} ms a token of all rows, "
        f"{found['rollout_share_of_limit']:.0%} of the limit"
    )
    shares = ", ".join(f"{part} {found[f'{part}_mfu']:.0%}" for part in ("update", "reference", "decoder"))
    print(f"share of peak FLOP/s (MFU): {shares}; peak memory {report.memory_gib:.1f} GiB")
    rates = f"{found['peak_flops'] / 1e12:.2f} TFLOP/s, {found['peak_bandwidth'] / 1e9:.0f} GB/s"
    print(f"peaks: {rates} ({found['peaks']})")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; exit status 1 if a ratio falls below `--check`, 2 for a size that cannot run."""
    parser = argparse.ArgumentParser(prog="python -m rl.benchmark", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--size", choices=SIZES, default="small", help="default: small")
    parser.add_argument("--repeats", type=int, default=1, help="rounds; medians are reported (default: 1)")
    parser.add_argument("--json", type=Path, help="also write the JSON to this file")
    parser.add_argument("--check", type=Path, metavar="BASELINE", help="compare ratios with this file")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, not {options.repeats}")
    on_gpu = options.size.startswith("released")
    if on_gpu and not torch.cuda.is_available():
        parser.error(f"--size {options.size} needs a CUDA GPU, and this machine has none; use --size small")
    try:
        baseline = read_baseline(options.check, options.size) if options.check else None
    except (OSError, ValueError) as error:
        parser.error(f"--check: {error}")
    device = torch.device("cuda" if on_gpu else "cpu")
    try:
        peaks = machine_peaks(device)
    except ValueError as error:
        parser.error(str(error))
    report = measure(options.size, options.repeats, device, peaks)
    print_table(report)
    text = json.dumps(report.as_json())
    if options.json:
        options.json.write_text(text + "\n")
    problems = shortfalls(report.as_json(), baseline) if baseline is not None else []
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    print(text)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
