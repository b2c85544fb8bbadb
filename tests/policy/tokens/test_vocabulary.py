"""Vocabulary: ids follow the construction rule for any sizes."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.tokens.vocabulary import Vocabulary

GOLDEN = json.loads((Path(__file__).parents[1] / "reference" / "golden_tokenizer.json").read_text())


def test_the_released_ids() -> None:
    ids, vocabulary = GOLDEN["ids"], Vocabulary()
    assert vocabulary.skin_first == ids["vocab_size"]
    assert (vocabulary.branch, vocabulary.bos, vocabulary.skeleton_eos) == (
        ids["branch"],
        ids["bos"],
        ids["eos"],
    )
    assert (vocabulary.pad, vocabulary.spring, vocabulary.class_none) == (
        ids["pad"],
        ids["spring"],
        ids["cls_none"],
    )
    assert {name: vocabulary.part_id(name) for name in vocabulary.parts} == ids["parts"]
    assert {name: vocabulary.class_id(name) for name in vocabulary.classes} == ids["cls"]
    assert (vocabulary.eos, vocabulary.size) == (33035, 33036)


@pytest.mark.parametrize("case", GOLDEN["make_cls_head"], ids=lambda case: str(case["cls"]))
def test_class_heads_of_the_release(case: dict) -> None:
    assert [Vocabulary().class_id(case["cls"])] == case["tokens"]


def test_small_sizes_by_hand() -> None:
    # n = 8: branch 8, bos 9, eos 10, pad 11, spring 12, part 13, none 14, classes 15 16;
    # skin 17 to 17 + 5 - 1 = 21, eos 22
    small = Vocabulary(bins=8, parts=("tail",), classes=("a", "b"), codebook=5, tokens_per_skin=2)
    assert (small.branch, small.bos, small.skeleton_eos, small.pad, small.spring) == (8, 9, 10, 11, 12)
    assert (small.part_id("tail"), small.part_id(None)) == (13, 12)
    assert (small.class_none, small.class_id("a"), small.class_id("b")) == (14, 15, 16)
    assert (small.skin_first, small.eos, small.size) == (17, 22, 23)


names = st.lists(st.text("abcdef", min_size=1, max_size=4), unique=True, max_size=4).map(tuple)


@settings(deadline=None)
@given(
    bins=st.integers(1, 300),
    parts=names,
    classes=names,
    codebook=st.integers(1, 70000),
    tps=st.integers(1, 32),
)
def test_ids_are_consecutive_and_the_dictionary_round_trips(
    bins: int, parts: tuple[str, ...], classes: tuple[str, ...], codebook: int, tps: int
) -> None:
    vocabulary = Vocabulary(bins, parts, classes, codebook, tps)
    v = vocabulary
    control = [v.branch, v.bos, v.skeleton_eos, v.pad, v.part_id(None), *map(v.part_id, parts), v.class_none]
    control += [v.class_id(name) for name in classes]
    assert control == list(range(bins, v.skin_first))
    assert v.size == v.skin_first + codebook + 1 == v.eos + 1
    assert [v.class_name(v.class_id(name)) for name in (None, *classes)] == [None, *classes]
    assert Vocabulary.from_dict(json.loads(json.dumps(v.to_dict()))) == v


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"bins": 0}, "bins"),
        ({"bins": True}, "bins"),
        ({"codebook": 2.5}, "codebook"),
        ({"tokens_per_skin": -1}, "tokens_per_skin"),
        ({"parts": ["body", "body"]}, "parts"),
        ({"classes": ["a b"]}, "a b"),
        ({"classes": [""]}, "classes"),
        ({"classes": ["none"]}, "none"),
        ({"classes": "abc"}, "abc"),
        ({"codebok": 3}, "codebok"),
    ],
)
def test_bad_fields_are_reported(fields: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Vocabulary.from_dict(fields)


def test_unknown_parts_and_class_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="body, hand"):
        Vocabulary().part_id("wing")
    with pytest.raises(ValueError, match="263 to 266"):
        Vocabulary().class_name(5)
