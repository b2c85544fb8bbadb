"""Grammar: released cases are exact, strict sequences always complete, and a scan equals stepping."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.tokens.grammar import FORCED, SKELETON, SKIN, Grammar, GrammarState, Mode
from policy.tokens.skeleton_tokenizer import (
    RigTokenError,
    detokenize,
    released_skeleton_tokenizer,
    split_rig,
    tokenize_rig,
    tokenize_skeleton,
)
from policy.tokens.vocabulary import Vocabulary
from tests.policy.random_completions import random_completions

GOLDEN = json.loads((Path(__file__).parents[1] / "reference" / "golden_tokenizer.json").read_text())
MODES: tuple[Mode, ...] = ("strict", "released", "fork")
RELEASED = {mode: Grammar(Vocabulary(), mode) for mode in MODES}

SMALL = Vocabulary(bins=3, parts=("tail",), classes=("a",), codebook=4, tokens_per_skin=2)
# coordinates 0..2, branch 3, bos 4, skeleton eos 5, pad 6, spring 7, tail 8, none 9, a 10, skin 11..14,
# eos 15
SMALL_GRAMMARS = {mode: Grammar(SMALL, mode) for mode in MODES}
PROMPT = [SMALL.bos, SMALL.class_id("a")]


def ranges(allowed: torch.Tensor) -> list[list[int]]:
    """One row's legal ids as inclusive ranges."""
    ids = allowed.nonzero().flatten().tolist()
    members = set(ids)
    starts = [i for i in ids if i - 1 not in members]
    ends = [i for i in ids if i + 1 not in members]
    return [[low, high] for low, high in zip(starts, ends, strict=True)]


def after(grammar: Grammar, tokens: list[int]) -> GrammarState:
    state = grammar.start(1)
    for token in tokens:
        state = grammar.step(state, torch.tensor([token]))
    return state


@pytest.mark.parametrize("case", GOLDEN["logits_processor"], ids=lambda case: str(case["generated"]))
@pytest.mark.parametrize(("mode", "key"), [("released", "release"), ("fork", "fork")])
def test_logits_processors_of_the_release(case: dict, mode: Mode, key: str) -> None:
    grammar = RELEASED[mode]
    assert (case["vocab"], case["tokens_per_skin"]) == (
        grammar.vocabulary.size,
        grammar.vocabulary.tokens_per_skin,
    )
    assert ranges(grammar.allowed(after(grammar, case["generated"]))[0]) == case[key]
    prefix = torch.tensor([case["generated"]], dtype=torch.int64)
    assert ranges(grammar.allowed(grammar.advance(grammar.start(1), prefix))[0]) == case[key]


# The automaton starts after [bos, class] and ends the skeleton at its eos; other prefixes are no completions.
NEXT = [
    c
    for c in GOLDEN["next_possible_token"]
    if len(c["ids"]) >= 2 and c["ids"][1] >= 264 and 258 not in c["ids"]
]


@pytest.mark.parametrize("case", NEXT, ids=lambda case: str(case["ids"]))
@pytest.mark.parametrize("mode", ["released", "fork"])
def test_next_possible_tokens_of_the_release(case: dict, mode: Mode) -> None:
    grammar = RELEASED[mode]
    assert ranges(grammar.allowed(after(grammar, case["ids"][2:]))[0]) == case["allowed"]


def test_enough_cases_of_the_release_apply() -> None:
    assert len(NEXT) == 15


