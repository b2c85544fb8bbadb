"""Prompts: where each layout pads, the grammar's state behind it, and how much fits."""

import pytest
import torch

from policy.tokens.grammar import Grammar
from policy.tokens.vocabulary import Vocabulary
from rl.prompts import (
    completion_length,
    joints_in,
    longest_completion,
    sampling_prompts,
    training_rows,
)

# coordinates 0..2, branch 3, bos 4, skeleton eos 5, pad 6, spring 7, class none 8, a 9, skin 10..13, eos 14
WORDS = Vocabulary(bins=3, parts=(), classes=("a",), codebook=4, tokens_per_skin=2)
ONE = (0, 1, 2, 5)
# Three joints: a chain of two, and a branch at the first.
THREE = (0, 0, 0, 1, 1, 1, 3, 0, 0, 0, 2, 2, 2, 5)
CLASSES = torch.tensor([8, 9])


def test_sampling_pads_on_the_left():
    ids, mask = sampling_prompts(CLASSES, [ONE, THREE], WORDS)
    assert ids.tolist() == [[*[6] * 10, 4, 8, *ONE], [4, 9, *THREE]]
    assert mask.tolist() == [[*[0] * 10, 1, 1, 1, 1, 1, 1], [1] * 16]


@pytest.mark.parametrize("skeletons", [[(), ()], [ONE, ONE]])
def test_prompts_of_one_length_have_no_mask(skeletons):
    ids, mask = sampling_prompts(CLASSES, skeletons, WORDS)
    assert ids.tolist() == [[4, 8, *skeletons[0]], [4, 9, *skeletons[1]]]
    assert mask is None
    rows, lengths = training_rows(CLASSES, skeletons, torch.tensor([[10, 14], [11, 6]]), WORDS)
    assert rows.tolist() == [[4, 8, *skeletons[0], 10, 14], [4, 9, *skeletons[1], 11, 6]]
    assert lengths is None


def test_training_pads_behind_the_completion():
    completions = torch.tensor([[10, 11, 14, 6], [12, 13, 12, 13]])
    rows, lengths = training_rows(CLASSES, [ONE, THREE], completions, WORDS)
    assert rows.tolist() == [[4, 8, *ONE, 10, 11, 14, 6, *[6] * 10], [4, 9, *THREE, 12, 13, 12, 13]]
    assert lengths.tolist() == [6, 16]


@pytest.mark.parametrize("mode", ["strict", "released", "fork"])
def test_after_a_skeleton_its_skin_follows(mode):
    grammar = Grammar(WORDS, mode)
    ids, mask = sampling_prompts(torch.tensor([8, 8, 8]), [ONE, THREE, ()], WORDS)
    state = grammar.after_prompt(ids, mask)
    assert state.bones.tolist() == [1, 3, 0]
    assert state.skin.tolist() == [0, 0, 0]
    allowed = grammar.allowed(state)
    skin_from = WORDS.skeleton_eos if mode == "released" else WORDS.skin_first
    for row in (0, 1):
        # The released grammar forces its eos one SkinToken early, which is after one of a single joint's two.
        assert allowed[row].nonzero().flatten().tolist() == list(range(skin_from, WORDS.eos))
    start = grammar.allowed(grammar.start(1))[0]
    assert torch.equal(allowed[2], start)
    alone = grammar.after_prompt(ids[2:, -2:])
    assert torch.equal(grammar.allowed(alone)[0], start)


@pytest.mark.parametrize(("mode", "skin"), [("strict", 6), ("fork", 6), ("released", 5)])
def test_a_completion_ends_after_the_skin_of_all_joints(mode, skin):
    grammar = Grammar(WORDS, mode)
    ids, mask = sampling_prompts(torch.tensor([8]), [THREE], WORDS)
    state = grammar.after_prompt(ids, mask)
    for _ in range(skin):
        assert not grammar.allowed(state)[0, WORDS.eos]
        state = grammar.step(state, torch.tensor([WORDS.skin_first]))
    assert grammar.allowed(state)[0].nonzero().flatten().tolist() == [WORDS.eos]


def test_lengths():
    assert [joints_in(tokens, WORDS) for tokens in (ONE, THREE, ())] == [1, 3, 0]
    assert completion_length(3, WORDS) == 7
    # Only what the longest needs, unless a skeleton has yet to be written.
    assert longest_completion([ONE, THREE], 100, 23, WORDS) == 7
    assert longest_completion([ONE, THREE], 5, 23, WORDS) == 5
    assert longest_completion([ONE, ()], 20, 23, WORDS) == 20
    with pytest.raises(ValueError, match="max_new_tokens 7 must be between 1 and 6 for this model"):
        longest_completion([ONE, THREE], 100, 22, WORDS)
    with pytest.raises(ValueError, match="max_new_tokens 0 must be between 1 and"):
        longest_completion([ONE], 0, 100, WORDS)
