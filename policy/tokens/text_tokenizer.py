"""Text tokenizer: rig token ids as readable words (`<branch>`, `<skin:20417>`) and back, and mesh prompts."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from policy.tokens.vocabulary import NO_CLASS_NAME, Vocabulary

_BRANCH, _BOS, _SKELETON_EOS, _PAD, _EOS = "<branch>", "<bos>", "<eos:skeleton>", "<pad>", "<eos>"
_PROMPT = re.compile(r"<mesh:([0-9]+)> <bos> <class:([^\s<>]+)>")


def words(vocabulary: Vocabulary) -> list[str]:
    """The word of each id, in order: ``12``, ``<branch>``, ``<class:rignet>``, ``<skin:20417>``.

    Numbers are coordinate bins; K in ``<skin:K>`` is the FSQ code, not the id.
    """
    return [
        *map(str, range(vocabulary.bins)),
        _BRANCH,
        _BOS,
        _SKELETON_EOS,
        _PAD,
        "<spring>",
        *(f"<part:{name}>" for name in vocabulary.parts),
        *(f"<class:{name}>" for name in (NO_CLASS_NAME, *vocabulary.classes)),
        *(f"<skin:{code}>" for code in range(vocabulary.codebook)),
        _EOS,
    ]


def build_text_tokenizer(vocabulary: Vocabulary) -> PreTrainedTokenizerFast:
    """A word-level tokenizer of :func:`words`; decoding inverts encoding, no special tokens are added.

    Coordinates may be written as by :func:`render` (``x12``). Unknown words, such as ``<mesh:7>`` in a
    prompt, become the pad token: mesh handles are ids beyond the vocabulary, and the rollout computes them
    from the text with :func:`parse_mesh_prompt`.
    """
    ids = {word: token for token, word in enumerate(words(vocabulary))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=_PAD))
    tokenizer.normalizer = normalizers.Replace(Regex(r"(?<!\S)[xyz](?=[0-9])"), "")
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=_BOS,
        eos_token=_EOS,
        pad_token=_PAD,
        unk_token=_PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def render(ids: Iterable[int], vocabulary: Vocabulary) -> str:
    """Ids as readable text with axes: ``<bos> <class:none> x12 y130 z77 <branch> x12 ... <skin:20417>``.

    Axes restart at x after every word that is not a coordinate. Ids beyond the vocabulary are mesh handles,
    shown as ``<mesh:K>`` with K = id - size; negative ids are shown as ``<?-1>``.
    """
    names = words(vocabulary)
    text, axis = [], 0
    for token in map(int, ids):
        if 0 <= token < vocabulary.bins:
            text.append(f"{'xyz'[axis]}{token}")
            axis = (axis + 1) % 3
            continue
        axis = 0
        if token < 0:
            text.append(f"<?{token}>")
        else:
            text.append(names[token] if token < len(names) else f"<mesh:{token - len(names)}>")
    return " ".join(text)


def mesh_prompt(k: int, class_id: int, vocabulary: Vocabulary) -> str:
    """The prompt for mesh k and a class id: ``<mesh:7> <bos> <class:articulation>``.

    Raises ValueError for a negative k and for an id that is not a class.
    """
    if k < 0:
        raise ValueError(f"mesh index {k} is negative; use an index of at least 0")
    return f"<mesh:{k}> {_BOS} <class:{vocabulary.class_name(class_id) or NO_CLASS_NAME}>"


def parse_mesh_prompt(text: str, vocabulary: Vocabulary) -> tuple[int, int]:
    """Inverse of :func:`mesh_prompt`: (k, class id). Raises ValueError for any other text."""
    match = _PROMPT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"prompt {text!r} is malformed; write it as '<mesh:7> <bos> <class:articulation>'")
    name = None if match[2] == NO_CLASS_NAME else match[2]
    if name is not None and name not in vocabulary.classes:
        known = ", ".join((NO_CLASS_NAME, *vocabulary.classes))
        raise ValueError(f"prompt {text!r} has the unknown class {name!r}; choose one of {known}")
    return int(match[1]), vocabulary.class_id(name)
