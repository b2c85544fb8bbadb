"""Keeps a non-finite loss or gradient, and a step without scores, from changing the weights."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from data.command_line import RunFailedError
from data.typed_recipe import RecipeError
from rl.bad_steps import BAD_STEPS_FOLDER, BadStep, write_bad_step

# What may be non-finite, in the order in which one causes the next.
CAUSES = ("reward", "log-probability", "advantage", "loss", "gradient")

# Places of two more counts: scored rigs, and rows that should have a score and have none.
_SCORED, _AWAITED = len(CAUSES), len(CAUSES) + 1

_LIKELY_FIX = {
    "reward": "a reward function is at fault: score those rigs with it",
    "log-probability": "activations overflow: set train.bf16 and train.fp16 to false, or start from an "
    "earlier policy",
    "advantage": "see train.scale_rewards and the reward weights",
    "loss": "lower train.learning_rate, or raise train.beta",
    "gradient": "lower train.learning_rate, or set train.bf16 and train.fp16 to false",
}

Describe = Callable[[Mapping[str, Any]], list[dict[str, Any]]]


class StepGuard(TrainerCallback):
    """Decides before each update, on all processes alike, whether the step may change the weights.

    A step is *bad* if a reward, log-probability, advantage, loss or the gradient norm is not finite on any
    process. It is *unscored* if rigs on some process await a score and none on any process has one: neither
    the zeros of tokens that are no rig nor the KL term alone may train. Neither kind changes the weights or
    the optimizer's state. Both count as steps: `global_step`, the learning-rate schedule and the meshes move
    on, so that a resumed run stays aligned. A bad step's rows are written to `output_dir/bad_steps/`; after
    `max_bad_steps` in a row the run saves its (unchanged) weights and stops, see `failure`. Unscored steps
    are only counted.

    In float16, a non-finite gradient from a finite loss is how the loss scale is found: accelerate and
    DeepSpeed skip that step and lower the scale. It is bad only once the scale is 1 or less.

    The trainer calls `watch` for each micro-batch and `decide` once before the update. The check costs one
    all-reduce of seven numbers and one copy to the host per step. DeepSpeed updates the weights inside the
    backward pass, so there the loss is agreed on before it, and a step to skip gets a NaN gradient, which
    DeepSpeed's own check discards on all processes.
    """

    def __init__(
        self, accelerator: Accelerator, output: Path, max_bad_steps: int, describe: Describe
    ) -> None:
        self.accelerator, self.max_bad_steps = accelerator, max_bad_steps
        self.folder = output / BAD_STEPS_FOLDER
        self.failure: str | None = None
        self._describe = describe
        self._in_a_row = 0
        self._counts = {"train_guard/bad_steps": 0, "train_guard/unscored_steps": 0}
        self._start_step()

    def _start_step(self) -> None:
        self._here: Tensor | None = None  # (7,) counts of this process: CAUSES, _SCORED, _AWAITED
        self._agreed: list[float] | None = None  # the same, summed over processes
        self._batches: list[tuple[Mapping[str, Any], Tensor]] = []
        self._skip = False

    # ------------------------------------------------------------ trainer's calls

    def watch(self, loss: Tensor, batch: Mapping[str, Any], log_probs: Tensor) -> None:
        """Note what is not finite in a micro-batch, on the device; call it before the backward pass.

        batch: as for `describe_rows`. log_probs: of the policy, (B, C).
        """
        others = [batch[key] for key in ("ref_per_token_logps", "old_per_token_logps") if key in batch]
        received = batch["has_reward"].any(dim=1)
        flags = torch.stack(
            [
                (batch["has_reward"] & ~batch["rewards"].isfinite()).any(),
                torch.stack([_some_bad(values) for values in (log_probs, *others)]).any(),
                _some_bad(batch["advantages"]),
                _some_bad(loss.detach()),
                torch.zeros((), dtype=torch.bool, device=loss.device),  # the gradient: not known yet
                (batch["is_rig"] & received).sum(),
                (~received).sum(),
            ]
        ).float()
        self._here = flags if self._here is None else self._here + flags
        self._batches.append((batch, loss.detach()))
        if self._deepspeed and self.accelerator.sync_gradients:
            self._agreed = self._agree(self._here)
            if any(self._agreed[: len(CAUSES)]) or self._unscored:
                # The value stays, for the logs; only the gradient becomes NaN.
                loss.register_hook(lambda gradient: gradient * math.nan)

    def decide(self, step: int, sampled_at: int, grad_norm: Tensor | float | None) -> None:
        """Decide about `step` (its number in the logs) with the norm of its gradient, before the update.

        sampled_at: steps that were done when its rollouts were sampled.

        Raises:
            RecipeError: DeepSpeed is set up not to check gradients.
            RunFailedError: DeepSpeed updated the weights all the same.
        """
        assert self._here is not None, "decide without watch"
        if isinstance(grad_norm, Tensor) and hasattr(
            grad_norm, "full_tensor"
        ):  # FSDP2's, one share per process
            grad_norm = grad_norm.full_tensor()
        if self._agreed is None:
            if grad_norm is not None:
                self._here[CAUSES.index("gradient")] = _some_bad(torch.as_tensor(grad_norm))
            self._agreed = self._agree(self._here)
        causes = [name for name, count in zip(CAUSES, self._agreed, strict=False) if count]
        if self._deepspeed:
            causes = self._after_deepspeed(causes)
        if causes == ["gradient"] and self._scale_is_being_found():
            causes = []
        if causes:
            self._skip = True
            self._record(step, sampled_at, causes, None if grad_norm is None else float(grad_norm))
        elif self._unscored:
            self._skip = True
            self._counts["train_guard/unscored_steps"] += 1
            self._say(f"step {step} has no scores: it updates nothing")
        else:
            self._in_a_row = 0

    def take_counts(self) -> dict[str, int]:
        """Bad and unscored steps since the last call, as metrics."""
        counts = dict(self._counts)
        self._counts = dict.fromkeys(counts, 0)
        return counts

    # ------------------------------------------------------------ callback

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Turn the optimizer step of a step to skip into one that does nothing."""
        if not self._skip:
            return
        # accelerate's optimizer does nothing unless gradients are synchronised.
        self.accelerator.gradient_state._set_sync_gradients(False)
        scaler = self.accelerator.scaler
        if scaler is not None:  # forgets this step's gradients, and keeps the scale
            scaler.update(scaler.get_scale())

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the schedule aligned with the steps, also where the trainer would hold it back."""
        if not self._skip:
            return
        self.accelerator.gradient_state._set_sync_gradients(True)
        if self.accelerator.optimizer_step_was_skipped:
            schedule = kwargs["lr_scheduler"]
            getattr(schedule, "scheduler", schedule).step()  # DeepSpeed's wrapper does not step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save and stop after too many bad steps in a row."""
        self._start_step()
        if self.failure is not None:
            control.should_save = control.should_training_stop = True

    # ------------------------------------------------------------ parts

    @property
    def _deepspeed(self) -> bool:
        return bool(self.accelerator.distributed_type == DistributedType.DEEPSPEED)

    @property
    def _unscored(self) -> bool:
        assert self._agreed is not None
        return bool(self._agreed[_AWAITED]) and not self._agreed[_SCORED]

    def _agree(self, flags: Tensor) -> list[float]:
        return list(self.accelerator.reduce(flags, reduction="sum").tolist())

    def _after_deepspeed(self, causes: list[str]) -> list[str]:
        """The causes with DeepSpeed's own finding about the gradient, which it has acted on."""
        engine = self.accelerator.deepspeed_engine_wrapped.engine
        discarded = getattr(engine.optimizer, "overflow", None)
        if discarded is None:
            raise RecipeError(
                "DeepSpeed checks no gradients in this configuration (ZeRO stage 0); set 'zero_stage: 2' in "
                "the accelerate configuration"
            )
        if (causes or self._unscored) and not discarded:
            raise RunFailedError(
                "DeepSpeed updated the weights with non-finite gradients; set 'bf16.check_grad_overflow' to "
                "true in its configuration and run again to resume from the last checkpoint"
            )
        return ["gradient"] if discarded and not causes and not self._unscored else causes

    def _scale_is_being_found(self) -> bool:
        if self._deepspeed:
            return bool(self.accelerator.deepspeed_engine_wrapped.engine.fp16_enabled())
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.get_scale() > 1

    def _record(self, step: int, sampled_at: int, causes: Sequence[str], norm: float | None) -> None:
        assert self._here is not None
        self._counts["train_guard/bad_steps"] += 1
        self._in_a_row += 1
        here = self._here.tolist()
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        path = write_bad_step(
            self.folder,
            BadStep(
                step=step,
                rank=rank,
                sampled_at_step=sampled_at,
                causes=causes,
                causes_here=[name for name, count in zip(CAUSES, here, strict=False) if count],
                grad_norm=norm,
                losses=[float(loss) for _, loss in self._batches],
                rows=[row for batch, _ in self._batches for row in self._describe(batch)],
            ),
            processes,
        )
        what = ", ".join(causes)
        self._say(f"step {step} is skipped, because its {what} is not finite; its rows are in {path}")
        if self._in_a_row >= self.max_bad_steps:
            steps = "step" if self._in_a_row == 1 else "steps in a row"
            self.failure = (
                f"{self._in_a_row} {steps} had a {causes[0]} that is not finite and updated nothing (rows: "
                f"{self.folder}, weights: the last checkpoint); {_LIKELY_FIX[causes[0]]}"
            )

    def _say(self, sentence: str) -> None:
        if self.accelerator.is_main_process:
            tqdm.write(sentence, file=sys.stderr)


def _some_bad(values: Tensor) -> Tensor:
    """Whether a tensor holds a NaN or an infinity: a bool on its device."""
    return ~values.isfinite().all()
