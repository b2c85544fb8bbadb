"""The benchmark's grammar: the walk in Python equals the tensors, and rigs keep to the bounds."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.tokens.vocabulary import Vocabulary
from rl.benchmarks.bounded_grammar import BoundedGrammar, PythonGrammar

WORDS = Vocabulary(bins=16, codebook=8, tokens_per_skin=2)


def ranges(allowed: torch.Tensor) -> list[int]:
    return allowed.nonzero()[:, 0].tolist()


@given(st.lists(st.integers(0, 1000), min_size=40, max_size=40), st.integers(1, 3), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_python_and_tensors_allow_the_same(choices: list[int], fewest: int, more: int) -> None:
    grammar = BoundedGrammar(WORDS, fewest, fewest + more)
    python = PythonGrammar(WORDS, fewest, fewest + more)
    state, completion = grammar.start(1), []
    for choice in choices:
        legal = ranges(grammar.allowed(state)[0])
        assert legal == [token for first, stop in python.allowed(completion) for token in range(first, stop)]
        completion.append(legal[choice % len(legal)])
        state = grammar.step(state, torch.tensor(completion[-1:]))
    skeleton = completion.index(WORDS.skeleton_eos)
    assert fewest <= skeleton // 3 <= fewest + more
    assert completion[skeleton + 1 + 2 * (skeleton // 3)] == WORDS.eos
    assert set(completion[completion.index(WORDS.eos) + 1 :]) <= {WORDS.pad}


def test_the_processor_masks_each_row_by_itself() -> None:
    processor = PythonGrammar(WORDS, 1, 1)
    prompt = [WORDS.bos, WORDS.class_none]
    rows = torch.tensor([[*prompt, 1, 2, 3], [*prompt, 1, 2, 3]])
    rows[1, 4] = WORDS.skeleton_eos  # not after a whole joint, but a walk must end somewhere
    scores = processor(rows, torch.zeros(2, WORDS.size))
    assert ranges(scores[0] == 0) == [WORDS.skeleton_eos]
    assert (scores[1] == 0).sum() == 1
