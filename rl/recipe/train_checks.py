"""Refuses values of the `train` section that TRL would ignore, or refuse only after the first rollouts."""

from __future__ import annotations

import importlib.util
import inspect
import math
from collections.abc import Collection, Mapping
from typing import Any

from data.typed_recipe import RecipeError, quoting_hint, shown
from rl.recipe.train_options import (
    BUILT_IN,
    CHOICES,
    IN_BACKWARD,
    LOW_RANK,
    MAPPINGS,
    NEEDS,
    NOT_NULL,
    OPTIM_ARGS,
    OPTIM_FLAGS,
    OPTIM_NUMBERS,
    OPTIMIZERS,
    RANGES,
    Range,
)


def check_choices(given: Mapping[str, Any]) -> None:
    """Raise RecipeError for a word that is not among CHOICES, or an optimiser that is unknown or missing."""
    for key, words in CHOICES.items():
        if key in given and not any(given[key] is word or given[key] == word for word in words):
            listed = ", ".join("null" if word is None else str(word) for word in words)
            place = f"train.{key}"
            hint = quoting_hint(place, str, given[key])
            raise RecipeError(f"'{place}' must be one of {listed}, not {shown(given[key])}{hint}")
    name = given.get("optim")
    if name in IN_BACKWARD:
        raise RecipeError(
            f"'train.optim' {name} changes weights while gradients are computed, so a step that is not "
            "finite could not be skipped; choose another optimiser, such as adamw_torch"
        )
    if "optim" in given and name not in OPTIMIZERS:
        raise RecipeError(f"'train.optim' must be one of {', '.join(OPTIMIZERS)}, not {shown(name)}")
    package = OPTIMIZERS.get(str(name))
    if package is not None and importlib.util.find_spec(package[0]) is None:
        raise RecipeError(
            f"'train.optim' {name} needs the package {package[0]}, which is not installed; pip install "
            f"{package[1]}, or choose one of {', '.join(BUILT_IN)}"
        )


def check_ranges(given: Mapping[str, Any]) -> None:
    """Raise RecipeError for a number outside its range, or null where it has no meaning."""
    for key in NOT_NULL:
        if key in given and given[key] is None:
            raise RecipeError(f"'train.{key}' must not be null; set a value or remove it")
    for key in MAPPINGS:
        if isinstance(given.get(key), str):
            raise RecipeError(
                f"'train.{key}' must be a section of keys, such as {{name: value}}, not {shown(given[key])}"
            )
    for key, allowed in RANGES.items():
        value = given.get(key)
        if value is not None and value not in allowed:
            raise RecipeError(f"'train.{key}' must be {allowed}, not {value}")


def check_needs(train: Mapping[str, Any], given: Collection[str], defaults: Mapping[str, Any]) -> None:
    """Raise RecipeError for a key in `given` that does nothing because of another one's value in `train`."""
    if train["activation_checkpointing"] is not None:  # the new name of the same option
        train = {**train, "gradient_checkpointing": train["activation_checkpointing"]}
    for key, (other, values) in NEEDS.items():
        if key not in given or train[key] == defaults[key]:
            continue
        found = train[other]
        words = found if isinstance(found, list) else [found]
        if any(word in values for word in words if word is not None):
            continue
        wanted = str(values) if isinstance(values, Range) else " or ".join(map(shown_word, values))
        raise RecipeError(
            f"'train.{key}' has no effect with 'train.{other}' {shown_word(found)}; set 'train.{other}' to "
            f"{wanted}, or 'train.{key}' to its default, {shown_word(defaults[key])}"
        )


