"""The recipe's `train` section, TRL's GRPOConfig: this project's defaults, fixed keys and checks."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from data.typed_recipe import RecipeError, check_keys, check_types, quoting_hint, shown
from rl.recipe.train_checks import check_choices, check_combinations, check_needs, check_ranges
from rl.recipe.train_options import (
    LAUNCHER,
    NO_EFFECT,
    NO_UPLOAD,
    OWN_EVALUATION,
    OWN_ORDER,
    OWN_SAMPLER,
)

# Defaults of this project, each with its reason. A recipe may override all but those in FIXED.
_DEFAULTS: dict[str, tuple[Any, str]] = {
    "learning_rate": (1e-6, "the paper's value"),
    "num_generations": (24, "the paper's group size"),
    "per_device_train_batch_size": (24, "one group of 24 per step on one device"),
    "gradient_accumulation_steps": (1, "a batch of 24 is one group"),
    "max_completion_length": (2048, "the limit of the released system; 55 bones take 400 to 600 tokens"),
    "max_steps": (1400, "the length of the released run; the paper's text says 800"),
    "beta": (0.1, "the paper's KL coefficient"),
    "epsilon": (0.2, "the paper's clip range"),
    "loss_type": ("grpo", "the paper's loss"),
    "temperature": (1.0, "rollouts are sampled from the policy's own distribution"),
    "bf16": (False, "recipes run on a CPU by default; GPU recipes enable it"),
    "gradient_checkpointing": (False, "small policies do not need it; GPU recipes enable it"),
    "lr_scheduler_type": ("constant", "a run can be extended without changing its earlier steps"),
    "logging_steps": (1, "every step is logged"),
    "save_steps": (100, "little is lost when a run is stopped"),
    "save_total_limit": (2, "checkpoints are large, and resuming needs only the last"),
    "report_to": ("none", "no account is needed to run a recipe"),
    "seed": (42, "the same runs for everyone"),
    "remove_unused_columns": (False, "the rewards read every column"),
    "dataloader_pin_memory": (False, "prompts are tiny, and pinning warns on a CPU"),
    "ddp_find_unused_parameters": (False, "every trained weight takes part in every pass"),
    "log_completions": (False, "a rig of hundreds of tokens does not fit into a table"),
    "disable_tqdm": (False, "a run shows its progress"),
}
TRAIN_DEFAULTS: dict[str, Any] = {key: value for key, (value, _) in _DEFAULTS.items()}

_ONE_DISTRIBUTION = "sampling and training must use one distribution"
_RESUMABLE = "resuming needs complete checkpoints"

# Keys that cannot be changed: the only value, and the reason. A recipe that sets another value is refused
# rather than silently ignored.
FIXED: dict[str, tuple[Any, str]] = {
    "top_p": (1.0, _ONE_DISTRIBUTION),
    "top_k": (0, _ONE_DISTRIBUTION),
    "min_p": (None, _ONE_DISTRIBUTION),
    "repetition_penalty": (1.0, _ONE_DISTRIBUTION),
    "use_vllm": (False, OWN_SAMPLER),
    "use_transformers_continuous_batching": (False, OWN_SAMPLER),
    "use_transformers_paged": (False, OWN_SAMPLER),
    "generation_kwargs": (None, OWN_SAMPLER),
    "cache_implementation": (None, OWN_SAMPLER),
    "chat_template_kwargs": (None, "prompts are not conversations"),
    "use_liger_kernel": (False, "the model itself computes grammar-masked log-probabilities"),
    "model_init_kwargs": (None, "policy and reference policy are loaded as 'policy' specifies"),
    "pad_to_multiple_of": (None, "padding would move the mesh handle away from the start of the prompt"),
    "remove_unused_columns": (False, "the rewards read every column"),
    "num_train_epochs": (3.0, "'train.max_steps' sets the length of a run"),
    "shuffle_dataset": (False, OWN_ORDER),
    "eval_strategy": ("no", OWN_EVALUATION),
    "logging_nan_inf_filter": (False, "it would log a loss that is not finite as the mean of the others"),
    "eval_on_start": (False, OWN_EVALUATION),
    "load_best_model_at_end": (False, "'eval.every' keeps the best policy in policy_best/"),
    "ignore_data_skip": (False, OWN_ORDER),
    "dataloader_in_order": (True, OWN_ORDER),
    "sync_ref_model": (
        False,
        "checkpoints hold no reference policy, so a resumed run would have another; train in stages, each "
        "with the last one's policy/ folder as 'policy.path', which is then the reference",
    ),
    "save_only_model": (False, _RESUMABLE),
    "save_on_each_node": (False, "checkpoints are written once, to 'output_dir', which all nodes share"),
    "enable_jit_checkpoint": (False, "a run saves a checkpoint when it receives SIGTERM as it is"),
    "push_to_hub": (False, NO_UPLOAD),
    "cast_lm_head_to_fp32": (False, "the model computes log-probabilities in float32 already"),
    "torch_compile": (False, "the lengths of a batch change in every step, and each would be compiled anew"),
    "neftune_noise_alpha": (None, _ONE_DISTRIBUTION),
    "router_aux_loss_coef": (None, "the policy is no mixture of experts"),
    "trust_remote_code": (False, "a policy folder holds no code"),
    "debug": ("", "'train_guard' reports steps that are not finite"),
    "auto_find_batch_size": (False, "a smaller batch would break up the groups"),
    "accelerator_config": (None, LAUNCHER),
    "parallelism_config": (None, LAUNCHER),
    "fsdp": (None, LAUNCHER),
    "fsdp_config": (None, LAUNCHER),
    "deepspeed": (None, LAUNCHER),
}

# Keys of `train` that another key of the recipe sets.
SET_ELSEWHERE = {
    "output_dir": "'output_dir' at the top of the recipe",
    "reward_weights": "'rewards.<name>.weight'",
    "resume_from_checkpoint": "'resume' at the top of the recipe",
}


def check_train(given: Mapping[str, Any]) -> dict[str, Any]:
    """The `train` section checked against GRPOConfig and completed with this project's defaults.

    Raises:
        RecipeError: a key or value is unknown, has the wrong type, is fixed here or is out of range.
    """
    from trl import GRPOConfig  # takes seconds: import it only when a recipe is used

    check_keys(GRPOConfig, given, "train")
    theirs = {field.name: field.default for field in fields(GRPOConfig)}
    for key in given:
        if key in SET_ELSEWHERE:
            raise RecipeError(f"'train.{key}' is set by {SET_ELSEWHERE[key]}; use that instead")
        if key in FIXED and given[key] != FIXED[key][0]:
            value, reason = FIXED[key]
            hint = quoting_hint(f"train.{key}", type(value), given[key])
            raise RecipeError(f"'train.{key}' must be {shown(value)}: {reason}{hint}")
        if key in NO_EFFECT and given[key] != theirs[key]:
            raise RecipeError(f"'train.{key}' has no effect, remove it: {NO_EFFECT[key]}")
    check_choices(given)
    check_types(GRPOConfig, given, "train")
    check_ranges(given)
    merged = {**TRAIN_DEFAULTS, **given}
    complete = {**theirs, **merged}
    check_needs(complete, given, {**theirs, **TRAIN_DEFAULTS})
    check_combinations(complete)
    _check_group(merged)
    _check_reporting(merged["report_to"])
    return merged


def train_docs() -> dict[str, str]:
    """The sentence of every GRPOConfig key: the first of TRL's help, then what differs here and why."""
    from trl import GRPOConfig

    docs = {}
    for field in fields(GRPOConfig):
        notes = [first_sentence(field.metadata.get("help", ""))]
        if field.name in SET_ELSEWHERE:
            notes.append(f"Not allowed here: it is set by {SET_ELSEWHERE[field.name]}.")
        elif field.name in FIXED:
            notes.append(f"Fixed: {FIXED[field.name][1]}.")
        elif field.name in NO_EFFECT:
            notes.append(f"No effect here: {NO_EFFECT[field.name]}.")
        elif field.name in _DEFAULTS:
            value, reason = _DEFAULTS[field.name]
            other = f"TRL's is {yaml_value(field.default)}" if field.default != value else "also TRL's"
            notes.append(f"Default {yaml_value(value)} ({other}): {reason}.")
        docs[field.name] = " ".join(filter(None, notes))
    return docs