def test_strict_by_hand() -> None:
    grammar = SMALL_GRAMMARS["strict"]
    coordinates, skin, eos, pad = [[0, 2]], [[11, 14]], [[15, 15]], [[6, 6]]
    after_joint = [[0, 3], [5, 5]]
    script = [
        (0, coordinates),  # x y z of the root: no branch, no empty skeleton
        (1, coordinates),
        (2, coordinates),
        (3, after_joint),  # a branch takes six coordinates
        *[(i % 3, coordinates) for i in range(6)],
        (5, after_joint),
        *[(11 + i, skin) for i in range(4)],  # 2 joints x 2
        (15, eos),
        (6, pad),
        (6, pad),
    ]
    for i, (token, legal) in enumerate(script):
        state = after(grammar, [token for token, _ in script[:i]])
        assert ranges(grammar.allowed(state)[0]) == legal, i
        assert grammar.allowed(state)[0, token]
        assert grammar.finished(state).item() == (i > 15)
    tokens = torch.tensor([[token for token, _ in script]])
    scan = grammar.scan(tokens)
    assert scan.phase.tolist() == [[SKELETON] * 11 + [SKIN] * 4 + [FORCED] * 3]
    assert scan.before.bones.tolist() == [[0] * 3 + [1] * 7 + [2] * 8]
    assert scan.before.skin.tolist() == [[0] * 11 + [0, 1, 2, 3] + [4] * 3]
    facts = grammar.validity(tokens)
    assert (facts.complete.item(), facts.bones.item(), facts.skeleton_length.item()) == (True, 2, 11)


def test_strict_refuses_parts_classes_and_a_second_prompt() -> None:
    table = SMALL_GRAMMARS["strict"].legal_table()
    assert not table[
        :, [SMALL.bos, SMALL.spring, SMALL.part_id("tail"), SMALL.class_none, SMALL.class_id("a")]
    ].any()


def test_phases_cover_exactly_the_legal_tokens() -> None:
    for mode, grammar in SMALL_GRAMMARS.items():
        slices = grammar.phase_slices
        assert slices.skeleton == slice(0, 11)
        assert slices.skin == slice(5 if mode == "released" else 11, 15)
        for tokens in ([], [0], [0, 1, 2], [0, 1, 2, 5], [0, 1, 2, 5, 11], [0, 1, 2, 5, 11, 12, 15]):
            state = after(grammar, tokens)
            phase = grammar.scan(torch.tensor([[*tokens, 0]])).phase[0, -1]
            legal = grammar.allowed(state)[0]
            if phase == SKELETON:
                assert not legal[slices.skeleton.stop :].any()
            elif phase == SKIN:
                assert legal[slices.skin].all()
                assert legal.sum() == slices.skin.stop - slices.skin.start
            else:
                assert legal.sum() == 1


def slow_allowed(mode: Mode, generated: list[int]) -> list[int]:
    """Specification, section 9.5, by the plain tokenizer's loops; for sequences without the final eos."""
    tokenizer, v = released_skeleton_tokenizer(SMALL), SMALL
    if v.skeleton_eos not in generated:
        return tokenizer.allowed_next(PROMPT + generated)
    needed = tokenizer.bones_in_sequence(PROMPT + generated) * v.tokens_per_skin
    count = len(generated) - generated.index(v.skeleton_eos) - 1
    if mode == "released":
        return [v.eos] if 1 + count == needed else list(range(v.skeleton_eos, v.eos))
    return [v.eos] if count >= needed else list(range(v.skin_first, v.eos))


@settings(deadline=None)
@given(st.lists(st.one_of(st.integers(0, 5), st.integers(0, SMALL.eos - 1)), max_size=40))
def test_released_modes_equal_the_plain_loops(generated: list[int]) -> None:
    tokens = torch.tensor([[*generated, 0]])
    for mode in ("released", "fork"):
        grammar = SMALL_GRAMMARS[mode]
        rows = grammar.legal_table()[grammar.scan(tokens).row[0]]
        for i, row in enumerate(rows):
            assert row.nonzero().flatten().tolist() == slow_allowed(mode, generated[:i])


