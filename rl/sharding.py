"""Weights split over processes (ZeRO-3, FSDP2): splits a model, gathers it for sampling and for export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from trl.models.utils import add_hooks, remove_hooks

from policy.tokenrig.modeling import TokenRigForCausalLM


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
