"""Refuses launches that training does not support, and output directories that not all machines share."""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from trl import GRPOConfig

from data.typed_recipe import RecipeError
from rl.recipe import Recipe

_FOLDER = "recipes/accelerate"


def check_launch(args: GRPOConfig, recipe: Recipe) -> None:
    """Refuse a launch that this project cannot train under (RecipeError).

    Supported are one process, DDP, DeepSpeed ZeRO stages 1 to 3, and FSDP2 with the model as one unit, on one
    machine or several.
    """
    if several_machines() and recipe.workers.backend == "ray" and recipe.ray.address is None:
        raise RecipeError(
            "the run has processes on several machines, but a local Ray serves one; start a Ray cluster on "
            "all of them (docs/parallel.md) and set 'ray.address' to auto, or set 'workers.backend' to inline"
        )
    if args.fsdp:
        raise RecipeError(
            "'train.fsdp' is not supported: FSDP is set up by the launcher; remove the key and use "
            f"accelerate launch --config_file {_FOLDER}/fsdp2.yaml"
        )
    if _flag("ACCELERATE_USE_MEGATRON_LM") or _flag("ACCELERATE_USE_PARALLELISM_CONFIG"):
        raise RecipeError(
            "the accelerate configuration enables Megatron-LM or tensor, context or sequence parallelism, "
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
                "checkpoints, which need a whole model.safetensors; set 'zero3_save_16bit_model: true', as "
                f"in {_FOLDER}/zero3.yaml"
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


def several_machines() -> bool:
    """Whether the run has processes on other machines, by what accelerate or torchrun has set."""
    everywhere = int(os.environ.get("WORLD_SIZE", "1"))
    return int(os.environ.get("LOCAL_WORLD_SIZE", str(everywhere))) < everywhere


def check_shared(output: Path) -> None:
    """Raise RecipeError on all processes unless all see the main process's output directory.

    Every process writes its part of a checkpoint there, and reads it to resume. Does nothing for one machine;
    otherwise all processes must call it together.
    """
    if not several_machines():
        return
    state = PartialState()
    name = [f".shared-{uuid.uuid4().hex}"]
    broadcast_object_list(name)
    mark = output / name[0]
    if state.is_main_process:
        mark.touch()
    state.wait_for_everyone()
    blind = sorted(set(gather_object([] if mark.exists() else [socket.gethostname()])))
    state.wait_for_everyone()
    if state.is_main_process:
        mark.unlink()
    if blind:
        raise RecipeError(
            f"'output_dir' {output} is not the same directory on {', '.join(blind)} as on the first machine; "
            "choose one on a file system that all machines share"
        )
