"""Parts of a decoding step hold nothing that a CUDA graph cannot capture, and the test would notice."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from policy.tokenrig.log_probs import sample_tokens
from policy.tokens.grammar import Grammar, GrammarState
from policy.tokens.vocabulary import Vocabulary
from rl.engine.decode_attention import PrefixRows, decode_attention
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


def test_grammar_and_sampling_are_capturable() -> None:
    grammar = Grammar(Vocabulary(bins=16, codebook=64, tokens_per_skin=2))
    state = grammar.start(ROWS, DEVICE)
    grammar.allowed(state)  # copies the tables to the device once
    logits = torch.empty(ROWS, grammar.vocabulary.size, device=DEVICE)
    uniforms = torch.empty(ROWS, 20, dtype=torch.float64, device=DEVICE)
    position = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    log_probs = torch.empty(ROWS, 20, device=DEVICE)
    with capturing():
        drawn = sample_tokens(logits, grammar.allowed(state), uniforms.index_select(1, position)[:, 0])
        log_probs.index_copy_(1, position, drawn.log_probs[:, None])
        after = grammar.step(state, drawn.tokens)
        state.state.copy_(after.state)
        position += 1
    assert isinstance(after, GrammarState)


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