def changed_defaults() -> dict[str, tuple[Any, Any, str]]:
    """(this project's default, TRL's, reason) of each key whose default differs from TRL's."""
    from trl import GRPOConfig

    theirs = {field.name: field.default for field in fields(GRPOConfig)}
    return {
        key: (value, theirs[key], reason)
        for key, (value, reason) in _DEFAULTS.items()
        if key not in FIXED and theirs[key] != value
    }


def first_sentence(text: str) -> str:
    """The first sentence of a help text, with a full stop; argparse's '%%' becomes '%'."""
    first = re.split(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)\s+(?=[^a-z])", text.strip(), maxsplit=1)[0]
    return first.replace("%%", "%") + ("" if not first or first.endswith((".", "!", "?")) else ".")


def yaml_value(value: Any) -> str:
    """A value as a recipe would write it on one line, such as `null`, `true` or `[a, b]`."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(yaml_value, value))}]"
    if isinstance(value, float):
        return re.sub(r"e-0*", "e-", repr(value))
    return str(value)


def _check_group(train: Mapping[str, Any]) -> None:
    """Raise RecipeError unless groups fill whole batches of rollouts."""
    group = train["num_generations"]
    rows, processes = train["per_device_train_batch_size"], int(os.environ.get("WORLD_SIZE", "1"))
    steps = train.get("steps_per_generation") or train["gradient_accumulation_steps"]
    batch = train.get("generation_batch_size") or rows * processes * steps
    if batch % group:
        made_of = (
            "generation_batch_size"
            if train.get("generation_batch_size")
            else f"per_device_train_batch_size {rows} x {processes} processes x {steps} batches"
        )
        raise RecipeError(
            f"'train.num_generations' {group} does not divide the {batch} rollouts of a step ({made_of}); "
            "change one of them"
        )
    if batch % (rows * processes):
        raise RecipeError(
            f"'train.generation_batch_size' {batch} is not a multiple of the {rows * processes} rows of a "
            f"batch (per_device_train_batch_size {rows} x {processes} processes); change one of them"
        )


def _check_reporting(report_to: str | Sequence[str] | None) -> None:
    """Raise RecipeError for a reporting integration that is unknown or not installed."""
    names = [report_to] if isinstance(report_to, str) else list(report_to or [])
    if len(names) > 1 and {"none", "all"} & set(names):
        word = "none" if "none" in names else "all"
        raise RecipeError(
            f"'train.report_to' has {word} beside others; remove it, or set report_to to {word}"
        )
    if set(names) <= {"none", "all"}:
        return
    from transformers.integrations import get_available_reporting_integrations

    for name in names:
        if name not in get_available_reporting_integrations():
            own = name in ("wandb", "tensorboard")  # extras of this project
            how = f"pip install 'tokenrig-rl[{name}]'" if own else "install its package"
            raise RecipeError(f"'train.report_to': {name} is not installed; {how}, or use none")
