"""Tables of TRL's options: those without effect here, allowed words and ranges, and what each needs."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

OWN_SAMPLER = "rollouts come from this project's own sampler"
OWN_EVALUATION = "'eval.every' evaluates on held-out meshes during training"
OWN_ORDER = "this project orders the meshes, so that a resumed run keeps the order"
LAUNCHER = "accelerate's configuration file chooses it, see recipes/accelerate"
NO_UPLOAD = "a run writes to 'output_dir' only; upload its policy/ folder when it is done"
_NO_LABELS = "TRL's GRPO loss has no labels"

# Options of TRL and transformers that nothing reads here, by reason. Any value but TRL's default is refused.
UNUSED: dict[str, tuple[str, ...]] = {
    OWN_SAMPLER: (
        "vllm_mode",
        "vllm_model_impl",
        "vllm_enable_sleep_mode",
        "vllm_structured_outputs_regex",
        "vllm_server_base_url",
        "vllm_server_host",
        "vllm_server_port",
        "vllm_server_timeout",
        "vllm_group_port",
        "vllm_gpu_memory_utilization",
        "vllm_max_model_length",
        "vllm_tensor_parallel_size",
        "vllm_importance_sampling_correction",
        "vllm_importance_sampling_mode",
        "vllm_importance_sampling_clip_max",
        "vllm_importance_sampling_clip_min",
        "vllm_importance_sampling_cap",
        "ds3_gather_for_generation",
        "transformers_continuous_batching_config",
        "max_tool_calling_iterations",
    ),
    OWN_EVALUATION: (
        "do_eval",
        "eval_steps",
        "eval_delay",
        "per_device_eval_batch_size",
        "num_generations_eval",
        "prediction_loss_only",
        "eval_do_concat_batches",
        "eval_use_gather_object",
        "eval_accumulation_steps",
        "include_for_metrics",
        "batch_eval_metrics",
        "bf16_full_eval",
        "fp16_full_eval",
        "metric_for_best_model",
        "greater_is_better",
    ),
    NO_UPLOAD: (
        "hub_token",
        "hub_private_repo",
        "hub_model_id",
        "hub_strategy",
        "hub_always_push",
        "hub_revision",
        "log_completions_hub_repo",
    ),
    OWN_ORDER: ("train_sampling_strategy", "length_column_name", "dataloader_drop_last"),
    _NO_LABELS: (
        "label_names",
        "label_smoothing_factor",
        "average_tokens_across_devices",
        "include_num_input_tokens_seen",
    ),
    "the command decides what runs": ("do_train", "do_predict"),
    "the launcher sets the rank": ("local_rank",),
    "'train.use_liger_kernel' is off": ("liger_kernel_config",),
    "'train.sync_ref_model' is off": ("ref_model_mixup_alpha", "ref_model_sync_steps"),
    "'train.torch_compile' is off": ("torch_compile_backend", "torch_compile_mode"),
    "training passes keep no cache, and rollouts have their own": ("use_cache",),
    "the policy has no dropout": ("disable_dropout",),
    "rollouts hold no images": ("log_multimodal",),
    "no callback of a run has a state to restore": ("restore_callback_states_from_checkpoint",),
}
NO_EFFECT: dict[str, str] = {key: reason for reason, keys in UNUSED.items() for key in keys}

_LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo")
_CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
_LOG_LEVELS = ("debug", "info", "warning", "error", "critical", "passive")

# Options that take one of a few words, of which some need an evaluation or an epoch that a run does not have.
CHOICES: dict[str, tuple[str | None, ...]] = {
    "loss_type": _LOSSES,
    "importance_sampling_level": ("token", "sequence"),
    "scale_rewards": ("group", "batch", "none"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "lr_scheduler_type": (
        "constant",
        "constant_with_warmup",
        "linear",
        "cosine",
        "cosine_with_restarts",
        "polynomial",
        "inverse_sqrt",
        "cosine_with_min_lr",
        "cosine_warmup_with_min_lr",
        "warmup_stable_decay",
    ),
    "logging_strategy": ("steps", "no"),
    "save_strategy": ("steps", "no"),
    "log_level": _LOG_LEVELS,
    "log_level_replica": _LOG_LEVELS,
    "ddp_backend": (None, "nccl", "gloo", "mpi", "ccl", "xccl", "hccl", "cncl", "mccl"),
    "dataloader_multiprocessing_context": (None, "fork", "spawn", "forkserver"),
}


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, without the ends that are open; `step`: whole, or a share below 1."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False
    step: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below and (not self.step or value < 1 or value == int(value))

    def __str__(self) -> str:
        ends = [
            f"{name}{end:g}"
            for end, name in (
                (self.low, "above " if self.low_open else "at least "),
                (self.high, "below " if self.high_open else "at most "),
            )
            if math.isfinite(end)
        ]
        return " and ".join(ends) + (", and a whole number of steps or a share below 1" if self.step else "")


_POSITIVE = Range(0, low_open=True)
_NOT_NEGATIVE = Range(0)
_AT_LEAST_1 = Range(1)
_BETA = Range(0, 1, high_open=True)
_SHARE = Range(0, 1)
_SEED = Range(0, 2**32, high_open=True)  # NumPy's seeds have 32 bits

RANGES: dict[str, Range] = {
    # sizes
    "max_steps": _POSITIVE,
    "per_device_train_batch_size": _AT_LEAST_1,
    "gradient_accumulation_steps": _AT_LEAST_1,
    "num_generations": Range(2),
    "num_iterations": _AT_LEAST_1,
    "steps_per_generation": _AT_LEAST_1,
    "generation_batch_size": _AT_LEAST_1,
    "max_completion_length": _AT_LEAST_1,
    # optimiser
    "learning_rate": _NOT_NEGATIVE,
    "warmup_steps": Range(0, step=True),
    "weight_decay": _NOT_NEGATIVE,
    "adam_beta1": _BETA,
    "adam_beta2": _BETA,
    "adam_epsilon": _POSITIVE,
    "max_grad_norm": _NOT_NEGATIVE,
    # loss
    "temperature": _POSITIVE,
    "beta": _NOT_NEGATIVE,
    "epsilon": _POSITIVE,
    "epsilon_high": _POSITIVE,
    "delta": _POSITIVE,
    "sapo_temperature_neg": _POSITIVE,
    "sapo_temperature_pos": _POSITIVE,
    "vespo_k_pos": _POSITIVE,
    "vespo_k_neg": _POSITIVE,
    "vespo_lambda_pos": _POSITIVE,
    "vespo_lambda_neg": _POSITIVE,
    "top_entropy_quantile": _SHARE,
    "off_policy_mask_threshold": _POSITIVE,
    "entropy_coef_delta": _POSITIVE,
    "entropy_target": _NOT_NEGATIVE,
    # logs and checkpoints
    "logging_steps": Range(0, low_open=True, step=True),
    "save_steps": Range(0, low_open=True, step=True),
    "save_total_limit": _AT_LEAST_1,
    "num_completions_to_print": _AT_LEAST_1,
    # process
    "seed": _SEED,
    "data_seed": _SEED,
    "torch_empty_cache_steps": _AT_LEAST_1,
    "dataloader_num_workers": _NOT_NEGATIVE,
    "dataloader_prefetch_factor": _AT_LEAST_1,
    "ddp_bucket_cap_mb": _AT_LEAST_1,
    "ddp_timeout": _AT_LEAST_1,
}

# Options for which TRL accepts null but has no meaning for it.
NOT_NULL = ("num_generations", "max_completion_length", "bf16")

# Options that TRL also takes as JSON text.
MAPPINGS = ("lr_scheduler_kwargs", "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs")

# Packages of optimisers beyond torch's and transformers' own: (module, what pip installs).
_BITSANDBYTES = ("bitsandbytes", "bitsandbytes")
_TORCHAO = ("torchao", "torchao")
_GALORE = ("galore_torch", "galore-torch")
_APOLLO = ("apollo_torch", "apollo-torch")
_SCHEDULE_FREE = ("schedulefree", "schedulefree")
BUILT_IN: dict[str, tuple[str, str] | None] = dict.fromkeys(
    ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")
)
OPTIMIZERS: dict[str, tuple[str, str] | None] = {
    **BUILT_IN,
    "adamw_torch_4bit": _TORCHAO,
    "adamw_torch_8bit": _TORCHAO,
    "adamw_torch_xla": ("torch_xla", "torch_xla"),
    "adamw_torch_npu_fused": ("torch_npu", "torch_npu"),
    "adamw_anyprecision": ("torchdistx", "torchdistx"),
    "adamw_bnb_8bit": _BITSANDBYTES,
    "adamw_8bit": _BITSANDBYTES,
    "paged_adamw_32bit": _BITSANDBYTES,
    "paged_adamw_8bit": _BITSANDBYTES,
    "ademamix": _BITSANDBYTES,
    "ademamix_8bit": _BITSANDBYTES,
    "paged_ademamix_32bit": _BITSANDBYTES,
    "paged_ademamix_8bit": _BITSANDBYTES,
    "lion_32bit": _BITSANDBYTES,
    "lion_8bit": _BITSANDBYTES,
    "paged_lion_32bit": _BITSANDBYTES,
    "paged_lion_8bit": _BITSANDBYTES,
    "rmsprop_bnb": _BITSANDBYTES,
    "rmsprop_bnb_8bit": _BITSANDBYTES,
    "rmsprop_bnb_32bit": _BITSANDBYTES,
    "galore_adamw": _GALORE,
    "galore_adamw_8bit": _GALORE,
    "galore_adafactor": _GALORE,
    "apollo_adamw": _APOLLO,
    "grokadamw": ("grokadamw", "grokadamw"),
    "schedule_free_radam": _SCHEDULE_FREE,
    "schedule_free_adamw": _SCHEDULE_FREE,
    "schedule_free_sgd": _SCHEDULE_FREE,
    "stable_adamw": ("optimi", "torch-optimi"),
}
# transformers has these too, but they change weights while gradients are computed: no step can be skipped.
IN_BACKWARD = (
    "lomo",
    "adalomo",
    "galore_adamw_layerwise",
    "galore_adamw_8bit_layerwise",
    "galore_adafactor_layerwise",
    "apollo_adamw_layerwise",
)
LOW_RANK = tuple(name for name, package in OPTIMIZERS.items() if package in (_GALORE, _APOLLO))
_NO_BETAS = ("adafactor", "sgd", "adagrad", "rmsprop", "schedule_free_sgd", "grokadamw")
_BETAS = tuple(
    name
    for name, package in OPTIMIZERS.items()
    if name not in _NO_BETAS and package != _GALORE and not name.startswith("rmsprop")
)
_EPSILON = tuple(name for name in _BETAS if "lion" not in name)

# Keys of `optim_args`, such as momentum=0.9, that transformers reads for an optimiser; others read none.
OPTIM_ARGS: dict[str, tuple[str, ...]] = {
    "sgd": ("momentum", "dampening", "weight_decay", "nesterov"),
    "adagrad": ("lr_decay", "weight_decay", "eps"),
    "rmsprop": ("momentum", "alpha", "eps", "weight_decay", "centered"),
    **dict.fromkeys(
        (name for name in OPTIMIZERS if "ademamix" in name),
        ("beta1", "beta2", "beta3", "alpha", "eps", "t_alpha", "t_beta3"),
    ),
    **dict.fromkeys(
        (name for name in OPTIMIZERS if name.startswith("rmsprop_bnb")),
        ("alpha", "eps", "momentum", "centered"),
    ),
    **dict.fromkeys(
        (name for name, package in OPTIMIZERS.items() if package == _GALORE),
        ("rank", "update_proj_gap", "scale", "proj_type"),
    ),
    "apollo_adamw": ("rank", "proj", "scale_type", "update_proj_gap", "scale", "proj_type"),
    "adamw_anyprecision": (
        "use_kahan_summation",
        "momentum_dtype",
        "variance_dtype",
        "compensation_buffer_dtype",
    ),
    "adamw_torch_4bit": ("block_size", "bf16_stochastic_round"),
    "adamw_torch_8bit": ("block_size", "bf16_stochastic_round"),
    "grokadamw": ("alpha_init", "lamb", "gamma", "grokking_signal_decay_rate", "gradient_clipping"),
    **dict.fromkeys(
        (name for name, package in OPTIMIZERS.items() if package == _SCHEDULE_FREE), ("weight_lr_power", "r")
    ),
    "stable_adamw": ("max_lr", "kahan_sum", "decouple_lr"),
}
OPTIM_NUMBERS = ("momentum", "dampening", "weight_decay", "lr_decay", "eps", "alpha")
OPTIM_FLAGS = ("nesterov", "centered")

# Options that only act with certain values of another one: key -> (the other key, those values or a range).
NEEDS: dict[str, tuple[str, Collection[Any] | Range]] = {
    "epsilon": ("loss_type", _CLIPPED),
    "epsilon_high": ("loss_type", (*_CLIPPED, "cispo")),
    "delta": ("loss_type", _CLIPPED),
    "sapo_temperature_neg": ("loss_type", ("sapo",)),
    "sapo_temperature_pos": ("loss_type", ("sapo",)),
    "vespo_k_pos": ("loss_type", ("vespo",)),
    "vespo_k_neg": ("loss_type", ("vespo",)),
    "vespo_lambda_pos": ("loss_type", ("vespo",)),
    "vespo_lambda_neg": ("loss_type", ("vespo",)),
    "importance_sampling_level": ("loss_type", tuple(name for name in _LOSSES if name != "vespo")),
    "scale_rewards": ("multi_objective_aggregation", ("sum_then_normalize",)),
    "use_bias_correction_kl": ("beta", _POSITIVE),
    "entropy_coef_min": ("use_adaptive_entropy", (True,)),
    "entropy_coef_max": ("use_adaptive_entropy", (True,)),
    "entropy_coef_delta": ("use_adaptive_entropy", (True,)),
    "entropy_target": ("use_adaptive_entropy", (True,)),
    "num_completions_to_print": ("log_completions", (True,)),
    "log_unique_prompts": ("log_completions", (True,)),
    "gradient_checkpointing_kwargs": ("gradient_checkpointing", (True,)),
    "activation_checkpointing_kwargs": ("gradient_checkpointing", (True,)),
    "dataloader_persistent_workers": ("dataloader_num_workers", _AT_LEAST_1),
    "dataloader_prefetch_factor": ("dataloader_num_workers", _AT_LEAST_1),
    "dataloader_multiprocessing_context": ("dataloader_num_workers", _AT_LEAST_1),
    "warmup_steps": (
        "lr_scheduler_type",
        tuple(name for name in CHOICES["lr_scheduler_type"] if name != "constant"),
    ),
    "lr_scheduler_kwargs": (
        "lr_scheduler_type",
        tuple(
            name for name in CHOICES["lr_scheduler_type"] if not str(name).startswith(("constant", "linear"))
        ),
    ),
    "adam_beta1": ("optim", _BETAS),
    "adam_beta2": ("optim", _BETAS),
    "adam_epsilon": ("optim", _EPSILON),
    "optim_args": ("optim", tuple(OPTIM_ARGS)),
    "optim_target_modules": ("optim", LOW_RANK),
    "project": ("report_to", ("trackio",)),
    "trackio_space_id": ("report_to", ("trackio",)),
    "trackio_bucket_id": ("report_to", ("trackio",)),
    "trackio_static_space_id": ("report_to", ("trackio",)),
}
