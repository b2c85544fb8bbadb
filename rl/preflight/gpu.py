"""Checks the GPU: its presence, its dtypes, and its free memory against what the recipe needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from policy.tokenrig.packed_attention import unsupported
from rl.log_prob_engine import compute_dtype
from rl.preflight.finding import Finding, in_bytes, ok, problem, warning
from rl.preflight.memory_need import MemoryNeed
from rl.recipe import Recipe

# Share of a free GPU's memory that an estimate may exceed it by before a run counts as hopeless.
_DOUBT = 0.25


@dataclass(frozen=True)
class Device:
    """What a training process runs on; the fields behind `kind` are those of a GPU."""

    kind: str
    name: str = ""
    count: int = 0
    free: int = 0
    memory: int = 0
    bf16: bool = True


def find_device(cpu: bool) -> Device:
    """This machine's first GPU, or the CPU if it has none or the launcher keeps processes off it."""
    if cpu or not torch.cuda.is_available():
        return Device("cpu")
    free, memory = torch.cuda.mem_get_info(0)
    return Device(
        "cuda",
        torch.cuda.get_device_name(0),
        torch.cuda.device_count(),
        free,
        memory,
        torch.cuda.is_bf16_supported(including_emulation=False),
    )


def device_findings(
    recipe: Recipe, device: Device, local_processes: int, head_dim: int | None
) -> list[Finding]:
    """The GPU's presence, one GPU per process, and dtypes that the device computes in."""
    train = recipe.train
    precision = "bf16" if train.get("bf16") else "fp16" if train.get("fp16") else "no"
    decoder = recipe.workers.decoder_device
    if device.kind == "cpu":
        local = recipe.workers.backend == "inline" or recipe.ray.address is None
        if local and decoder.startswith("cuda"):
            return [
                problem(
                    "GPU",
                    f"none found, but 'workers.decoder_device' is '{decoder}'; use a GPU machine, or set "
                    "workers.decoder_device=cpu",
                )
            ]
        if precision == "fp16":
            return [problem("dtype", "'train.fp16' needs a GPU, and none was found; remove it")]
        if precision == "bf16":
            return [
                warning(
                    "GPU",
                    "none found: 'train.bf16' computes in bfloat16 on the CPU, which most CPUs emulate; set "
                    "train.bf16=false",
                )
            ]
        return [ok("GPU", "none, and this recipe needs none: it trains in float32 on the CPU")]
    findings = [ok("GPU", f"{device.count} x {device.name}, {in_bytes(device.free)} free on the first")]
    if local_processes > device.count:
        findings = [
            problem(
                "GPU",
                f"{device.count} found for {local_processes} processes of this machine; launch at most "
                f"{device.count}",
            )
        ]
    dtype = compute_dtype(precision, torch.float32)
    name = str(dtype).removeprefix("torch.")
    reason = None if head_dim is None else unsupported(torch.device("cuda"), dtype, head_dim)
    if precision == "bf16" and not device.bf16:
        findings.append(
            problem("dtype", f"the {device.name} has no bfloat16; set train.bf16=false train.fp16=true")
        )
    elif reason is not None and recipe.log_probs.engine == "fast":
        findings.append(problem("dtype", f"'log_probs.engine' is fast, but {reason}"))
    elif reason is not None and recipe.log_probs.engine == "auto":
        findings.append(
            warning("dtype", f"{name}: log-probabilities take the plain pass, which is slower: {reason}")
        )
    else:
        findings.append(ok("dtype", name))
    return findings


def memory_finding(need: MemoryNeed, device: Device) -> Finding:
    """The estimated need of one process against its GPU's free memory; without a GPU, the need alone."""
    parts = sorted({**need.fixed, **need.peak}.items(), key=lambda part: -part[1])
    shown = ", ".join(f"{name} {in_bytes(size)}" for name, size in parts)
    if device.kind == "cpu":
        return ok(
            "GPU memory", f"about {in_bytes(need.total)} per process, with no GPU here (estimate: {shown})"
        )
    text = f"about {in_bytes(need.total)} per process of {in_bytes(device.free)} free (estimate: {shown})"
    fixed = sum(need.fixed.values())
    if fixed > device.free:
        return problem(
            "GPU memory",
            f"{text}: what exists through the whole run, {in_bytes(fixed)}, does not fit; free the GPU, set "
            "policy.lora={}, or shard the state over more GPUs (recipes/accelerate/)",
        )
    fix = (
        "lower rollout.batch_size for keys and values, and set train.gradient_checkpointing=true or lower "
        "train.per_device_train_batch_size for activations"
    )
    if need.total > device.free * (1 + _DOUBT):
        return problem("GPU memory", f"{text}; {fix}")
    if need.total > device.free:
        return warning("GPU memory", f"{text}: it may run out; {fix}")
    return ok("GPU memory", text)


def host_memory_finding(needed: int, available: int) -> Finding:
    """The estimated need of all processes against the machine's available memory."""
    text = f"about {in_bytes(needed)} for all processes of {in_bytes(available)} available (estimate)"
    if needed > available * (1 + _DOUBT):
        return problem("memory", f"{text}; free memory, or lower workers.count and the batch")
    if needed > available:
        return warning("memory", f"{text}: it may run out; lower workers.count or the batch")
    return ok("memory", text)
