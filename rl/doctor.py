"""`python -m rl.doctor RECIPE`: checks everything a run needs, and estimates its memory and step time.

One line per check: ok, warning or problem with its fix. Exit status 0 if the run can start, 2 if not. Writes
nothing. `--config_file` takes the accelerate configuration that the run will be launched with; under
`accelerate launch` it is that of the launch. `--no-measure` skips the measurement of the step time.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from data.typed_recipe import RecipeError
from rl.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from rl.preflight.finding import Finding
    from rl.preflight.launch import Launch


def examine(recipe: Recipe, launch: Launch, measure: bool = True) -> Iterator[Finding]:
    """All checks of a recipe, from the cheapest to the measurement of the step time."""
    import psutil

    from rl.policy_setup import check_training
    from rl.preflight.at_start import start_findings
    from rl.preflight.finding import ok, problem
    from rl.preflight.gpu import find_device, host_memory_finding, memory_finding
    from rl.preflight.launch import StepBatch, batch_finding, launch_finding
    from rl.preflight.memory_need import host_memory, training_memory
    from rl.preflight.mesh_files import check_meshes
    from rl.preflight.model_size import model_size
    from rl.preflight.output_directory import output_finding
    from rl.preflight.policy_files import check_policy, training_arguments
    from rl.preflight.ray_start import external_ray
    from rl.preflight.reporting import reports_to_wandb, wandb_finding
    from rl.preflight.step_time import estimate_step, measure_parts
    from rl.preflight.threads import threads_per_process, usable_cores
    from rl.preflight.versions import cuda_finding_here

    batch = StepBatch.of(recipe.train, launch.processes)
    yield launch_finding(launch)
    yield batch_finding(recipe, batch)
    yield from start_findings(recipe, launch)
    yield from filter(None, [cuda_finding_here()])
    if recipe.ray.address is not None and recipe.workers.backend == "ray":
        yield external_ray(recipe)
    if reports_to_wandb(recipe):
        yield wandb_finding()
    yield output_finding(recipe)
    found, policy = check_policy(recipe)
    yield found
    device = find_device(launch.cpu)
    if policy is not None:
        try:
            check_training(recipe, training_arguments(recipe, batch), policy)
        except RecipeError as error:
            yield problem("recipe", str(error))
            return
    found, meshes = check_meshes(recipe, policy)
    yield found
    if policy is None:
        return
    size = model_size(recipe.policy)
    need = training_memory(recipe, size, batch, launch, device.kind == "cuda")
    if device.kind == "cpu" and recipe.workers.decoder_device.startswith("cuda"):
        yield memory_finding(training_memory(recipe, size, batch, launch, True), device)
    needed = host_memory(recipe, size, need, launch, device.kind == "cuda")
    yield host_memory_finding(needed, psutil.virtual_memory().available)
    if meshes is None or not measure:
        return
    cores = usable_cores()
    threads = threads_per_process(launch, cores)
    samples = [meshes.samples[mesh] for mesh in meshes.train]
    times = measure_parts(recipe, policy, samples, batch, threads)
    estimate = estimate_step(
        recipe, batch, times, cores, threads, launch.local_processes, len(meshes.held_out)
    )
    yield ok("step time", estimate.text(recipe, batch))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the findings; exit status 2 if there is a problem."""
    parser = argparse.ArgumentParser(prog="python -m rl.doctor", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("recipe", help="YAML recipe; see recipes/ for examples")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="override recipe values")
    parser.add_argument("--config_file", type=Path, help="accelerate configuration of the run")
    parser.add_argument("--no-measure", action="store_true", help="skip the measurement of the step time")
    options = parser.parse_intermixed_args(arguments)
    if os.environ.get("RANK", "0") != "0":
        return 0  # the main process of a launch checks for all
    from rl.library_settings import importing, quiet_libraries

    with importing():
        quiet_libraries()
        from rl.preflight.finding import counted, ok, problem
        from rl.preflight.launch import launch_from_environment, launch_from_file

    problems = warnings = 0
    try:
        launch = launch_from_environment()
        if options.config_file is not None:
            launch = launch_from_file(options.config_file)
        with _processes(launch.processes):
            recipe = load_recipe(options.recipe, options.overrides)
        print(ok("recipe", f"{options.recipe}: all keys and values are valid"), flush=True)
        with _alone():
            for finding in examine(recipe, launch, not options.no_measure):
                print(finding, flush=True)
                problems += finding.level == "problem"
                warnings += finding.level == "warning"
    except RecipeError as error:
        print(problem("recipe", str(error)))
        problems += 1
    if problems:
        print(f"this run cannot start: {counted(problems, 'problem')}")
        return 2
    print("this run can start" + (f", with {counted(warnings, 'warning')}" if warnings else ""))
    return 0


@contextmanager
def _processes(count: int) -> Iterator[None]:
    """The number of processes, as a launcher tells it, while the recipe is checked against it."""
    before = os.environ.get("WORLD_SIZE")
    os.environ["WORLD_SIZE"] = str(count)
    try:
        yield
    finally:
        if before is None:
            del os.environ["WORLD_SIZE"]
        else:
            os.environ["WORLD_SIZE"] = before


@contextmanager
def _alone() -> Iterator[None]:
    """Hide the variables of a launcher, so that libraries do not wait for the launch's other processes."""
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


if __name__ == "__main__":
    sys.exit(main())
