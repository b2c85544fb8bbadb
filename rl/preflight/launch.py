"""How a run is launched (processes, threads, sharding), and the batch of a step that follows from it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from data.typed_recipe import RecipeError
from rl.preflight.finding import Finding, counted, ok, warning
from rl.recipe import Recipe

Sharding = Literal["none", "zero1", "zero2", "zero3", "fsdp"]
_TRUE = ("1", "true", "yes")


@dataclass(frozen=True)
class Launch:
    """Processes of the whole run and of this machine, how they share the model's state, and their device.

    threads: of each process, None for torch's default. cpu: the launcher keeps processes off the GPU.
    note: what to know about the launcher; empty if nothing.
    """

    processes: int = 1
    local_processes: int = 1
    sharding: Sharding = "none"
    threads: int | None = None
    cpu: bool = False
    note: str = ""


@dataclass(frozen=True)
class StepBatch:
    """Rollouts and passes of one optimiser step.

    Attributes:
        processes, group: as named.
        rows: rollouts that a process samples at once.
        micro_batch: rollouts of a process in one pass.
        passes: passes with gradient per step and process.
        generations: batches of rollouts per step; below 1 if rollouts serve several steps.
        stale: rollouts may come from an older policy than the one that is updated, so TRL computes their
            log-probabilities when they are sampled, too.
    """

    processes: int
    group: int
    rows: int
    micro_batch: int
    passes: int
    generations: float
    stale: bool = False

    @property
    def groups(self) -> int:
        """Groups that all processes sample at once."""
        return self.rows * self.processes // self.group

    @staticmethod
    def of(train: Mapping[str, Any], processes: int) -> StepBatch:
        """The batch of a checked `train` section."""
        micro, passes = train["per_device_train_batch_size"], train["gradient_accumulation_steps"]
        if train.get("generation_batch_size"):
            rows = train["generation_batch_size"] // processes
        else:
            rows = micro * (train.get("steps_per_generation") or passes)
        # Rollouts are trained on that many times; in passes, how often new ones are sampled.
        every = rows // micro * (train.get("num_iterations") or 1)
        return StepBatch(
            processes=processes,
            group=train["num_generations"],
            rows=rows,
            micro_batch=micro,
            passes=passes,
            generations=passes / max(every, 1),
            stale=passes % max(every, 1) != 0,
        )


def launch_from_environment(environment: Mapping[str, str] = os.environ) -> Launch:
    """What `accelerate launch` and torchrun have set for this process."""
    processes = int(environment.get("WORLD_SIZE", "1"))
    sharding: Sharding = "none"
    if environment.get("ACCELERATE_USE_DEEPSPEED", "").lower() in _TRUE:
        sharding = _zero(environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))
    elif environment.get("ACCELERATE_USE_FSDP", "").lower() in _TRUE:
        sharding = "fsdp"
    threads = environment.get("OMP_NUM_THREADS", "")
    return Launch(
        processes,
        int(environment.get("LOCAL_WORLD_SIZE", str(processes))),
        sharding,
        int(threads) if threads.isdigit() else None,
        environment.get("ACCELERATE_USE_CPU", "").lower() in _TRUE,
    )


def launch_from_file(path: Path, environment: Mapping[str, str] = os.environ) -> Launch:
    """What `python -m rl.launch --config_file` would set.

    Raises RecipeError for a file that is not accelerate's.
    """
    try:
        found = yaml.safe_load(path.read_text())
        processes, machines = int(found["num_processes"]), int(found.get("num_machines") or 1)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        raise RecipeError(
            f"--config_file {path} is not a configuration of accelerate ({error}); see recipes/accelerate/"
        ) from error
    kind = str(found.get("distributed_type"))
    note = ""
    if processes > 1 and kind == "MULTI_CPU":
        note = " with python -m rl.launch (accelerate launch starts 1 without an MPI)"
    local = max(1, processes // machines)
    deepspeed = found.get("deepspeed_config") or {}
    sharding: Sharding = "none"
    if kind == "DEEPSPEED":
        sharding = _zero(deepspeed.get("zero_stage", 2))
    elif kind == "FSDP":
        sharding = "fsdp"
    threads = environment.get("OMP_NUM_THREADS", "")
    return Launch(
        processes,
        local,
        sharding,
        int(threads) if threads.isdigit() else None,
        bool(found.get("use_cpu")) or kind == "MULTI_CPU",
        note,
    )


def launch_finding(launch: Launch) -> Finding:
    """How many processes the launch starts, and what they share."""
    shared = "" if launch.sharding == "none" else f", state sharded with {launch.sharding}"
    return ok("launch", f"{counted(launch.processes, 'process', 'es')}{shared}{launch.note}")


def batch_finding(recipe: Recipe, batch: StepBatch) -> Finding:
    """The rollouts of a step; warns of groups that micro-batches split."""
    rows = batch.rows * batch.processes
    text = (
        f"{counted(batch.processes, 'process', 'es')} x {batch.rows} rollouts = "
        f"{rows // batch.group} meshes of {batch.group} rollouts per batch, in "
        f"{counted(-(-batch.rows // batch.micro_batch), 'micro-batch', 'es')} of {batch.micro_batch}"
    )
    if batch.micro_batch % batch.group and recipe.log_probs.engine != "plain":
        return warning(
            "batch",
            f"{text}: micro-batches split groups, and each runs the prefix of their mesh again; set "
            f"train.per_device_train_batch_size to a multiple of {batch.group}",
        )
    return ok("batch", text)


def _zero(stage: object) -> Sharding:
    stages: dict[str, Sharding] = {"0": "none", "1": "zero1", "2": "zero2", "3": "zero3"}
    return stages.get(str(stage), "zero2")
