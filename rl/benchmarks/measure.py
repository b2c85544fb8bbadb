"""Times both sides of a step part by part, alternating, and compares them with the machine's limits."""

from __future__ import annotations

import resource
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from rl.benchmarks.limits import Peaks, decoder_flops, token_seconds, update_flops
from rl.benchmarks.sizes import SIZES, Size
from rl.benchmarks.step_parts import Parts
from rl.benchmarks.workload import make_workload
from rl.timed_work import timed

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Part:
    """Seconds of one part: ours and the plain implementation's, per step."""

    name: str
    ours: float
    plain: float

    @property
    def ratio(self) -> float:
        """How many times as fast ours is."""
        return self.plain / self.ours


@dataclass(frozen=True)
class Report:
    """Results of one size; see `as_json`."""

    size: str
    device: str
    parts: list[Part]
    tokens: int
    longest: int
    memory_gib: float
    limits: dict[str, float | str]

    def part(self, name: str) -> Part:
        """The part of this name."""
        return next(part for part in self.parts if part.name == name)

    def as_json(self) -> dict[str, Any]:
        """Ratios first, then everything else."""
        ours, plain = sum(part.ours for part in self.parts), sum(part.plain for part in self.parts)
        return {
            "size": self.size,
            "device": self.device,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "rollout_ratio": self.part("rollout").ratio,
            "logprob_ratio": self.part("update").ratio,
            "decoder_ratio": self.part("decode").ratio,
            "step_ratio": plain / ours,
            "step_seconds": ours,
            "plain_step_seconds": plain,
            "tokens": self.tokens,
            "tokens_per_second": self.tokens / self.part("rollout").ours,
            "plain_tokens_per_second": self.tokens / self.part("rollout").plain,
            "milliseconds_per_token": self.part("rollout").ours / self.longest * 1e3,
            "memory_gib": self.memory_gib,
            **self.limits,
            "parts": [asdict(part) for part in self.parts],
        }


class _Clock:
    """Seconds of both sides of each part, by part, one pair per round, and our side's peak memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.memory_gib = 0.0
        self.pairs: dict[str, list[tuple[float, float]]] = {}

    def both(self, part: str, ours: Callable[[], A], plain: Callable[[], B]) -> tuple[A, B]:
        """Time both sides, one after the other, and return their results."""
        print(f"{part} …", end=" ", flush=True, file=sys.stderr)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        own, seconds = timed(ours, self.device)
        self.memory_gib = max(self.memory_gib, _memory(self.device))
        other, plain_seconds = timed(plain, self.device)
        print(f"{seconds:.2f} s, plain {plain_seconds:.2f} s", file=sys.stderr)
        self.pairs.setdefault(part, []).append((seconds, plain_seconds))
        return own, other

    def scale_plain(self, part: str, factor: float) -> None:
        """Multiply the plain side's last time, because it did only a share of the work."""
        ours, plain = self.pairs[part][-1]
        self.pairs[part][-1] = ours, plain * factor

    def medians(self) -> list[Part]:
        """The parts in the order of their first measurement."""
        return [
            Part(part, *(statistics.median(side) for side in zip(*seconds, strict=True)))
            for part, seconds in self.pairs.items()
        ]


def measure(name: str, repeats: int, device: torch.device, peaks: Peaks) -> Report:
    """Run both sides `repeats` times and take medians.

    Rollouts of the plain side differ in length; their time is scaled to our number of tokens. The plain
    decoder runs on a share of the bones and is scaled to all. Both sides train on our completions.
    """
    size = SIZES[name]
    _warm_up(device)
    parts = Parts(make_workload(size, device))
    if device.type == "cuda":  # compile and capture: once per run
        parts.update(parts.rollout(), packed=True)
        parts.optimizer.zero_grad()
    clock = _Clock(device)
    rounds = [_round(parts, clock) for _ in range(repeats)]
    completions = rounds[-1]
    tokens, medians = _count(completions, size.vocabulary.pad), clock.medians()
    return Report(
        size=name,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        parts=medians,
        tokens=tokens,
        longest=completions.shape[1],
        memory_gib=clock.memory_gib,
        limits=_limits(size, medians, tokens, completions.shape[1], peaks),
    )


def _round(parts: Parts, clock: _Clock) -> Tensor:
    """One step of both sides; returns our completions."""
    size = parts.work.size
    pad = size.vocabulary.pad
    completions, others = clock.both("rollout", parts.rollout, parts.plain_rollout)
    clock.scale_plain("rollout", _count(completions, pad) / _count(others, pad))
    for part, run in (("reference", parts.reference), ("update", parts.update)):
        clock.both(part, partial(run, completions, packed=True), partial(run, completions, packed=False))
    clock.both("optimiser", parts.optimise, parts.optimise)
    parts.optimizer.zero_grad()
    codes = [codes for *_, codes in parts.read(completions)]
    weights, timed = clock.both(
        "decode", partial(parts.decode, codes), partial(parts.plain_decode, codes, size.decoder_share)
    )
    clock.scale_plain("decode", sum(map(len, codes)) / timed)
    rigs = parts.rigs(completions, weights)
    clock.both("score", partial(parts.score, rigs), partial(parts.plain_score, rigs))
    return completions


def _limits(size: Size, parts: list[Part], tokens: int, longest: int, peaks: Peaks) -> dict[str, float | str]:
    """Shares of the machine's peaks: 1 is the limit."""
    seconds = {part.name: part.ours for part in parts}
    bones = (tokens - 2 * size.rows) // (3 + size.tokens_per_skin)
    return {
        "peak_flops": peaks.flops,
        "peak_bandwidth": peaks.bandwidth,
        "peaks": peaks.source,
        "rollout_share_of_limit": token_seconds(size, peaks) * longest / seconds["rollout"],
        "update_mfu": update_flops(size, tokens) / seconds["update"] / peaks.flops,
        "reference_mfu": update_flops(size, tokens) / 3 / seconds["reference"] / peaks.flops,
        "decoder_mfu": decoder_flops(size, bones) / seconds["decode"] / peaks.flops,
    }


def _warm_up(device: torch.device) -> None:
    """Run everything once at the tiny size: libraries load, numba compiles, threads start."""
    # On a GPU in half precision: the packed pass has no float32 there.
    parts = Parts(make_workload(replace(SIZES["tiny"], half=device.type == "cuda"), device))
    completions = parts.rollout()
    parts.plain_rollout()
    for packed in (True, False):
        parts.reference(completions, packed)
        parts.update(completions, packed)
    parts.optimise()
    codes = [codes for *_, codes in parts.read(completions)]
    parts.plain_decode(codes, 1.0)
    rigs = parts.rigs(completions, parts.decode(codes))
    parts.score(rigs)
    parts.plain_score(rigs)


def _count(completions: Tensor, pad: int) -> int:
    return int((completions != pad).sum())


def _memory(device: torch.device) -> float:
    """Peak memory, GiB: allocated on the GPU since the last reset; on a CPU, resident so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
