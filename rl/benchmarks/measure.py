"""Times both sides of a step part by part, alternating, and compares them with the machine's limits."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from rl.benchmarks.limits import decoder_flops, machine_peaks, token_seconds, update_flops
from rl.benchmarks.sizes import SIZES, Size
from rl.benchmarks.step_parts import Parts, synchronised
from rl.benchmarks.workload import make_workload


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
    plain_tokens: int
    longest: int
    memory_gib: float
    limits: dict[str, float | str]

    def part(self, name: str) -> Part:
        """The part of this name."""
        return next(part for part in self.parts if part.name == name)

    def as_json(self) -> dict[str, object]:
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
            "plain_tokens_per_second": self.plain_tokens / self.part("rollout").plain,
            "milliseconds_per_token": self.part("rollout").ours / self.longest * 1e3,
            "memory_gib": self.memory_gib,
            **self.limits,
            "parts": [asdict(part) for part in self.parts],
        }


def measure(name: str, repeats: int, device: torch.device) -> Report:
    """Run both sides `repeats` times and take medians.

    Rollouts of the plain side differ in length; their time is scaled to our number of tokens. The plain
    decoder runs on a share of the bones and is scaled to all. Both sides train on our completions.
    """
    size = SIZES[name]
    _warm_up(device)
    work = make_workload(size, device)
    parts = Parts(work)
    if device.type == "cuda":  # compile and capture: once per run
        parts.update(parts.rollout(), packed=True)
        parts.optimizer.zero_grad()
        torch.cuda.reset_peak_memory_stats(device)
    rounds: dict[str, list[tuple[float, float]]] = {}

    def both(part: str, ours: Callable[[], object], plain: Callable[[], object], scale: float = 1.0) -> None:
        print(f"{part} …", end=" ", flush=True, file=sys.stderr)
        seconds = _timed(ours, device), _timed(plain, device) * scale
        print(f"{seconds[0]:.2f} s, plain {seconds[1]:.2f} s", file=sys.stderr)
        rounds.setdefault(part, []).append(seconds)

    completions, tokens, plain_tokens, memory = torch.empty(0), 0, 0, 0.0
    for _ in range(repeats):
        found: list[Tensor] = []
        other: list[Tensor] = []
        both("rollout", lambda: found.append(parts.rollout()), lambda: other.append(parts.plain_rollout()))
        completions = found[-1]
        tokens, plain_tokens = _count(completions, work.grammar.vocabulary.pad), 0
        plain_tokens = _count(other[-1], work.grammar.vocabulary.pad)
        ours, plain = rounds["rollout"][-1]
        rounds["rollout"][-1] = ours, plain * tokens / plain_tokens
        both(
            "reference",
            lambda: parts.reference(completions, packed=True),
            lambda: parts.reference(completions, packed=False),
        )
        both(
            "update",
            lambda: parts.update(completions, packed=True),
            lambda: parts.update(completions, packed=False),
        )
        both("optimiser", parts.optimise, parts.optimise)
        memory = max(memory, _memory(device))
        codes = [codes for *_, codes in parts.read(completions)]
        bones = sum(map(len, codes))
        weights: list[list[Tensor]] = []
        timed = max(1, round(size.decoder_share * bones))
        both(
            "decode",
            lambda: weights.append(parts.decode(codes)),
            lambda: parts.plain_decode(codes, size.decoder_share),
            scale=bones / timed,
        )
        rigs = parts.rigs(completions, weights[-1])
        both("score", lambda: parts.score(rigs), lambda: parts.plain_score(rigs))
    medians = [
        Part(
            part,
            statistics.median(ours for ours, _ in seconds),
            statistics.median(plain for _, plain in seconds),
        )
        for part, seconds in rounds.items()
    ]
    return Report(
        size=name,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        parts=medians,
        tokens=tokens,
        plain_tokens=plain_tokens,
        longest=completions.shape[1],
        memory_gib=memory,
        limits=_limits(size, medians, tokens, completions.shape[1], device),
    )


def _limits(
    size: Size, parts: list[Part], tokens: int, longest: int, device: torch.device
) -> dict[str, float | str]:
    """Shares of the machine's peaks: 1 is the limit."""
    peaks = machine_peaks(device)
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
    parts = Parts(make_workload(SIZES["tiny"], device))
    completions = parts.rollout()
    parts.plain_rollout()
    for packed in (True, False):
        parts.reference(completions, packed)
        if device.type != "cuda" or not packed:  # float32 has no packed pass on a GPU
            parts.update(completions, packed)
    parts.optimise()
    codes = [codes for *_, codes in parts.read(completions)]
    parts.plain_decode(codes, 1.0)
    rigs = parts.rigs(completions, parts.decode(codes))
    parts.score(rigs)
    parts.plain_score(rigs)


def _timed(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    synchronised(work, device)
    return time.perf_counter() - start


def _count(completions: Tensor, pad: int) -> int:
    return int((completions != pad).sum())


def _memory(device: torch.device) -> float:
    """Peak memory so far, GiB: allocated on the GPU, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
