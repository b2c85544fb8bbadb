"""Reports each step's metrics (console, progress bar, metrics.jsonl) and adds the training time."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from data.atomic import naming

# Metrics shown on the console, in this order, then the means of further rewards; the file has all of them.
_CONSOLE = {
    "reward": "reward",
    "rewards/coverage/mean": "cov",
    "rewards/containment/mean": "cont",
    "rewards/sparsity/mean": "spars",
    "rewards/smoothness/mean": "smooth",
    "rig/valid": "valid",
    "rig/joints": "joints",
    "kl": "kl",
    "entropy": "entropy",
    "frac_reward_zero_std": "zero_std",
    "clip_ratio/region_mean": "clip",
    "seconds/rollout": "rollout_s",
    "seconds/wait_for_rewards": "wait_s",
    "seconds/train": "train_s",
    "seconds/startup": "startup_s",  # of the first step only
    "tokens_per_second": "tok/s",
}

# Of the names of an evaluation's numbers in the logs; transformers' integrations turn it into "eval/".
EVALUATION_PREFIX = "eval_"


class StepTimes(TrainerCallback):
    """Adds `seconds/train` to the logs: the step time minus the rollout and the wait for rewards.

    Must run before the reporting callbacks, so that all of them see it.
    """

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the time to the metrics of a step."""
        if logs is None or "step_time" not in logs:
            return
        not_training = (logs.get("seconds/rollout") or 0.0) + (logs.get("seconds/wait_for_rewards") or 0.0)
        logs["seconds/train"] = max(0.0, logs["step_time"] - not_training)


class MetricsLog(TrainerCallback):
    """Shows progress and each step's main metrics, and appends all of them to `path` as one JSON line.

    An evaluation during training is a line of its own, with `step` and keys that begin with `eval/`.
    Replaces transformers' progress bar, which prints every metric of every step. A resume first drops the
    lines of the steps it will repeat. A metric without a value, such as the mean of a reward that no rig of
    the step received, is null. One that is not finite is written as NaN or Infinity, which Python, pandas and
    jq read although JSON lacks them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._bar: tqdm | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop the lines after the resumed step, all if none was saved, and start the bar."""
        if not state.is_world_process_zero:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.partial")
        kept = _lines_until(self.path, state.global_step) if state.global_step else []
        partial.write_text("".join(f"{line}\n" for line in kept))
        partial.replace(self.path)
        self._bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc="GRPO",
            unit="step",
            file=sys.stderr,
            disable=args.disable_tqdm,
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar."""
        self.close()

    def close(self) -> None:
        """Close the bar, also after training that was interrupted."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write and print a step, or write an evaluation."""
        if not state.is_world_process_zero or logs is None:
            return
        evaluation = {
            f"eval/{key.removeprefix(EVALUATION_PREFIX)}": value
            for key, value in logs.items()
            if key.startswith(EVALUATION_PREFIX)
        }
        if evaluation:
            self._append({"step": state.global_step, **evaluation})
        if "loss" not in logs:  # the final summary
            return
        # The dataset is the whole run (see rl/mesh_schedule.py), so the epoch carries no information.
        numbers = {
            key: value
            for key, value in logs.items()
            if isinstance(value, int | float | None) and key != "epoch"
        }
        self._append({"step": state.global_step, **numbers})
        names = _CONSOLE | {key: key.split("/")[1] for key in numbers if _is_further_reward(key)}
        shown = [
            f"{short} {numbers[key]:.4g}" for key, short in names.items() if numbers.get(key) is not None
        ]
        tqdm.write(f"step {state.global_step}  " + "  ".join(shown), file=sys.stderr)

    def has_evaluation(self, step: int) -> bool:
        """Whether the file has an evaluation after `step` steps."""
        if not self.path.exists():
            return False
        lines = map(json.loads, self.path.read_text().splitlines())
        return any(line["step"] == step and "eval/total" in line for line in lines)

    def _append(self, line: Mapping[str, Any]) -> None:
        with naming(self.path), self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _is_further_reward(key: str) -> bool:
    """Whether a metric is the mean of a reward besides the paper's four, such as a guard."""
    return key.startswith("rewards/") and key.endswith("/mean") and key not in _CONSOLE


def mean_metrics(metrics: Mapping[str, Sequence[float | None]]) -> dict[str, float | None]:
    """The mean of each metric's values; without the Nones, and None if nothing else is left."""
    means = {}
    for name, values in metrics.items():
        known = [value for value in values if value is not None]
        means[name] = sum(known) / len(known) if known else None
    return means


def _lines_until(path: Path, step: int) -> list[str]:
    """The lines up to `step`, without a last line that an interruption truncated."""
    kept = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            logged = json.loads(line)["step"]
        except json.JSONDecodeError:
            break
        if logged <= step:
            kept.append(line)
    return kept
