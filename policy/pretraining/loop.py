"""The training loop of both pre-training stages."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm
from transformers import PreTrainedModel

from data.command_line import RunFailedError
from data.stop_signals import StopRun, ignore_stop_signals, stop_signals
from data.typed_recipe import RecipeError, to_mapping
from data.wandb_id import wandb_arguments
from policy.pretraining.checkpoints import load_checkpoint, save_checkpoint
from policy.pretraining.loop_recipe import LoopRecipe, loader_workers
from policy.pretraining.metrics_log import RunningMeans, open_metrics_file
from policy.pretraining.optimizer import build_optimizer, cosine_factor
from policy.pretraining.processes import largest, make_accelerator
from policy.pretraining.validation import Validation, Validator

Losses = dict[str, Tensor]


class StepSampler(Sampler[int]):
    """Example indices of one process for the steps `first_step` to `max_steps` − 1.

    Index i belongs to step i // (examples per step). A step has `accumulate` batches of each process: first
    the first batch of every process, then the second, and so on. Resuming is therefore exact, and several
    processes see the examples that one process with larger batches would see.
    """

    def __init__(
        self,
        batch_size: int,
        first_step: int,
        max_steps: int,
        accumulate: int = 1,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self.batch_size, self.process, self.processes = batch_size, process, processes
        self.batches = range(first_step * accumulate, max(first_step, max_steps) * accumulate)

    def __iter__(self) -> Iterator[int]:
        for batch in self.batches:
            start = (batch * self.processes + self.process) * self.batch_size
            yield from range(start, start + self.batch_size)

    def __len__(self) -> int:
        return len(self.batches) * self.batch_size


def run_training(
    model: nn.Module,
    examples: Dataset[Any],
    collate: Callable[[list[Any]], Any],
    compute_losses: Callable[[nn.Module, Any, int], Losses],
    recipe: LoopRecipe,
    title: str,
    validation: Validation | None = None,
) -> nn.Module:
    """Train `model` in place and return it unwrapped, with the weights of its best step if they are kept.

    `examples[i]` must be a function of `i`: a resumed run then equals an uninterrupted one, bit for bit on
    the same kind of machine. `compute_losses(model, batch, step)` returns scalars. `loss` is minimised; all
    are logged to `metrics.jsonl` and the progress bar as means over `logging_steps` steps of the main
    process. Under `accelerate launch`, each process has its own batches and gradients are averaged.
    `validation` is measured by the main process alone and never changes the training.

    Raises:
        RunFailedError: the loss, its gradient or a weight is not finite, or the disk is full; the last
            checkpoint is kept.
        StopRun: a signal ended training after a step, which is saved.
        RecipeError: the checkpoint has different sizes or a different optimizer, or the launcher does not
            support the recipe.
    """
    accelerator = make_accelerator(recipe)
    torch.manual_seed(recipe.seed + accelerator.process_index)
    output = Path(recipe.output_dir)
    if recipe.gradient_checkpointing:
        _enable_checkpointing(model)
    cuda = accelerator.device.type == "cuda"
    if recipe.compile is True or (recipe.compile == "auto" and cuda):
        compile_layers(model)
    wrapped, optimizer = accelerator.prepare(model, build_optimizer(model, recipe))
    validator = None if validation is None else Validator(validation, recipe.max_steps)
    first_step, means = 0, RunningMeans()
    if recipe.resume:
        first_step, means = load_checkpoint(accelerator, output, wrapped, optimizer, validator)
    (ended,) = largest([int(validator is not None and validator.exhausted)])
    accumulate = recipe.gradient_accumulation_steps
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    workers = loader_workers(recipe.dataloader_workers, len(os.sched_getaffinity(0)), cuda, local)
    batches = DataLoader(
        examples,
        batch_size=recipe.batch_size,
        sampler=StepSampler(
            recipe.batch_size,
            first_step,
            first_step if ended else recipe.max_steps,
            accumulate,
            accelerator.process_index,
            accelerator.num_processes,
        ),
        collate_fn=collate,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=cuda,
        worker_init_fn=_helper,
        drop_last=True,
    )
    wrapped.train()
    started = time.perf_counter()
    shown: dict[str, float] = {}
    signals = stop_signals()
    with (
        signals.finishing_steps(),
        _trackers(accelerator, recipe, title, first_step > 0),
        open_metrics_file(output, first_step, accelerator.is_main_process) as log,
        tqdm(
            total=recipe.max_steps,
            initial=first_step,
            desc=title,
            file=sys.stderr,
            disable=not accelerator.is_main_process,
        ) as bar,
    ):
        for place, batch in enumerate(batches, start=first_step * accumulate):
            step = place // accumulate
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * cosine_factor(step, recipe)
            with accelerator.accumulate(wrapped):
                with accelerator.autocast():
                    on_device = send_to_device(batch, accelerator.device, non_blocking=cuda)
                    losses = compute_losses(wrapped, on_device, step)
                values = {name: float(value.detach()) for name, value in losses.items()}
                _check_finite(values["loss"], "loss", step)
                # With DeepSpeed, this does the whole step, clipping included.
                accelerator.backward(losses["loss"])
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(wrapped.parameters(), recipe.max_grad_norm)
                    # Checked before the update, so that no checkpoint holds non-finite weights.
                    _check_finite(float(norm), "gradient", step)
                optimizer.step()
                optimizer.zero_grad()
            means.add(values)
            if (place + 1) % accumulate:
                continue
            bar.update()
            done = step + 1
            logged = means.take() if done % recipe.logging_steps == 0 else {}
            if validator is not None and validator.due(done) and accelerator.is_main_process:
                before = time.perf_counter()
                plain = accelerator.unwrap_model(wrapped)
                logged |= validator.measure(plain, done, accelerator.autocast)
                started += time.perf_counter() - before
            if logged:
                shown |= {name: value for name, value in logged.items() if _is_shown(name)}
                bar.set_postfix({name: f"{value:.4f}" for name, value in shown.items()})
                seconds = (time.perf_counter() - started) / (done - first_step)
                print(json.dumps({"step": done, **logged, "seconds_per_step": seconds}), file=log, flush=True)
                accelerator.log(logged, step=done)
            exhausted = validator is not None and validator.exhausted
            signum, ended = largest([signals.requested, int(exhausted)])
            if signum or ended or done % recipe.save_steps == 0 or done == recipe.max_steps:
                save_checkpoint(accelerator, output, done, means, wrapped, optimizer, validator)
            if ended:
                break
            if signum:
                signals.closing()
                raise StopRun(
                    signum,
                    f"{signal.Signals(signum).name}: stopped after step {done} of {recipe.max_steps}, which "
                    "is saved; run the same command again to resume",
                    together=True,
                )
    trained: nn.Module = accelerator.unwrap_model(wrapped)
    if validator is not None and validator.validation.recipe.keep == "best":
        _restore_best(accelerator, trained, validator)
    return trained


def _is_shown(name: str) -> bool:
    """Whether the progress bar has room for a measure: of validations, for the loss of each set."""
    return not name.startswith("validation/") or name.endswith("/loss")


def _restore_best(accelerator: Accelerator, model: nn.Module, validator: Validator) -> None:
    """The best step's weights, which the main process has kept, in every process."""
    if accelerator.is_main_process:
        validator.restore(model)
        name, value = validator.validation.measure, validator.best
        print(f"kept step {validator.best_step}: validation/{name} {value:.4f}", file=sys.stderr)
    if accelerator.num_processes > 1:
        for parameter in model.parameters():
            torch.distributed.broadcast(parameter.data, src=0)


