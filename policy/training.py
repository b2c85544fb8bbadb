"""The supervised training loop both pre-training stages share: optimisers, schedule, logging, resume."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from data.typed_recipe import RecipeError

Losses = dict[str, Tensor]


@dataclass(frozen=True)
class LoopRecipe:
    """How long and how fast to train; `batch_size` counts meshes per process and step."""

    max_steps: int = 1000
    batch_size: int = 8
    learning_rate: float = 1e-3
    min_learning_rate_ratio: float = 0.05
    warmup_steps: int = 50
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    optimizer: Literal["muon", "adamw"] = "muon"
    mixed_precision: Literal["no", "bf16"] = "no"
    dataloader_workers: int = 1
    logging_steps: int = 20
    save_steps: int = 500
    seed: int = 0
    output_dir: str = "outputs/pretrain"
    resume: bool = True

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "logging_steps", "save_steps"):
            if getattr(self, name) < 1:
                raise RecipeError(f"'loop.{name}' must be at least 1, not {getattr(self, name)}")


def muon_split(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters as (matrices inside blocks for Muon, the rest for AdamW).

    Embeddings, input/output projections, norms and biases stay with AdamW, as Muon's authors advise.
    """
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        inside_block = any(part in name for part in ("layers.", "blocks."))
        (matrices if inside_block and parameter.ndim == 2 else rest).append(parameter)
    return matrices, rest


def build_optimizers(model: nn.Module, recipe: LoopRecipe) -> list[torch.optim.Optimizer]:
    """Muon (update size matched to AdamW's, so one learning rate serves both) plus AdamW, or AdamW alone."""
    adamw_options: dict[str, Any] = {"lr": recipe.learning_rate, "betas": (0.9, 0.98)}
    if recipe.optimizer == "adamw":
        parameters = [p for p in model.parameters() if p.requires_grad]
        return [torch.optim.AdamW(parameters, weight_decay=recipe.weight_decay, **adamw_options)]
    if not hasattr(torch.optim, "Muon"):
        raise RecipeError("'loop.optimizer: muon' needs torch 2.9 or later; use 'adamw' or update torch")
    matrices, rest = muon_split(model)
    return [
        torch.optim.Muon(
            matrices,
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(rest, weight_decay=0.0, **adamw_options),
    ]


def cosine_factor(step: int, recipe: LoopRecipe) -> float:
    """Learning-rate factor of `step`: linear warm-up, then half a cosine to `min_learning_rate_ratio`."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.max_steps - recipe.warmup_steps)
    floor = recipe.min_learning_rate_ratio
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class StepSampler(Sampler[int]):
    """Indices of every step from `first_step` on: item i belongs to step i // batch, so resuming is exact."""

    def __init__(self, batch_size: int, first_step: int, max_steps: int) -> None:
        self.first, self.end = first_step * batch_size, max_steps * batch_size

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.end))

    def __len__(self) -> int:
        return self.end - self.first


def run_training(
    model: nn.Module,
    examples: Dataset[Any],
    collate: Callable[[list[Any]], Any],
    compute_losses: Callable[[nn.Module, Any, int], Losses],
    recipe: LoopRecipe,
    title: str,
) -> nn.Module:
    """Train `model` in place and return it unwrapped.

    `examples[i]` must depend on `i` alone (a seed): the run is then the same after a resume.
    `compute_losses(model, batch, step)` returns scalars; `loss` is minimised, all are logged to
    `metrics.jsonl` and the progress bar. Checkpoints are written under a temporary name and renamed.

    Raises:
        FloatingPointError: the loss is not finite; the last checkpoint stays.
    """
    accelerator = Accelerator(mixed_precision=recipe.mixed_precision)
    torch.manual_seed(recipe.seed + accelerator.process_index)
    output = Path(recipe.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    optimizers = build_optimizers(model, recipe)
    prepared = accelerator.prepare(model, *optimizers)
    wrapped, optimizers = prepared[0], list(prepared[1:])
    first_step = _resume(accelerator, output) if recipe.resume else 0
    per_step = recipe.batch_size * accelerator.num_processes
    loader = DataLoader(
        examples,
        batch_size=recipe.batch_size,
        sampler=StepSampler(per_step, first_step, recipe.max_steps),
        collate_fn=collate,
        num_workers=recipe.dataloader_workers,
        worker_init_fn=_one_thread,
        drop_last=True,
    )
    batches = accelerator.prepare(loader) if accelerator.num_processes > 1 else loader
    wrapped.train()
    log = (output / "metrics.jsonl").open("a") if accelerator.is_main_process else None
    bar = tqdm(
        total=recipe.max_steps,
        initial=first_step,
        desc=title,
        file=sys.stderr,
        disable=not accelerator.is_main_process,
    )
    sums: dict[str, float] = {}
    started = time.perf_counter()
    for step, batch in enumerate(batches, start=first_step):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * cosine_factor(step, recipe)
        with accelerator.autocast():
            losses = compute_losses(wrapped, _to_device(batch, accelerator.device), step)
        accelerator.backward(losses["loss"])
        accelerator.clip_grad_norm_(wrapped.parameters(), recipe.max_grad_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        bar.update()
        done = step + 1
        if done % recipe.logging_steps == 0:
            means = {name: value / recipe.logging_steps for name, value in sums.items()}
            sums = {}
            if not math.isfinite(means["loss"]):
                raise FloatingPointError(
                    f"the loss is {means['loss']} at step {done}; lower the learning rate"
                )
            bar.set_postfix({name: f"{value:.4f}" for name, value in means.items()})
            if log is not None:
                rate = done - first_step
                seconds = (time.perf_counter() - started) / rate
                print(json.dumps({"step": done, **means, "seconds_per_step": seconds}), file=log, flush=True)
        if done % recipe.save_steps == 0 or done == recipe.max_steps:
            _save(accelerator, output, done)
    bar.close()
    if log is not None:
        log.close()
    return accelerator.unwrap_model(wrapped)


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


def _to_device(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: _to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(_to_device(value, device) for value in batch)
    return batch


def _save(accelerator: Accelerator, output: Path, step: int) -> None:
    partial, final = output / "state.partial", output / f"state-{step}"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        os.replace(partial, final)
        for old in _states(output)[:-1]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def _resume(accelerator: Accelerator, output: Path) -> int:
    states = _states(output)
    if not states:
        return 0
    accelerator.load_state(str(states[-1]))
    return _step_of(states[-1])


def _states(output: Path) -> Sequence[Path]:
    return sorted((path for path in output.glob("state-*") if path.is_dir()), key=_step_of)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("state-"))
