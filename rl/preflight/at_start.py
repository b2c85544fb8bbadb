"""The cheap checks at the start of training, which refuse a hopeless run before Ray and the evaluation."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from data.disk_space import free_bytes
from data.typed_recipe import RecipeError
from policy.policy_folder import PolicyError
from rl.preflight.disk import already_written, disk_finding, disk_need
from rl.preflight.finding import Finding, problem
from rl.preflight.gpu import device_findings, find_device, memory_finding
from rl.preflight.launch import Launch, StepBatch, launch_from_environment
from rl.preflight.memory_need import training_memory
from rl.preflight.model_size import ModelSize, model_size
from rl.preflight.ray_start import local_ray
from rl.preflight.threads import thread_finding, usable_cores
from rl.preflight.versions import requirements, version_findings
from rl.recipe import Recipe


def check_start(recipe: Recipe) -> None:
    """Check versions, GPU, memory, disk, Ray's folder and threads on the main process; print warnings.

    Takes about a tenth of a second: nothing is loaded or measured. What is wrong with the policy's files is
    left to loading them.

    Raises RecipeError with the first problem.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    findings = start_findings(recipe, launch_from_environment())
    for finding in findings:
        if finding.level == "problem":
            raise RecipeError(finding.text)
    for finding in findings:
        if finding.level == "warning":
            print(f"warning: {finding.check}: {finding.text}", file=sys.stderr)


def start_findings(recipe: Recipe, launch: Launch) -> list[Finding]:
    """What `check_start` checks; rl.doctor does so too."""
    device = find_device(launch.cpu)
    cuda = device.kind == "cuda"
    try:
        size: ModelSize | None = model_size(recipe.policy)
    except PolicyError:
        size = None
    findings = version_findings(requirements())
    findings += device_findings(
        recipe, device, launch.local_processes, None if size is None else size.head_dim
    )
    cores = usable_cores()
    if recipe.eval.tune_steps:
        findings.append(
            problem(
                "evaluation",
                f"'eval.tune_steps' is {recipe.eval.tune_steps}, but a run evaluates its policies as they "
                "are; set it to 0, and evaluate the trained policy with python -m rl.evaluate",
            )
        )
    findings.append(thread_finding(recipe, launch, cores, cuda, None if size is None else size.language))
    if size is not None:
        batch = StepBatch.of(recipe.train, launch.processes)
        if cuda:
            findings.append(memory_finding(training_memory(recipe, size, batch, launch, cuda), device))
        output = Path(recipe.output_dir)
        need = disk_need(recipe, size)
        findings.append(disk_finding(need, already_written(output), free_bytes(output), output))
    if recipe.workers.backend == "ray" and recipe.ray.address is None:
        findings.append(local_ray(recipe))
    return findings