def compile_layers(model: nn.Module) -> None:
    """Compile every block of the model's stacks, in place; weights and their names stay as they are."""
    for stack in model.modules():
        if isinstance(stack, nn.ModuleList):
            for block in stack:
                if next(block.children(), None) is not None:
                    block.compile()


def _enable_checkpointing(model: nn.Module) -> None:
    if not isinstance(model, PreTrainedModel):
        raise RecipeError("'loop.gradient_checkpointing' is available in stage 2 only; set it to false")
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})


@contextmanager
def _trackers(accelerator: Accelerator, recipe: LoopRecipe, title: str, resumed: bool) -> Iterator[None]:
    """Open the trackers of `report_to`, such as wandb, and close them in any case."""
    if recipe.report_to:
        own: dict[str, Any] = {}
        if "wandb" in recipe.report_to and accelerator.is_main_process:
            own["wandb"] = wandb_arguments(Path(recipe.output_dir), resumed)
        accelerator.init_trackers(f"tokenrig {title}", config=_flat(to_mapping(recipe)), init_kwargs=own)
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Values as types that every tracker accepts."""
    return {
        key: value if isinstance(value, (int, float, str, bool)) else str(value)
        for key, value in values.items()
    }


def _check_finite(value: float, name: str, step: int) -> None:
    if not math.isfinite(value):
        raise RunFailedError(
            f"the {name} is {value} at step {step + 1}; lower 'loop.learning_rate' and run the command again "
            "to resume from the last checkpoint"
        )


def _helper(worker: int) -> None:
    torch.set_num_threads(1)
    ignore_stop_signals()
