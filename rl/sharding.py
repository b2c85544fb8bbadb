"""Weights split over processes (ZeRO-3, FSDP2): splits a model, gathers it for sampling and for saving."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from trl.models.utils import add_hooks, remove_hooks

from policy.tokenrig.modeling import TokenRigForCausalLM
from rl.engine.weights import merged_weight


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
    """The trained model with its adapters merged, as one process has it; all processes call this together.

    model: as prepared by accelerate; of no use afterwards. Split weights (ZeRO-3, FSDP2) are gathered into a
    new model in every process.
    """
    # Remove the mixed-precision wrapper, so that the model evaluated is the model saved.
    trained: Any = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    if not _is_split(accelerator):
        return trained.merge_and_unload() if hasattr(trained, "merge_and_unload") else trained
    with whole_weights(model, accelerator):
        return _merged_copy(trained, accelerator.device)


def model_to_save(model: Any, accelerator: Accelerator) -> TokenRigForCausalLM:
    """The model as it is now in the middle of training, with its adapters merged, to be saved at once.

    Call it inside `whole_weights`, in one process or several; the model and its training stay as they are. It
    is the model itself if it has neither adapters nor split weights, and otherwise a copy on the CPU. Making
    the copy draws random numbers.

    model: as prepared by accelerate.
    """
    trained: Any = accelerator.unwrap_model(model)
    if not _is_split(accelerator) and not hasattr(trained, "get_base_model"):
        return trained
    return _merged_copy(trained, torch.device("cpu"))


@torch.no_grad()
def _merged_copy(trained: Any, device: torch.device) -> TokenRigForCausalLM:
    """A new model with the weights of `trained`, which are whole, and its adapters merged into them."""
    base = trained.get_base_model() if hasattr(trained, "get_base_model") else trained
    weights = dict(_merged_weights(base, ""))
    copy = TokenRigForCausalLM(base.config).to(device, base.dtype)
    # A weight that is tied to another is listed once.
    missing = copy.load_state_dict(weights, strict=False).missing_keys
    assert set(missing) <= set(copy.all_tied_weights_keys), missing
    return copy


def _merged_weights(module: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Weights and buffers by their names without PEFT, LoRA adapters merged into them."""
    if hasattr(module, "get_delta_weight"):
        yield f"{name}weight", merged_weight(module)
        bias = getattr(module.get_base_layer(), "bias", None)
        if bias is not None:
            yield f"{name}bias", bias
        return
    if hasattr(module, "modules_to_save"):  # a part that is trained as a copy beside the adapters
        yield from _merged_weights(module.modules_to_save[module.active_adapters[0]], name)
        return
    for key, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        yield f"{name}{key}", value
    for key, child in module.named_children():
        yield from _merged_weights(child, f"{name}{key}.")


def _is_split(accelerator: Accelerator) -> bool:
    return accelerator.is_fsdp2 or _is_zero_3(accelerator)


def _is_zero_3(accelerator: Accelerator) -> bool:
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return False
    return bool(accelerator.state.deepspeed_plugin.zero_stage == 3)
