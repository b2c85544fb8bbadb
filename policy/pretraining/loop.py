"""The supervised training loop both pre-training stages share: optimizer, schedule, logging, resume."""

from __future__ import annotations

import atexit
import json
import logging
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DistributedType,
    GradientAccumulationPlugin,
    parse_flag_from_env,
    send_to_device,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm
from transformers import PreTrainedModel

from data.command_line import RunFailedError
from data.typed_recipe import RecipeError, to_mapping, write_recipe
from policy.pretraining.muon import MuonAdamW

Losses = dict[str, Tensor]


@dataclass(frozen=True)
class LoopRecipe:
    """How long and how fast to train; `batch_size` counts meshes per process and backward pass.

    A step takes `gradient_accumulation_steps` such batches of each process. `optimizer: muon` trains matrices
    with Muon and the rest with AdamW: with `muon_matrices: blocks` all matrices inside stacked blocks, with
    `attention` the projections of all attention layers. `weight_decay` is of the blocks' matrices alone.
    `mixed_precision: auto` is bf16 on GPUs that have it. `gradient_checkpointing` computes activations
    again in the backward pass (stage 2). `report_to`: further places for the metrics, each of which needs its
    package. `resume`: go on from the last checkpoint in `output_dir`, if there is one.
    """

    max_steps: int = 1000
    batch_size: int = 8
    learning_rate: float = 1e-3
    min_learning_rate_ratio: float = 0.05
    warmup_steps: int = 50
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    optimizer: Literal["muon", "adamw"] = "muon"
    muon_matrices: Literal["blocks", "attention"] = "blocks"
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    mixed_precision: Literal["no", "bf16", "auto"] = "no"
    dataloader_workers: int = 1
    logging_steps: int = 20
    save_steps: int = 500
    report_to: list[Literal["wandb", "tensorboard"]] = field(default_factory=list)
    seed: int = 0
    output_dir: str = "outputs/pretrain"
    resume: bool = True

    def __post_init__(self) -> None:
        for least, names in (
            (1, ("max_steps", "batch_size", "gradient_accumulation_steps", "logging_steps", "save_steps")),
            (0, ("warmup_steps", "weight_decay", "dataloader_workers", "seed")),
        ):
            for name in names:
                if not getattr(self, name) >= least:
                    raise RecipeError(f"'loop.{name}' must be at least {least}, not {getattr(self, name)}")
        for name in ("learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise RecipeError(f"'loop.{name}' must be above 0, not {getattr(self, name)}")
        if not 0 <= self.min_learning_rate_ratio <= 1:
            raise RecipeError(
                f"'loop.min_learning_rate_ratio' must be from 0 to 1, not {self.min_learning_rate_ratio}"
            )


def start_run(recipe: Any, loop: LoopRecipe) -> Path:
    """Make the output directory and write the resolved recipe there.

    Raises RecipeError if the directory cannot be written, or if this was launched with DeepSpeed and the
    recipe asks for Muon.
    """
    # Before anything talks to other processes.
    if loop.optimizer == "muon" and parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        raise RecipeError(
            "'loop.optimizer: muon' needs whole matrices, which DeepSpeed cuts into flat pieces; set "
            "loop.optimizer=adamw, or launch without DeepSpeed, as recipes/accelerate/multi_gpu.yaml does"
        )
    output = Path(loop.output_dir)
    try:
        output.mkdir(parents=True, exist_ok=True)
        if is_main_process():
            write_recipe(recipe, output / "recipe.yaml")
    except OSError as error:
        raise RecipeError(
            f"'loop.output_dir': '{output}' cannot be written ({error.strerror}); choose another directory"
        ) from error
    return output


def check_same_sizes(start: str, own: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse to go on from weights at `start` whose sizes `own` differ from the recipe's (dotted key: value).

    Raises RecipeError naming every key of `asked` that differs.
    """
    different = [key for key in asked if _as_written(own.get(key)) != _as_written(asked[key])]
    if different:
        values = ", ".join(f"{key}={_as_written(own.get(key))}" for key in different)
        raise RecipeError(
            f"'start_from': the weights in '{start}' have other sizes than the recipe's '{different[0]}'; "
            f"set {values}, or start from other weights"
        )


def _as_written(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def is_main_process() -> bool:
    """Whether this process writes the files of the run (the only one, or the first of several)."""
    return bool(_processes().is_main_process)


@contextmanager
def barrier_on_exit() -> Iterator[None]:
    """Around a whole run: its processes end at the same time, and close their connections before they exit.

    One that exits while the others still hold connections to it may be aborted on its way out.
    """
    yield
    state = _processes()
    state.wait_for_everyone()
    atexit.register(state.destroy_process_group)


def _processes() -> PartialState:
    """The processes of this run. The first call decides how they talk: by gloo on CPU."""
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU")
    deepspeed = parse_flag_from_env("ACCELERATE_USE_DEEPSPEED") and "LOCAL_RANK" in os.environ
    if deepspeed and not cpu and not torch.cuda.is_available() and not PartialState._shared_state:
        return PartialState(backend="gloo")
    return PartialState(cpu=cpu)


# The projections of attention layers, by the last parts of their names.
_ATTENTION = re.compile(
    r"(\.|^)(to_[qkv]|to_out\.0|[qkvo]_proj|c_q|c_kv|c_qkv|attn\.c_proj)\.weight$",
)


def muon_split(
    model: nn.Module, kind: Literal["blocks", "attention"] = "blocks"
) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters as (matrices for Muon, other matrices of stacked blocks, the rest).

    Of `kind` "blocks" the first are all matrices of the stacked blocks and the second none; of "attention"
    the projections of attention layers. Embeddings, input/output projections, norms and biases are never
    Muon's, as its authors advise.
    """
    matrices: list[nn.Parameter] = []
    other: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        inside_block = parameter.ndim == 2 and any(part in name for part in ("layers.", "blocks."))
        is_attention = parameter.ndim == 2 and _ATTENTION.search(name) is not None
        if is_attention if kind == "attention" else inside_block:
            matrices.append(parameter)
        else:
            (other if inside_block else rest).append(parameter)
    return matrices, other, rest


def build_optimizer(model: nn.Module, recipe: LoopRecipe) -> torch.optim.Optimizer:
    """Muon (update size matched to AdamW's, so one learning rate serves both) with AdamW, or AdamW alone."""
    adamw_options: dict[str, Any] = {"lr": recipe.learning_rate, "betas": (0.9, 0.98), "weight_decay": 0.0}
    if recipe.optimizer == "adamw":
        matrices, _, rest = muon_split(model)
        return torch.optim.AdamW(_decaying(matrices, rest, recipe.weight_decay), **adamw_options)
    if not hasattr(torch.optim, "Muon"):
        raise RecipeError("'loop.optimizer: muon' needs torch 2.9 or later; use 'adamw' or update torch")
    matrices, other, rest = muon_split(model, recipe.muon_matrices)
    muon = torch.optim.Muon(
        matrices,
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    adamw = torch.optim.AdamW(_decaying(other, rest, recipe.weight_decay), **adamw_options)
    return MuonAdamW(muon, adamw)


def _decaying(matrices: list[nn.Parameter], rest: list[nn.Parameter], decay: float) -> list[dict[str, Any]]:
    """Parameter groups, without empty ones."""
    groups: list[dict[str, Any]] = [{"params": matrices, "weight_decay": decay}, {"params": rest}]
    return [group for group in groups if group["params"]]


def cosine_factor(step: int, recipe: LoopRecipe) -> float:
    """Learning-rate factor of `step`: linear warm-up, then half a cosine to `min_learning_rate_ratio`."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.max_steps - recipe.warmup_steps)
    floor = recipe.min_learning_rate_ratio
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class StepSampler(Sampler[int]):
    """Indices of every step from `first_step` on, of one process: item i belongs to step i // items per step.

    A step takes `accumulate` batches of each of `processes`, in this order: all processes' first batches, all
    second ones. So resuming is exact, and processes share what one process would take as larger batches.
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


class RunningMeans:
    """Means of what was added since they were last taken; each name counts the times it was there."""

    def __init__(self, state: dict[str, list[float]] | None = None) -> None:
        self._sums = {name: (total, int(count)) for name, (total, count) in (state or {}).items()}

    def add(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + value, count + 1)

    def take(self) -> dict[str, float]:
        """The means; counting starts afresh."""
        means = {name: total / count for name, (total, count) in self._sums.items()}
        self._sums = {}
        return means

    def state(self) -> dict[str, list[float]]:
        """For JSON; the constructor takes it back."""
        return {name: [total, count] for name, (total, count) in self._sums.items()}


def run_training(
    model: nn.Module,
    examples: Dataset[Any],
    collate: Callable[[list[Any]], Any],
    compute_losses: Callable[[nn.Module, Any, int], Losses],
    recipe: LoopRecipe,
    title: str,
) -> nn.Module:
    """Train `model` in place and return it unwrapped.

    `examples[i]` must depend on `i` alone (a seed): the run is then the same after a resume, to the last
    bit on one kind of machine. `compute_losses(model, batch, step)` returns scalars; `loss` is minimised,
    all are logged, as means over `logging_steps` steps of the main process, to `metrics.jsonl` and the
    progress bar. Checkpoints are written under a temporary name and renamed. Several processes, under
    `accelerate launch`, average their gradients; each takes batches of its own.

    Raises:
        RunFailedError: the loss or its gradient is not finite; the last checkpoint stays.
        RecipeError: the checkpoint to go on from was made with other sizes or another optimizer, or the
            recipe asks for what the launched processes cannot do.
    """
    accelerator = _accelerator(recipe)
    torch.manual_seed(recipe.seed + accelerator.process_index)
    output = Path(recipe.output_dir)
    if recipe.gradient_checkpointing:
        _enable_checkpointing(model)
    wrapped, optimizer = accelerator.prepare(model, build_optimizer(model, recipe))
    first_step, means = _resume(accelerator, output) if recipe.resume else (0, RunningMeans())
    accumulate = recipe.gradient_accumulation_steps
    batches = DataLoader(
        examples,
        batch_size=recipe.batch_size,
        sampler=StepSampler(
            recipe.batch_size,
            first_step,
            recipe.max_steps,
            accumulate,
            accelerator.process_index,
            accelerator.num_processes,
        ),
        collate_fn=collate,
        num_workers=recipe.dataloader_workers,
        worker_init_fn=_one_thread,
        drop_last=True,
    )
    wrapped.train()
    started = time.perf_counter()
    with (
        _trackers(accelerator, recipe, title),
        _metrics_file(output, first_step, accelerator.is_main_process) as log,
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
                    losses = compute_losses(wrapped, send_to_device(batch, accelerator.device), step)
                values = {name: float(value.detach()) for name, value in losses.items()}
                _check_finite(values["loss"], "loss", step)
                # Under DeepSpeed this is the whole step, clipping included.
                accelerator.backward(losses["loss"])
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(wrapped.parameters(), recipe.max_grad_norm)
                    # Before the weights take it in, or the next checkpoint would be worthless.
                    _check_finite(float(norm), "gradient", step)
                optimizer.step()
                optimizer.zero_grad()
            means.add(values)
            if (place + 1) % accumulate:
                continue
            bar.update()
            done = step + 1
            if done % recipe.logging_steps == 0:
                logged = means.take()
                bar.set_postfix({name: f"{value:.4f}" for name, value in logged.items()})
                seconds = (time.perf_counter() - started) / (done - first_step)
                print(json.dumps({"step": done, **logged, "seconds_per_step": seconds}), file=log, flush=True)
                accelerator.log(logged, step=done)
            if done % recipe.save_steps == 0 or done == recipe.max_steps:
                _save(accelerator, output, done, means)
    return accelerator.unwrap_model(wrapped)


def _accelerator(recipe: LoopRecipe) -> Accelerator:
    """The accelerator of a recipe and of how this process was launched; RecipeError if they do not fit."""
    _processes()
    precision = recipe.mixed_precision
    if precision == "auto":
        precision = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"
    accelerator = Accelerator(
        mixed_precision=precision,
        # Not as a number: the launcher's configuration would win over it.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=recipe.gradient_accumulation_steps),
        log_with=recipe.report_to or None,
        project_dir=recipe.output_dir,
    )
    kind = accelerator.distributed_type
    if kind in (DistributedType.FSDP, DistributedType.MEGATRON_LM):
        raise RecipeError(
            f"pre-training runs on one process, plain data parallel or DeepSpeed, not on {kind.value}; "
            "launch it with another accelerate configuration, such as recipes/accelerate/multi_gpu.yaml"
        )
    if kind == DistributedType.DEEPSPEED:
        _fit_deepspeed(accelerator, recipe)
    return accelerator


def _fit_deepspeed(accelerator: Accelerator, recipe: LoopRecipe) -> None:
    """Give DeepSpeed the recipe's batch and clipping; RecipeError for ZeRO stage 3."""
    plugin = accelerator.deepspeed_plugin
    if plugin.zero_stage >= 3:
        raise RecipeError(
            "pre-training keeps the weights whole in every process, which ZeRO stage 3 does not; "
            "set 'zero_stage: 2' in the accelerate configuration"
        )
    plugin.deepspeed_config.update(
        train_micro_batch_size_per_gpu=recipe.batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        train_batch_size=recipe.batch_size * recipe.gradient_accumulation_steps * accelerator.num_processes,
        gradient_clipping=recipe.max_grad_norm,
    )


def _enable_checkpointing(model: nn.Module) -> None:
    if not isinstance(model, PreTrainedModel):
        raise RecipeError("'loop.gradient_checkpointing' is of the language model, stage 2; set it to false")
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})


@contextmanager
def _trackers(accelerator: Accelerator, recipe: LoopRecipe, title: str) -> Iterator[None]:
    """Open wandb and the like for the metrics of a run, and close them whatever happens."""
    if recipe.report_to:
        accelerator.init_trackers(f"tokenrig {title}", config=_flat(to_mapping(recipe)))
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Values that every tracker can show."""
    return {
        key: value if isinstance(value, (int, float, str, bool)) else str(value)
        for key, value in values.items()
    }


def _check_finite(value: float, name: str, step: int) -> None:
    if not math.isfinite(value):
        raise RunFailedError(
            f"the {name} is {value} at step {step + 1}; lower 'loop.learning_rate' and start again: "
            "the last checkpoint is kept"
        )


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


def _metrics_file(output: Path, first_step: int, is_main: bool) -> TextIO:
    """The log, open at the end of step `first_step`: later lines belong to steps that are done again."""
    if not is_main:
        return open(os.devnull, "w")
    path = output / "metrics.jsonl"
    kept = [line for line in _lines(path) if _step_of_line(line) <= first_step] if first_step else []
    partial = path.with_name("metrics.partial")
    partial.write_text("".join(f"{line}\n" for line in kept))
    os.replace(partial, path)
    return path.open("a")


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def _step_of_line(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except json.JSONDecodeError:
        return math.inf  # torn when the run was killed


def _save(accelerator: Accelerator, output: Path, step: int, means: RunningMeans) -> None:
    partial, final, old = output / "state.partial", output / f"state-{step}", output / "state.old"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    # It would say in the middle of the progress bar that tied weights are stored once.
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (partial / "means.json").write_text(json.dumps(means.state()))
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():  # of a run that was started over
            os.replace(final, old)
        os.replace(partial, final)
        for other in (old, *(path for path in _states(output) if path != final)):
            shutil.rmtree(other, ignore_errors=True)
    accelerator.wait_for_everyone()


def _resume(accelerator: Accelerator, output: Path) -> tuple[int, RunningMeans]:
    """(steps done, means so far) of the last checkpoint, which is loaded; (0, none) without one."""
    states = _states(output)
    if not states:
        return 0, RunningMeans()
    last = states[-1]
    try:
        accelerator.load_state(str(last))
    except (RuntimeError, ValueError, KeyError) as error:  # KeyError: another optimizer's groups
        raise RecipeError(
            f"'loop.output_dir': '{last}' is a checkpoint of other sizes or of another optimizer; choose "
            "another directory, or start over with loop.resume=false"
        ) from error
    means = last / "means.json"
    return _step_of(last), RunningMeans(json.loads(means.read_text()) if means.is_file() else None)


def _states(output: Path) -> Sequence[Path]:
    """Complete checkpoints, oldest first."""
    paths = output.glob("state-*")
    return sorted((path for path in paths if path.name.removeprefix("state-").isdigit()), key=_step_of)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("state-"))
