"""Skeleton tokenizer: released numbers are exact, and complete rigs round-trip."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.tokens.skeleton_tokenizer import (
    RigTokenError,
    detokenize,
    discretize,
    released_skeleton_tokenizer,
    rig_tokens,
    split_rig,
    tokenize_rig,
    tokenize_skeleton,
    undiscretize,
)
from policy.tokens.vocabulary import Vocabulary

GOLDEN = json.loads((Path(__file__).parents[1] / "reference" / "golden_tokenizer.json").read_text())
RELEASED = Vocabulary()
TOKENIZER = released_skeleton_tokenizer()


def name_of(case: dict) -> str:
    return str(case.get("name", case.get("ids")))


def assert_skeleton(skeleton: Any, expected: dict) -> None:
    assert skeleton.joints.dtype == np.float32
    assert skeleton.parents.dtype == np.int64
    assert skeleton.joints.tolist() == expected["joints"]
    assert skeleton.parent_joints.tolist() == expected["p_joints"]
    assert skeleton.parents.tolist() == expected["parents"]
    assert skeleton.cls == expected["cls"]
    assert list(skeleton.names) == expected["joint_names"]
    assert len(skeleton.joints) == expected["J"]


@pytest.mark.parametrize("case", GOLDEN["tokenize"], ids=name_of)
def test_tokenize_as_released(case: dict) -> None:
    joints = np.asarray(case["joints"], dtype=case["dtype"])
    tokens = TOKENIZER.tokenize(joints, case["parents"], case["cls"])
    assert tokens == case["tokens"]
    skeleton = TOKENIZER.detokenize(tokens)
    assert_skeleton(skeleton, case["detok"])
    assert TOKENIZER.bones_in_sequence(tokens) == case["bones_in_sequence"]
    assert tokenize_skeleton(skeleton.joints, skeleton.parents, skeleton.cls, RELEASED) == case["retokenized"]


@pytest.mark.parametrize("case", GOLDEN["detokenize"], ids=name_of)
def test_detokenize_as_released(case: dict) -> None:
    expected = case["result"]
    if "error" in expected:
        with pytest.raises(ValueError) as caught:
            TOKENIZER.detokenize(case["ids"])
        assert (caught.type.__name__, str(caught.value)) == (expected["error"], expected["message"])
        with pytest.raises(RigTokenError):
            detokenize(case["ids"], RELEASED)
    else:
        skeleton = TOKENIZER.detokenize(np.asarray(case["ids"]))
        assert_skeleton(skeleton, expected)
        assert list(skeleton.bones.shape) == expected["bones_shape"]
    bones = case["bones_in_sequence"]
    if isinstance(bones, dict):
        with pytest.raises(AssertionError) as assertion:
            TOKENIZER.bones_in_sequence(case["ids"])
        assert str(assertion.value) == bones["message"]
    else:
        assert TOKENIZER.bones_in_sequence(case["ids"]) == bones


@pytest.mark.parametrize("case", GOLDEN["next_possible_token"], ids=name_of)
def test_allowed_next_as_released(case: dict) -> None:
    expected = [token for low, high in case["allowed"] for token in range(low, high + 1)]
    assert TOKENIZER.allowed_next(case["ids"]) == expected


@pytest.mark.parametrize("case", GOLDEN["bones_in_sequence"], ids=name_of)
def test_bones_in_sequence_as_released(case: dict) -> None:
    assert TOKENIZER.bones_in_sequence(case["ids"]) == case["bones"]


def test_after_bos_classes_parts_and_coordinates_are_allowed() -> None:
    assert TOKENIZER.allowed_next([257]) == [*range(256), *range(260, 267)]  # specification, section 9.3
    with pytest.raises(AssertionError, match="bos"):
        TOKENIZER.allowed_next([5])


def test_discretize_tables_of_the_release() -> None:
    table = GOLDEN["discretize"]
    assert discretize(np.asarray(table["x"], dtype=np.float32), 256).tolist() == table["k"]
    table = GOLDEN["undiscretize"]
    assert undiscretize(table["k"], 256).tolist() == table["x"]
    assert undiscretize(table["k"], 256).dtype == np.float32
    assert discretize(undiscretize(range(256), 256), 256).tolist() == GOLDEN["roundtrip_of_all_bins"]


def test_discretize_by_hand_with_four_bins() -> None:
    # (x + 1) / 2 * 4: -1 -> 0, -0.75 -> 0.5 -> 0 (half to even), -0.25 -> 1.5 -> 2, 0.6 -> 3.2 -> 3,
    # 1 -> 4 -> 3 (clipped)
    assert discretize([-1.0, -0.75, -0.25, 0.6, 1.0], 4).tolist() == [0, 0, 2, 3, 3]
    assert discretize([-1, 0, 1], 4).tolist() == [0, 2, 3]
    # (k + 0.5) / 4 * 2 - 1 = (k + 0.5) / 2 - 1
    assert undiscretize([0, 1, 2, 3], 4).tolist() == [-0.75, -0.25, 0.25, 0.75]


SMALL = Vocabulary(bins=8, parts=("tail",), classes=("a", "b"), codebook=5, tokens_per_skin=2)
# branch 8, bos 9, skeleton eos 10, pad 11, spring 12, tail 13, none 14, a 15, b 16, skin 17..21, eos 22
WHOLE = [9, 15, 1, 2, 3, 4, 5, 6, 8, 1, 2, 3, 7, 7, 7, 10, 17, 18, 19, 20, 21, 17, 22]
CODES = [[0, 1], [2, 3], [4, 0]]


def test_a_complete_rig_by_hand() -> None:
    joints = undiscretize([[1, 2, 3], [4, 5, 6], [7, 7, 7]], 8) - 0.125  # lower faces of the cells: no drift
    assert tokenize_rig(joints, [-1, 0, 0], CODES, "a", SMALL) == WHOLE
    skeleton, codes = split_rig([*WHOLE, 11, 11], SMALL)
    assert skeleton == WHOLE[:16]
    assert (codes.tolist(), codes.dtype) == (CODES, np.int64)
    assert detokenize(skeleton, SMALL).parents.tolist() == [-1, 0, 0]


@pytest.mark.parametrize("length", range(len(WHOLE)))
def test_a_truncated_rig_is_refused(length: int) -> None:
    with pytest.raises(RigTokenError):
        split_rig(WHOLE[:length], SMALL)
    with pytest.raises(RigTokenError):
        split_rig(WHOLE[:length] + [SMALL.pad] * 3, SMALL)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([9, 15, 10, 22], "stack"),  # no joint
        ([9, 15, 1, 2, 10, 17, 17, 22], "incomplete"),  # two coordinates
        ([9, 15, 1, 10, 17, 17, 22], "incomplete"),  # one coordinate
        ([9, 15, 8, 1, 2, 3, 4, 5, 6, 10, 17, 17, 22], "incomplete"),  # branch without an earlier joint
        ([9, 15, 1, 2, 9, 10, 17, 17, 22], "incomplete"),  # a control token as a coordinate
        ([9, 15, 1, 2, 3, 8, 10, 17, 17, 22], "control"),  # dangling branch
        ([9, 15, 12, 1, 2, 3, 10, 17, 17, 22], "control"),  # part
        ([9, 15, 16, 1, 2, 3, 10, 17, 17, 22], "control"),  # two classes
        ([9, 1, 2, 3, 10, 17, 17, 22], "control"),  # no class
        ([9, 15, 1, 2, 3, 10, 17, 22], "1 of the 2"),
        ([9, 15, 1, 2, 3, 10, 17, 17, 17, 22], "does not end"),
        ([9, 15, 1, 2, 3, 10, 17, 17, 11], "does not end"),
        ([9, 15, 1, 2, 3, 10, 17, 17, 22, 17], "does not end"),
        ([9, 15, 1, 2, 3, 10, 17, 10, 22], "1 of the 2"),
        ([15, 1, 2, 3, 10, 17, 17, 22], "bos"),
    ],
)
def test_malformed_rigs_are_refused(ids: list[int], message: str) -> None:
    with pytest.raises(RigTokenError, match=message):
        split_rig(ids, SMALL)


def test_released_decoding_wraps_the_early_eos() -> None:
    # J * tps - 1 SkinTokens, then eos, which is read as 22 - 17 = 5 -> 0 modulo 5; 10 - 17 = -7 -> 3
    skeleton, codes = split_rig([9, 15, 1, 2, 3, 10, 18, 22], SMALL, strict=False)
    assert (skeleton, codes.tolist()) == ([9, 15, 1, 2, 3, 10], [[1, 0]])
    assert split_rig([9, 15, 1, 2, 3, 10, 10, 22], SMALL, strict=False)[1].tolist() == [[3, 0]]
    with pytest.raises(RigTokenError, match="truncated: 1 of the 2"):
        split_rig([9, 15, 1, 2, 3, 10, 18], SMALL, strict=False)


@st.composite
def rigs(draw: st.DrawFn) -> tuple[np.ndarray, list[int], np.ndarray, str | None, Vocabulary]:
    bins = draw(st.sampled_from([7, 8, 256]))
    vocabulary = Vocabulary(
        bins=bins, codebook=draw(st.integers(1, 9)), tokens_per_skin=draw(st.integers(1, 4))
    )
    count = draw(st.integers(1, 9))
    cells = draw(
        st.lists(st.tuples(*[st.integers(0, bins - 1)] * 3), min_size=count, max_size=count, unique=True)
    )
    parents = [-1] + [draw(st.integers(0, i - 1)) for i in range(1, count)]
    codes = draw(
        st.lists(
            st.lists(
                st.integers(0, vocabulary.codebook - 1),
                min_size=vocabulary.tokens_per_skin,
                max_size=vocabulary.tokens_per_skin,
            ),
            min_size=count,
            max_size=count,
        )
    )
    cls = draw(st.sampled_from([None, "rignet", "vroid"]))
    # k / bins * 2 - 1 is discretized to k exactly, a centre might not be
    return np.asarray(cells) / bins * 2 - 1, parents, np.asarray(codes), cls, vocabulary


@settings(deadline=None)
@given(rigs())
def test_rigs_round_trip_within_half_a_bin(rig: tuple) -> None:
    joints, parents, codes, cls, vocabulary = rig
    ids = tokenize_rig(joints, parents, codes, cls, vocabulary)
    skeleton_ids, again = split_rig(ids, vocabulary)
    skeleton = detokenize(skeleton_ids, vocabulary)
    assert np.abs(skeleton.joints - joints).max() <= 1 / vocabulary.bins + 1e-6
    assert skeleton.parents.tolist() == parents  # no two joints share a cell here
    assert skeleton.cls == cls
    assert again.tolist() == codes.tolist()
    assert released_skeleton_tokenizer(vocabulary).bones_in_sequence(skeleton_ids) == len(joints)


def slow_parents(stated: np.ndarray, joints: np.ndarray) -> list[int]:
    """The specification's words: from i - 1 down to 0 with a strict comparison."""
    found = [-1]
    for i in range(1, len(joints)):
        best, at = np.inf, -1
        for j in range(i - 1, -1, -1):
            distance = ((stated[i] - joints[j]) ** 2).sum()
            if distance < best:
                best, at = distance, j
        found.append(at)
    return found


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_parents_are_the_latest_of_the_nearest(seed: int) -> None:
    random = np.random.default_rng(seed)
    cells = random.integers(
        0, 3, (random.integers(1, 12), 6)
    )  # parent position, joint: ties and misses abound
    ids = [RELEASED.bos, RELEASED.class_none, *cells[0, 3:].tolist()]
    for row in cells[1:]:
        ids += [RELEASED.branch, *row.tolist()]
    skeleton = detokenize([*ids, RELEASED.skeleton_eos], RELEASED)
    parents = slow_parents(cells[:, :3], cells[:, 3:])
    assert skeleton.parents.tolist() == parents
    assert (skeleton.parent_joints[1:] == skeleton.joints[parents[1:]]).all()


@pytest.mark.parametrize(
    ("joints", "parents", "message"),
    [
        ([[0, 0]], [-1], "shape"),
        (np.zeros((0, 3)), [], "at least one"),
        ([[0, 0, 0]], [-1, 0], "one parent per joint"),
        ([[0, 0, 0], [1, 1, 1]], [-1, 1], "joint 1"),
        ([[0, 0, 0], [1, 1, 1]], [-1, -1], "joint 1"),
        ([[0, 0, float("nan")]], [-1], "finite"),
    ],
)
def test_unusable_skeletons_are_refused(joints: Any, parents: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokenize_skeleton(joints, parents, None, RELEASED)


@pytest.mark.parametrize(
    ("codes", "message"),
    [([[0, 1]], r"\(3, 2\)"), ([[0, 1], [2, 3], [4, 5]], "0 to 4"), ([[0, 1], [2, 3], [4, -1]], "0 to 4")],
)
def test_codes_must_fit(codes: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rig_tokens(WHOLE[:16], codes, SMALL)
