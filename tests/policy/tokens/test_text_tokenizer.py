"""Text tokenizer: every id has one word, and text and ids round-trip, also after saving and loading."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from policy.tokens.text_tokenizer import build_text_tokenizer, mesh_prompt, parse_mesh_prompt, render, words
from policy.tokens.vocabulary import Vocabulary

# "fox2" and "x1": names that look as if they contained a coordinate
SMALL = Vocabulary(bins=16, parts=("x1",), classes=("fox2", "y3z"), codebook=9, tokens_per_skin=2)
# branch 16, bos 17, skeleton eos 18, pad 19, spring 20, x1 21, none 22, fox2 23, y3z 24, skin 25..33, eos 34
TOKENIZER = build_text_tokenizer(SMALL)
RIG = [17, 23, 1, 12, 3, 16, 1, 12, 3, 4, 5, 6, 18, 25, 33, 26, 27, 34, 19]
TEXT = (
    "<bos> <class:fox2> 1 12 3 <branch> 1 12 3 4 5 6 <eos:skeleton> "
    "<skin:0> <skin:8> <skin:1> <skin:2> <eos> <pad>"
)


def test_by_hand() -> None:
    assert TOKENIZER.decode(RIG) == TEXT
    assert TOKENIZER(TEXT).input_ids == RIG
    assert TOKENIZER.decode([20, 21, 22, 24]) == "<spring> <part:x1> <class:none> <class:y3z>"
    rendered = render(RIG, SMALL)
    assert rendered == TEXT.replace("1 12 3", "x1 y12 z3").replace("4 5 6", "x4 y5 z6")
    assert TOKENIZER(rendered).input_ids == RIG
    assert (
        render([34 + 1 + 7, 17, 23, 5, 17, 5, -1], SMALL) == "<mesh:7> <bos> <class:fox2> x5 <bos> x5 <?-1>"
    )


def test_special_tokens_and_sizes() -> None:
    assert (TOKENIZER.pad_token_id, TOKENIZER.eos_token_id, TOKENIZER.bos_token_id) == (19, 34, 17)
    assert len(TOKENIZER) == TOKENIZER.vocab_size == SMALL.size == len(words(SMALL)) == len(set(words(SMALL)))
    assert TOKENIZER.convert_ids_to_tokens(list(range(SMALL.size))) == words(SMALL)
    # a completion as trainers log it: without bos, eos and padding
    assert TOKENIZER.decode(RIG, skip_special_tokens=True) == TEXT[6:-12]


@settings(deadline=None)
@given(st.lists(st.integers(0, SMALL.size - 1), max_size=60))
def test_decode_and_encode_are_inverse(ids: list[int]) -> None:
    assert TOKENIZER(TOKENIZER.decode(ids)).input_ids == ids
    assert TOKENIZER(render(ids, SMALL)).input_ids == ids


def test_padding_a_batch_marks_it() -> None:
    batch = TOKENIZER(["<bos> 1", "<bos> <class:none> 1"], padding=True)
    assert dict(batch) == {"input_ids": [[19, 17, 1], [17, 22, 1]], "attention_mask": [[0, 1, 1], [1, 1, 1]]}


def test_saving_and_loading_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    released = Vocabulary()
    tokenizer = build_text_tokenizer(released)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    ids = [257, 266, 12, 130, 77, 256, 12, 130, 77, 0, 255, 1, 258, 267, 33034, 20684, 33035, 259]
    for one in (tokenizer, loaded):
        assert len(one) == released.size
        text = one.decode(ids)
        assert "<class:articulation> 12 130 77 <branch> 12" in text
        assert text.endswith("<skin:0> <skin:32767> <skin:20417> <eos> <pad>")
        assert one(text).input_ids == ids
        assert (one.pad_token_id, one.eos_token_id, one.bos_token_id) == (259, 33035, 257)
        assert one.padding_side == "left"


def test_prompts_round_trip() -> None:
    assert mesh_prompt(7, SMALL.class_id("fox2"), SMALL) == "<mesh:7> <bos> <class:fox2>"
    for name in (None, "fox2", "y3z"):
        for k in (0, 7, 123_456_789):
            text = mesh_prompt(k, SMALL.class_id(name), SMALL)
            assert parse_mesh_prompt(text, SMALL) == (k, SMALL.class_id(name))
    assert TOKENIZER("<mesh:7> <bos> <class:none>").input_ids == [19, 17, 22]  # the mesh is not a word


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<bos> <class:fox2>", "is malformed; write it as"),
        ("<mesh:-1> <bos> <class:fox2>", "is malformed; write it as"),
        ("<mesh:1> <bos> <class:fox2> 3", "is malformed; write it as"),
        ("<mesh:1> <bos> <class:wolf>", "'wolf'; choose one of none, fox2, y3z"),
    ],
)
def test_other_prompts_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_mesh_prompt(text, SMALL)


def test_prompts_of_no_mesh_or_class_are_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        mesh_prompt(-1, SMALL.class_none, SMALL)
    with pytest.raises(ValueError, match="token 3 is not a class"):
        mesh_prompt(0, 3, SMALL)