@settings(max_examples=60, deadline=None)
@given(
    mode=st.sampled_from(MODES),
    length=st.integers(0, 70),
    seed=st.integers(0, 2**32 - 1),
    noise=st.sampled_from([0.0, 0.02, 0.3]),
)
def test_scan_equals_stepping(mode: Mode, length: int, seed: int, noise: float) -> None:
    grammar, rows = SMALL_GRAMMARS[mode], 5
    tokens = random_completions(grammar, rows, length, seed, noise)
    scan = grammar.scan(tokens)
    state = grammar.start(rows)
    table = grammar.legal_table()
    for t in range(length):
        for field in ("state", "bones", "skin"):
            assert torch.equal(getattr(scan.before, field)[:, t], getattr(state, field))
        legal = grammar.allowed(state)
        assert torch.equal(table[scan.row[:, t]], legal)
        assert torch.equal(scan.legal[:, t], legal.gather(1, tokens[:, t, None])[:, 0])
        state = grammar.step(state, tokens[:, t])
    for field in ("state", "bones", "skin"):
        assert torch.equal(getattr(scan.after, field), getattr(state, field))
    if noise == 0:
        assert scan.legal.all()


@settings(max_examples=30, deadline=None)
@given(
    mode=st.sampled_from(MODES), cut=st.integers(0, 30), seed=st.integers(0, 2**32 - 1), gap=st.integers(0, 4)
)
def test_scan_resumes_and_skips_masked_positions(mode: Mode, cut: int, seed: int, gap: int) -> None:
    grammar, rows, length = SMALL_GRAMMARS[mode], 4, 30
    tokens = random_completions(grammar, rows, length, seed, 0.1)
    whole = grammar.scan(tokens)
    filling = torch.full((rows, gap), SMALL.pad)
    prefix = torch.cat([tokens[:, :cut], filling], dim=1)
    mask = torch.cat([torch.ones(rows, cut), torch.zeros(rows, gap)], dim=1)
    rest = grammar.scan(tokens[:, cut:], start=grammar.advance(grammar.start(rows), prefix, mask))
    for field in ("state", "bones", "skin"):
        assert torch.equal(getattr(rest.before, field), getattr(whole.before, field)[:, cut:])
        assert torch.equal(getattr(rest.after, field), getattr(whole.after, field))
    assert torch.equal(rest.phase, whole.phase[:, cut:])
    masked = grammar.scan(prefix, mask)
    assert (masked.phase[:, cut:] == FORCED).all()
    assert masked.legal[:, cut:].all()


@settings(max_examples=30, deadline=None)
@given(mode=st.sampled_from(MODES), seed=st.integers(0, 2**32 - 1), gap=st.integers(0, 5))
def test_the_state_after_a_prompt_is_the_same_wherever_it_is_padded(mode: Mode, seed: int, gap: int) -> None:
    grammar = SMALL_GRAMMARS[mode]
    random = np.random.default_rng(seed)
    parents = [-1, *(int(random.integers(0, i)) for i in range(1, int(random.integers(1, 6))))]
    skeleton = tokenize_skeleton(random.uniform(-1, 1, (len(parents), 3)), parents, "a", SMALL)
    expected = after(grammar, skeleton[2:])
    assert expected.bones.tolist() == [len(parents)]
    for place in (0, 1, 2, len(skeleton)):
        ids = torch.tensor([[*skeleton[:place], *[0] * gap, *skeleton[place:]]])
        mask = torch.ones_like(ids)
        mask[:, place : place + gap] = 0
        found = grammar.after_prompt(ids, mask if gap else None)
        for field in ("state", "bones", "skin"):
            assert torch.equal(getattr(found, field), getattr(expected, field))
    # Without a skeleton it is the start.
    start = grammar.after_prompt(torch.tensor([PROMPT, PROMPT]))
    assert start.state.tolist() == grammar.start(2).state.tolist()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), length=st.integers(1, 120))
def test_only_truncation_makes_a_strict_rig_invalid(seed: int, length: int) -> None:
    grammar = SMALL_GRAMMARS["strict"]
    completions = random_completions(grammar, 6, length, seed, 0.0)
    facts = grammar.validity(completions, completions != SMALL.pad)
    for row, complete, bones, skeleton_length in zip(
        completions.tolist(), facts.complete, facts.bones, facts.skeleton_length, strict=True
    ):
        ids = PROMPT + row
        if complete:
            skeleton_ids, codes = split_rig(ids, SMALL)
            assert len(detokenize(skeleton_ids, SMALL).joints) == bones == len(codes)
            assert len(skeleton_ids) - len(PROMPT) == skeleton_length
            assert codes.shape == (bones, SMALL.tokens_per_skin)
            assert 0 <= codes.min() <= codes.max() < SMALL.codebook
        else:
            assert SMALL.eos not in row
            with pytest.raises(RigTokenError, match=r"truncated|does not end"):
                split_rig(ids, SMALL)


