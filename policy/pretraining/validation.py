"""Measures a model on held-out rigs while it trains, and keeps the weights of its best step."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import send_to_device
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data.command_line import RunFailedError
from data.typed_recipe import PathText, RecipeError

# Measures of which more is better; of all others, less is.
MORE_IS_BETTER = ("iou", "mask_accuracy")
_STATE, _WEIGHTS = "validation.json", "best.safetensors"


@dataclass(frozen=True)
class ValidationRecipe:
    """Held-out rigs on which the model is measured while it trains, and which step's weights are kept.

    They are never augmented, and their points are the same at every step. The first steps that train only a
    part (`continuous_steps`, `skeleton_only_steps`) are measured too, but cannot be the best.
    """

    every: int = 0
    """Steps between validations; the last step is always one; at least 0, and 0 for none. Source: this
    project."""

    rigs: PathText | list[PathText] | None = None
    """Held-out rigs: a folder made by `python -m data.prepare` gives its held-out split; or a file, folder or
    pattern, or a list of them. Rigs that are also trained on are refused; null for none. Source: this
    project."""

    creatures: int = 32
    """Held-out procedural creatures, which no training uses; at least 0. Source: this project."""

    keep: Literal["last", "best"] = "last"
    """Which weights become the model: those of the `last` step, or of the `best` one by `measure`. Source:
    this project."""

    measure: str | None = None
    """What the best step is judged by, such as `rigs/skeleton` or `creatures/iou`; null for `rigs/loss`, or
    `creatures/loss` without rigs. Source: this project."""

    patience: int = 0
    """Training ends after this many validations in a row that are not better than the best; at least 0, and 0
    trains all steps. Source: this project."""

    def __post_init__(self) -> None:
        for name in ("every", "creatures", "patience"):
            if getattr(self, name) < 0:
                raise RecipeError(f"'validation.{name}' must be at least 0, not {getattr(self, name)}")
        if not self.every and (self.keep == "best" or self.patience):
            needing = "keep: best" if self.keep == "best" else "patience"
            raise RecipeError(f"'validation.{needing}' needs validations; set 'validation.every' above 0")
        if self.every and not self.sets:
            raise RecipeError("'validation' has neither rigs nor creatures; set one of them, or every: 0")

    @property
    def sets(self) -> tuple[str, ...]:
        """Names of the sets that are measured."""
        return ("rigs",) * bool(self.rigs) + ("creatures",) * bool(self.creatures)

    def chosen_measure(self, losses: Sequence[str]) -> str:
        """The measure of the best step. Raises RecipeError if it is none of `losses` on one of the sets."""
        known = [f"{name}/{loss}" for name in self.sets for loss in losses]
        measure = self.measure or f"{self.sets[0]}/loss"
        if measure not in known:
            raise RecipeError(f"'validation.measure' must be one of {', '.join(known)}, not '{measure}'")
        return measure


@dataclass(frozen=True, eq=False)
class Validation:
    """What a stage measures.

    batches: by set, batches as training has them, and the meshes in each. losses: `losses(model, batch,
    step)` as in training, without randomness; called in evaluation mode and without gradients. measure: see
    `ValidationRecipe.chosen_measure`. first_step: of the steps that may be the best.
    """

    recipe: ValidationRecipe
    batches: Mapping[str, Sequence[tuple[Any, int]]]
    losses: Callable[[nn.Module, Any, int], dict[str, Tensor]]
    measure: str
    first_step: int = 0


class Validator:
    """The state of a run's validations; only the main process measures and keeps weights."""

    def __init__(self, validation: Validation, max_steps: int) -> None:
        self.validation, self.max_steps = validation, max_steps
        # A run without steps of the whole kind keeps the best of those that it has.
        self.first_step = validation.first_step if validation.first_step < max_steps else 0
        self.best: float | None = None
        self.best_step = 0
        self.worse = 0
        self.weights: dict[str, Tensor] = {}
        self._batches: dict[str, list[tuple[Any, int]]] = {}

    @property
    def exhausted(self) -> bool:
        """Whether `patience` is at an end."""
        patience = self.validation.recipe.patience
        return 0 < patience <= self.worse

    def due(self, done: int) -> bool:
        """Whether the model is measured after `done` steps."""
        return done % self.validation.recipe.every == 0 or done == self.max_steps

    @torch.no_grad()
    def measure(
        self, model: nn.Module, done: int, autocast: Callable[[], AbstractContextManager[Any]]
    ) -> dict[str, float]:
        """Measures of the plain model after `done` steps, "validation/<set>/<loss>", means over meshes.

        Notes the best step and its weights; the model's mode is put back.
        """
        training, result = model.training, {}
        device = next(model.parameters()).device
        model.eval()
        for name, batches in self.validation.batches.items():
            if name not in self._batches:  # kept on the device, with what `losses` adds to them
                self._batches[name] = [(send_to_device(batch, device), count) for batch, count in batches]
            on_device = self._batches[name]
            sums: dict[str, float] = {}
            for batch, count in on_device:
                with autocast():
                    losses = self.validation.losses(model, batch, done - 1)
                for key, value in losses.items():
                    sums[key] = sums.get(key, 0.0) + float(value) * count
            meshes = sum(count for _, count in on_device)
            result.update({f"{name}/{key}": total / meshes for key, total in sums.items()})
        model.train(training)
        if done > self.first_step:
            self._compare(result[self.validation.measure], model, done)
        return {f"validation/{key}": value for key, value in result.items()}

    def _compare(self, value: float, model: nn.Module, done: int) -> None:
        if not math.isfinite(value):
            raise RunFailedError(
                f"validation/{self.validation.measure} is {value} after step {done}; lower "
                "'loop.learning_rate' and run the command again to resume from the last checkpoint"
            )
        sign = -1 if self.validation.measure.rpartition("/")[2] in MORE_IS_BETTER else 1
        if self.best is not None and not sign * value < sign * self.best:
            self.worse += 1
            return
        self.best, self.best_step, self.worse = value, done, 0
        if self.validation.recipe.keep == "best":
            self.weights = {
                name: parameter.detach().to("cpu", copy=True) for name, parameter in model.named_parameters()
            }

    @torch.no_grad()
    def restore(self, model: nn.Module) -> None:
        """Put the best step's weights into the plain model."""
        for name, parameter in model.named_parameters():
            parameter.copy_(self.weights[name])

    def save(self, folder: Path) -> None:
        """Write the state into a checkpoint's folder."""
        state = {"best": self.best, "best_step": self.best_step, "worse": self.worse}
        (folder / _STATE).write_text(json.dumps({"measure": self.validation.measure, **state}))
        if self.weights:
            save_file(self.weights, folder / _WEIGHTS)

    def load(self, folder: Path) -> None:
        """Resume from a checkpoint; RecipeError if its best step was not kept or had another measure."""
        file = folder / _STATE
        keep = self.validation.recipe.keep == "best"
        if not file.is_file():
            if keep:
                raise RecipeError(
                    f"'validation.keep': the run behind '{folder}' was not validated so far; set it to last, "
                    "or start over with loop.resume=false"
                )
            return
        state = json.loads(file.read_text())
        if state["measure"] != self.validation.measure:
            raise RecipeError(
                f"'validation.measure': '{folder}' was judged by {state['measure']}, not by "
                f"{self.validation.measure}; keep that measure, or start over with loop.resume=false"
            )
        if keep and state["best"] is not None and not (folder / _WEIGHTS).is_file():
            raise RecipeError(
                f"'validation.keep': '{folder}' has not kept the weights of its best step; set it to "
                "last, or start over with loop.resume=false"
            )
        self.best, self.best_step, self.worse = state["best"], state["best_step"], state["worse"]
        if keep and self.best is not None:
            self.weights = load_file(folder / _WEIGHTS)
