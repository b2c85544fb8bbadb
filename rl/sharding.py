"""Weights split over the processes of a run: what is supported, whole weights for sampling and for export."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from trl import GRPOConfig
from trl.models.utils import add_hooks, remove_hooks

from data.typed_recipe import RecipeError
from policy.tokenrig.modeling import TokenRigForCausalLM

_FOLDER = "recipes/accelerate"


def check_launch(args: GRPOConfig) -> None:
    """Refuse a launch that this project cannot train under (RecipeError); supported are one process, DDP,
    DeepSpeed ZeRO stages 1 to 3, and FSDP2 with the model as one unit."""
    if args.fsdp:
        raise RecipeError(
            "'train.fsdp' is not supported: FSDP is set up by the launcher; remove the key and use "
            f"accelerate launch --config_file {_FOLDER}/fsdp2.yaml"
        )
    if _flag("ACCELERATE_USE_MEGATRON_LM") or _flag("ACCELERATE_USE_PARALLELISM_CONFIG"):
        raise RecipeError(
            "the accelerate configuration asks for Megatron-LM or for tensor, context or sequence parallelism, "
            f"which split the model's layers; use {_FOLDER}/multi_gpu.yaml"
        )
    if _flag("ACCELERATE_USE_FSDP"):
        _check_fsdp()
    plugin = args.deepspeed_plugin
    if plugin is not None and plugin.zero_stage == 3:
        zero = plugin.deepspeed_config.get("zero_optimization", {})
        if not zero.get("stage3_gather_16bit_weights_on_model_save"):
            raise RecipeError(
                "ZeRO-3 splits the weights, and this accelerate configuration does not gather them for "
                "checkpoints, which need a whole model.safetensors; set 'zero3_save_16bit_model: true', as in "
                f"{_FOLDER}/zero3.yaml"
            )


def _check_fsdp() -> None:
    """Refuse FSDP 1, and settings of FSDP2 that one unit for the whole model does not have."""
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise RecipeError(
            "FSDP 1 flattens the weights, which the rollout engine and LoRA need one by one; set "
            f"'fsdp_version: 2', as in {_FOLDER}/fsdp2.yaml"
        )
    needed = {
        "FSDP_AUTO_WRAP_POLICY": ("fsdp_auto_wrap_policy", "NO_WRAP", "the model is sharded as one unit"),
        "FSDP_STATE_DICT_TYPE": (
            "fsdp_state_dict_type",
            "FULL_STATE_DICT",
            "checkpoints need a whole model.safetensors",
        ),
        "FSDP_OFFLOAD_PARAMS": ("fsdp_offload_params", "false", "weights stay on the GPUs"),
        "FSDP_CPU_RAM_EFFICIENT_LOADING": (
            "fsdp_cpu_ram_efficient_loading",
            "false",
            "every process loads the weights itself",
        ),
        "FSDP_ACTIVATION_CHECKPOINTING": (
            "fsdp_activation_checkpointing",
            "false",
            "'train.gradient_checkpointing' does this",
        ),
    }
    for variable, (key, value, reason) in needed.items():
        found = os.environ.get(variable)
        if found is not None and found.lower() != value.lower():
            raise RecipeError(
                f"the accelerate configuration sets '{key}: {found}'; set it to {value}, as in "
                f"{_FOLDER}/fsdp2.yaml: {reason}"
            )


def _flag(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("1", "true", "yes", "on")


def shard(model: nn.Module, accelerator: Accelerator) -> None:
    """Under FSDP2, split the model's weights over the processes, as one unit; otherwise do nothing.

    A forward pass gathers all of them at once, so that it may read weights directly, as the packed pass and
    the sliced head do. accelerate's own wrapping would gather a layer's when that layer is called. Weights
    keep their dtype; autocast chooses that of the computation, as without FSDP.
    """
    if not accelerator.is_fsdp2:
        return
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if not isinstance(model, FSDPModule):
        fully_shard(model)


@contextmanager
def whole_weights(model: Any, accelerator: Accelerator) -> Iterator[None]:
    """Within the block every process holds the model's whole weights, and its forward pass gathers nothing.

    All processes must enter together, and may then run the model as often as each likes. Does nothing unless
    the weights are split (ZeRO-3, FSDP2). The block must not change the weights.

    model: as prepared by accelerate.
    """
    if _is_zero_3(accelerator):
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(model.parameters())):
            remove_hooks(model)  # they would split each weight again after its use
            try:
                yield
            finally:
                add_hooks(model)
    elif accelerator.is_fsdp2:
        model.unshard()
        try:
            yield  # the unit keeps its weights after a forward pass
        finally:
            model.reshard()
    else:
        yield


def whole_model(model: Any, accelerator: Accelerator) -> TokenRigForCausalLM:
    """The trained model with its adapters merged, as one process has it; all processes must call this together.

    model: as prepared by accelerate; of no use afterwards. Split weights (ZeRO-3, FSDP2) are gathered into a
    new model in every process.
    """
    # Remove the mixed-precision wrapper, so that the model evaluated is the model saved.
    trained: Any = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    adapted = hasattr(trained, "merge_and_unload")
    if not _is_split(accelerator):
        return trained.merge_and_unload() if adapted else trained
    with whole_weights(model, accelerator), torch.no_grad():
        if adapted:
            trained.merge_adapter()  # into the gathered weights, which are dropped at the end of the block
        weights = {
            name.removeprefix("base_model.model.").replace(".base_layer.", "."): value.clone()
            for name, value in [*trained.named_parameters(), *trained.named_buffers()]
            if ".lora_" not in name
        }
    whole = TokenRigForCausalLM(trained.config).to(accelerator.device, trained.dtype)
    missing = whole.load_state_dict(weights, strict=False).missing_keys
    assert set(missing) <= set(whole.all_tied_weights_keys), missing
    return whole


def _is_split(accelerator: Accelerator) -> bool:
    return accelerator.is_fsdp2 or _is_zero_3(accelerator)


def _is_zero_3(accelerator: Accelerator) -> bool:
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return False
    return bool(accelerator.state.deepspeed_plugin.zero_stage == 3)
