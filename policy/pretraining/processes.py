"""The processes of a run: accelerator, main process, shared lock and decisions, barrier at the end."""

from __future__ import annotations

import atexit
import gc
import itertools
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DistributedType,
    GradientAccumulationPlugin,
    broadcast_object_list,
    gather_object,
    parse_flag_from_env,
)

from data.run_lock import Process, RunLock, run_lock
from data.stop_signals import StopRun
from data.typed_recipe import RecipeError
from policy.pretraining.loop_recipe import LoopRecipe


def is_main_process() -> bool:
    """Whether this process writes the run's files: it is the only process, or has rank 0."""
    return bool(_state().is_main_process)


def examples_per_step(recipe: LoopRecipe) -> int:
    """Examples of one optimizer step, in all processes together."""
    return recipe.batch_size * recipe.gradient_accumulation_steps * int(_state().num_processes)


@contextmanager
def shared_lock(directory: Path, key: str) -> Iterator[RunLock | None]:
    """Lock an existing directory for the processes of this run; the main process gets the lock.

    The lock names all processes: while one of them lives, the run does. Raises RecipeError, naming `key`, if
    a live run holds it; only the main process reports it, the others exit with the same code.
    """
    state, processes = _state(), [Process.current()]
    if state.num_processes > 1:
        processes = gather_object(processes)
    with ExitStack() as stack:
        lock: RunLock | None = None
        failure: RecipeError | None = None
        if state.is_main_process:
            try:
                lock = stack.enter_context(run_lock(directory, key, processes))
            except RecipeError as error:
                failure = error
        exit_together(failure)
        yield lock


def exit_together(failure: RecipeError | None) -> None:
    """Raise the main process's `failure`, if any; the others then exit with the code of a user error."""
    failed = [failure is not None]
    if _state().num_processes > 1:
        broadcast_object_list(failed)
    if failure is not None:
        raise failure
    if failed[0]:
        sys.exit(2)


def largest(values: Sequence[int]) -> list[int]:
    """The largest of each value over all processes, so that all of them decide alike."""
    state = _state()
    if state.num_processes == 1:
        return list(values)
    shared = torch.tensor(values, device=state.device)
    torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
    return shared.tolist()


# Numbers the blocks of `main_process_only`; every process enters the same ones in the same order.
_blocks = itertools.count()


@contextmanager
def main_process_only() -> Iterator[bool]:
    """True in the main process; the others get False and wait at the end of the block for the main one's end.

    They wait without a time limit, unlike at a barrier or in a collective operation, which gives up after
    `ddp_timeout`: for an evaluation that may take longer. If the block fails, the launcher ends the others.
    """
    state = _state()
    if state.num_processes == 1:
        yield True
        return
    store = torch.distributed.distributed_c10d._get_default_store()
    key = f"tokenrig/main_process_only/{next(_blocks)}"
    yield state.is_main_process
    if state.is_main_process:
        store.set(key, "done")
        return
    while not store.check([key]):
        time.sleep(0.2)


@contextmanager
def barrier_on_exit() -> Iterator[None]:
    """Wait for all processes of the run at the end of the block, and close their process group at exit.

    A process that exits while others are still connected to it can be aborted during its shutdown. A run that
    a signal stopped after a step ends like any other: all processes leave the block together.
    """
    state = _state()
    try:
        yield
    except StopRun as stop:
        if stop.together:
            state.wait_for_everyone()
        raise
    state.wait_for_everyone()
    atexit.register(_close_process_group, state)


def _close_process_group(state: PartialState) -> None:
    """Close the process group after the models that use it.

    If a data-parallel model holds the last reference to a gloo group, torch joins gloo's threads with the GIL
    held, for which one of them may be waiting: the process never ends.
    """
    gc.collect()
    state.destroy_process_group()


def make_accelerator(recipe: LoopRecipe) -> Accelerator:
    """The accelerator for a recipe under the present launcher; RecipeError if the two do not fit."""
    _state()
    if not torch.cuda.is_available():
        # Otherwise DeepSpeed warns on stdout that it found no GPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    precision = recipe.mixed_precision
    if precision == "auto":
        precision = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"
    accelerator = Accelerator(
        mixed_precision=precision,
        # As a plugin: a plain number would lose to the launcher's configuration. Not synchronised with data
        # loaders: this loop's is a plain one, and an earlier trainer of the process may have left one behind.
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=recipe.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        log_with=recipe.report_to or None,
        project_dir=recipe.output_dir,
    )
    kind = accelerator.distributed_type
    if kind in (DistributedType.FSDP, DistributedType.MEGATRON_LM):
        raise RecipeError(
            f"pre-training supports one process, data parallelism and DeepSpeed, not {kind.value}; "
            "launch it with another accelerate configuration, such as recipes/accelerate/multi_gpu.yaml"
        )
    if kind == DistributedType.DEEPSPEED:
        _fit_deepspeed(accelerator, recipe)
    return accelerator


def _fit_deepspeed(accelerator: Accelerator, recipe: LoopRecipe) -> None:
    """Set DeepSpeed's batch size and gradient clipping from the recipe; RecipeError for ZeRO stage 3."""
    plugin = accelerator.deepspeed_plugin
    if plugin.zero_stage >= 3:
        raise RecipeError(
            "pre-training needs all weights in every process, and ZeRO stage 3 splits them; "
            "set 'zero_stage: 2' in the accelerate configuration"
        )
    plugin.deepspeed_config.update(
        train_micro_batch_size_per_gpu=recipe.batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        train_batch_size=recipe.batch_size * recipe.gradient_accumulation_steps * accelerator.num_processes,
        gradient_clipping=recipe.max_grad_norm,
    )


def _state() -> PartialState:
    """The processes of this run. The first call chooses the backend: gloo for DeepSpeed on a CPU."""
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU")
    deepspeed = parse_flag_from_env("ACCELERATE_USE_DEEPSPEED") and "LOCAL_RANK" in os.environ
    if deepspeed and not cpu and not torch.cuda.is_available() and not PartialState._shared_state:
        return PartialState(backend="gloo")
    return PartialState(cpu=cpu)