@settings(deadline=None)
@given(
    parents=st.integers(0, 8).flatmap(lambda n: st.tuples(*[st.integers(0, i) for i in range(n)])),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_tokenized_rig_is_accepted(parents: tuple[int, ...], seed: int) -> None:
    random = np.random.default_rng(seed)
    count = len(parents) + 1
    codes = random.integers(0, SMALL.codebook, (count, SMALL.tokens_per_skin))
    ids = tokenize_rig(random.uniform(-1, 1, (count, 3)), [-1, *parents], codes, "a", SMALL)
    completion = torch.tensor([ids[2:] + [SMALL.pad] * 3])
    for mode in ("strict", "fork"):
        grammar = SMALL_GRAMMARS[mode]
        assert grammar.scan(completion).legal.all()
        facts = grammar.validity(completion)
        # the released count is one bone per branch of six coordinates, so all agree on complete rigs
        assert (facts.complete.item(), facts.bones.item()) == (True, count)
        assert facts.skeleton_length.item() == ids.index(SMALL.skeleton_eos) - 1
        for length in range(len(ids) - 2):
            assert not grammar.validity(completion[:, :length]).complete.item()


def test_the_release_ends_one_skin_token_early() -> None:
    early = [0, 1, 2, SMALL.skeleton_eos, 11, SMALL.eos]
    for mode, complete in (("strict", False), ("fork", False), ("released", True)):
        facts = SMALL_GRAMMARS[mode].validity(torch.tensor([early]))
        assert facts.complete.item() == complete
    assert split_rig(PROMPT + early, SMALL, strict=False)[1].tolist() == [[0, 0]]


def test_sequences_generated_by_the_released_code() -> None:
    # golden_a.npz: gen_skeleton_tokens, then gen_fork_skin_ids and gen_release_skin_ids (greedy, 5 joints)
    skeleton = [
        257,
        266,
        128,
        51,
        128,
        128,
        115,
        131,
        134,
        179,
        128,
        179,
        198,
        132,
        256,
        134,
        179,
        128,
        83,
        192,
    ]
    skeleton += [125, 258]
    skin = [*[2740] * 12, 2152, 2786, 2727, 2727, 2740, 2739, 2739]
    vocabulary = Vocabulary(codebook=2560)
    fork, released = [*skeleton, *skin, 2727, vocabulary.eos], [*skeleton, *skin, vocabulary.eos]
    for mode, whole in (("strict", [True, False]), ("fork", [True, False]), ("released", [False, True])):
        found = [Grammar(vocabulary, mode).validity(torch.tensor([ids[2:]])) for ids in (fork, released)]
        assert [facts.complete.item() for facts in found] == whole
        assert [facts.skeleton_length.item() for facts in found] == [20, 20]
    assert split_rig(fork, vocabulary)[1][-1].tolist() == [2473, 2472, 2472, 2460]  # less 267
    assert split_rig(released, vocabulary, strict=False)[1][-1].tolist() == [2473, 2472, 2472, 0]


def test_illegal_tokens_end_a_strict_sequence() -> None:
    grammar = SMALL_GRAMMARS["strict"]
    state = after(grammar, [0, SMALL.branch])
    assert grammar.finished(state).item()
    assert ranges(grammar.allowed(state)[0]) == [[SMALL.pad, SMALL.pad]]
    assert not grammar.validity(torch.tensor([[0, SMALL.branch, SMALL.pad]])).complete.item()


def test_bad_arguments_are_reported() -> None:
    with pytest.raises(ValueError, match="unknown grammar 'loose'; choose from strict, released, fork"):
        Grammar(SMALL, "loose")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\(3,\)"):
        SMALL_GRAMMARS["strict"].scan(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="mask"):
        SMALL_GRAMMARS["strict"].scan(torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 2))
