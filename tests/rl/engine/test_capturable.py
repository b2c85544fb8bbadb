"""A decoding step holds nothing that a CUDA graph cannot capture, and the test would notice."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from policy.tokenrig.log_probs import row_uniforms
from policy.tokens.grammar import Grammar
from rl.engine.decode_attention import PrefixRows, decode_attention
from rl.engine.draw import DrawSettings
from rl.engine.fast import FastSampler
from rl.engine.sampler import SamplingRequest
from rl.engine.step import DecodeStep, StepBuffers
from rl.engine.weights import SamplingWeights
from tests.rl import tiny
from tests.rl.engine.capturable import DEVICE, NotCapturableError, capturing

ROWS, MESHES, SLOTS, HEADS, KV, SIZE, PREFIX, CAPACITY = 6, 2, 4, 4, 2, 32, 66, 256


def test_attention_is_capturable() -> None:
    query = torch.empty(ROWS, HEADS, SIZE, device=DEVICE, dtype=torch.bfloat16)
    prefix = torch.empty(MESHES, KV, PREFIX, SIZE, device=DEVICE, dtype=torch.bfloat16)
    own = torch.empty(ROWS, KV, CAPACITY, SIZE, device=DEVICE, dtype=torch.bfloat16)
    numbers = [torch.zeros(n, dtype=torch.int64, device=DEVICE) for n in (1, MESHES, ROWS, MESHES * SLOTS)]
    position, lengths, slot_of_row, row_of_slot = numbers
    rows = PrefixRows(lengths, slot_of_row, row_of_slot.view(MESHES, SLOTS), False, None)
    with capturing():
        out = decode_attention(query, prefix, prefix, own, own, position, rows)
    assert out.shape == query.shape


def on_meta(value: Any) -> Any:
    """A dataclass, list or tensor with its tensors on the device without values."""
    if isinstance(value, Tensor):
        return value.to(DEVICE)
    if isinstance(value, list):
        return [on_meta(item) for item in value]
    if isinstance(value, PrefixRows | StepBuffers):
        return replace(value, **{field.name: on_meta(getattr(value, field.name)) for field in fields(value)})
    return value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "settings",
    [DrawSettings(1.0, 0, 1.0), DrawSettings(0.0, 0, 1.0), DrawSettings(0.7, 5, 0.9)],
    ids=["sampled", "greedy", "top-k and top-p"],
)
def test_a_whole_step_is_capturable(dtype: torch.dtype, settings: DrawSettings) -> None:
    model, grammar = tiny.make_policy().model, Grammar(tiny.VOCABULARY)
    request = SamplingRequest(
        mesh_embeds=torch.randn(2, tiny.MESH_TOKENS, 32),
        mesh_index=torch.tensor([0, 1, 1]),
        class_ids=torch.full((3,), tiny.VOCABULARY.class_id("articulation")),
        skeletons=[(), [1, 2, 3, tiny.VOCABULARY.skeleton_eos]],
        uniforms=row_uniforms(range(3), 20),
    )
    sampler = FastSampler(model, grammar, dtype)
    with torch.no_grad():
        buffers, _ = sampler._start(request)
        shapes = buffers.shape()
        buffers = on_meta(buffers)
        grammar.allowed(grammar.start(3, DEVICE))  # copies its tables to the device once
        step = DecodeStep(SamplingWeights(model.to(DEVICE), grammar.phase_slices, dtype), grammar)
        with capturing():
            step(buffers, settings)
    assert buffers.shape() == shapes
    assert {tensor.device for tensor in buffers.changing()} == {DEVICE}


FORBIDDEN: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "int": lambda x: int(x[0]),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "unique": lambda x: x.unique(),
    "to the host": lambda x: x.cpu(),
    "from the host": lambda x: x.copy_(torch.ones(4)),
    "a scalar from the host": lambda x: torch.tensor(3.0, device=x.device) + x,
    "repeats": lambda x: x.repeat_interleave(x.long()),
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_cannot_be_captured_is_noticed(name: str) -> None:
    x = torch.zeros(4, device=DEVICE)
    with capturing(), pytest.raises(NotCapturableError):
        FORBIDDEN[name](x)


def test_ordinary_operations_pass() -> None:
    x = torch.zeros(4, device=DEVICE)
    with capturing():
        x += 1
        x.copy_(x.double() * 2)
        torch.where(x > 1, x, -1.0).to(torch.bfloat16)
        torch.zeros(3, device=DEVICE).fill_(2)