def check_combinations(train: Mapping[str, Any]) -> None:
    """Raise RecipeError for values that exclude each other; `train` is complete."""
    if train["fp16"] and train["bf16"]:
        raise RecipeError("'train.fp16' and 'train.bf16' are both true; choose one precision")
    if train["steps_per_generation"] is not None and train["generation_batch_size"] is not None:
        raise RecipeError(
            "'train.steps_per_generation' and 'train.generation_batch_size' set the same thing; keep "
            "one of them"
        )
    if train["loss_type"] == "luspo" and train["importance_sampling_level"] != "sequence":
        raise RecipeError(
            "'train.loss_type' luspo is a loss of whole sequences; set "
            "train.importance_sampling_level=sequence"
        )
    if train["loss_type"] == "cispo" and not (train["epsilon_high"] or 0) >= 1:
        raise RecipeError(
            "'train.loss_type' cispo limits the importance ratio to 'train.epsilon_high' itself, which must "
            f"be at least 1, not {shown(train['epsilon_high'])}; set train.epsilon_high=5"
        )
    high = train["epsilon"] if train["epsilon_high"] is None else train["epsilon_high"]
    if train["delta"] is not None and train["delta"] <= 1 + high:
        raise RecipeError(
            f"'train.delta' must be above 1 + epsilon = {1 + high:g}, the upper clip, not {train['delta']}"
        )
    if not train["entropy_coef_min"] <= train["entropy_coef_max"]:
        raise RecipeError(
            f"'train.entropy_coef_min' {train['entropy_coef_min']} is above 'train.entropy_coef_max' "
            f"{train['entropy_coef_max']}; swap them"
        )
    saving, same = train["gradient_checkpointing"], train["activation_checkpointing"]
    if same is not None and saving and not same:
        raise RecipeError(
            "'train.activation_checkpointing' is the new name of 'train.gradient_checkpointing', and they "
            "differ; keep one of them"
        )
    _check_optimizer(train)
    _check_schedule(train)
    _check_checkpointing(train)


def _check_optimizer(train: Mapping[str, Any]) -> None:
    name = str(train["optim"])
    if name in LOW_RANK and not train["optim_target_modules"]:
        raise RecipeError(
            f"'train.optim' {name} needs the layers it projects; set train.optim_target_modules=all-linear"
        )
    known = OPTIM_ARGS.get(name, ())
    for part in (train["optim_args"] or "").replace(" ", "").split(","):
        key, separator, value = part.partition("=")
        if not part:
            continue
        if not separator or not value or key not in known:
            raise RecipeError(
                f"'train.optim_args' has '{part}'; {name} takes a list such as '{known[0]}=…', with the keys "
                f"{', '.join(known)}"
            )
        if key in OPTIM_FLAGS and value.lower() not in ("true", "false"):
            raise RecipeError(f"'train.optim_args': {key} must be true or false, not '{value}'")
        if key in OPTIM_NUMBERS and not _is_number(value):
            raise RecipeError(
                f"'train.optim_args': {key} must be a number that is not negative, not '{value}'"
            )


def _is_number(text: str) -> bool:
    try:
        return 0 <= float(text) < math.inf
    except ValueError:
        return False


def _check_schedule(train: Mapping[str, Any]) -> None:
    """Refuse what the schedule of the learning rate refuses, by building it."""
    name, keys = train["lr_scheduler_type"], train["lr_scheduler_kwargs"] or {}
    if not keys and name in ("constant", "linear", "cosine", "constant_with_warmup"):
        return
    import torch
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, SchedulerType, get_scheduler

    ours = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")
    known = [
        key
        for key in inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)]).parameters
        if key not in ours
    ]
    for key in keys:
        if key not in known:
            raise RecipeError(
                f"unknown key 'train.lr_scheduler_kwargs.{key}'; '{name}' takes {', '.join(known) or 'none'}"
            )
    warmup, steps = train["warmup_steps"], train["max_steps"]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=train["learning_rate"] or 1.0)
    try:
        schedule = get_scheduler(
            name, optimizer, math.ceil(warmup * steps) if warmup < 1 else int(warmup), steps, keys
        )
        assert schedule is not None
        rates = [one(step) for one in schedule.lr_lambdas for step in (0, steps // 2, steps)]
        if not all(isinstance(rate, int | float) and rate >= 0 for rate in rates):
            raise ValueError("the learning rate would be negative")
    except (ValueError, TypeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(
            f"'train.lr_scheduler_type' {name} cannot be used like this ({reason}); set its "
            f"'train.lr_scheduler_kwargs': {', '.join(known)}"
        ) from error


def _check_checkpointing(train: Mapping[str, Any]) -> None:
    """Refuse keys that torch's checkpointing does not take."""
    from torch.utils.checkpoint import checkpoint

    known = [*list(inspect.signature(checkpoint).parameters)[2:-1], "preserve_rng_state"]
    known = [key for key in known if key not in ("args", "kwargs", "context_fn")]
    for name in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        for key, value in (train[name] or {}).items():
            if key not in known:
                raise RecipeError(f"unknown key 'train.{name}.{key}'; torch takes {', '.join(known)}")
            words = ("default", "none") if key == "determinism_check" else (True, False)
            if not any(value is word or value == word for word in words):
                listed = " or ".join(map(shown_word, words))
                raise RecipeError(f"'train.{name}.{key}' must be {listed}, not {shown(value)}")


def shown_word(value: Any) -> str:
    """A value as a recipe writes it, words without quotes."""
    return value if isinstance(value, str) else shown(value)
