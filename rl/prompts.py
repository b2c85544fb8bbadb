"""Prompts of rollouts: `<bos>`, the class and, if the skeleton is given, its tokens, padded to one length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from policy.tokens.grammar import PROMPT_LENGTH
from policy.tokens.vocabulary import Vocabulary

# Tokens of a given skeleton: those after `<bos> <class>`, up to and including the skeleton's eos; empty if
# the policy writes the skeleton itself.
SkeletonTokens = Sequence[int]


def sampling_prompts(
    class_ids: Tensor, skeletons: Sequence[SkeletonTokens], vocabulary: Vocabulary
) -> tuple[Tensor, Tensor | None]:
    """Prompts to extend token by token, padded on the left.

    Args:
        class_ids: (B,) int64, the class token of each row.
        skeletons: B given skeletons.

    Returns:
        Ids (B, P) int64, and a mask (B, P) int64 that is 0 at padding; None if no row is padded. The model
        gives masked ids no position, so a row's numbers do not depend on its padding.
    """
    width = PROMPT_LENGTH + max(map(len, skeletons))
    rows = [
        [vocabulary.pad] * (width - PROMPT_LENGTH - len(skeleton)) + [vocabulary.bos, class_id, *skeleton]
        for class_id, skeleton in zip(class_ids.tolist(), skeletons, strict=True)
    ]
    ids = torch.tensor(rows, device=class_ids.device)
    if all(len(skeleton) == width - PROMPT_LENGTH for skeleton in skeletons):
        return ids, None
    return ids, (ids != vocabulary.pad).long()


def training_rows(
    class_ids: Tensor, skeletons: Sequence[SkeletonTokens], completion_ids: Tensor, vocabulary: Vocabulary
) -> tuple[Tensor, Tensor | None]:
    """Prompts, each followed directly by its completion: padded on the right, where causal attention needs no
    mask.

    Args:
        class_ids: (B,) int64, the class token of each row.
        skeletons: B given skeletons.
        completion_ids: (B, C) int64, padded with `pad`.

    Returns:
        Ids (B, P + C) int64, and the prompts' lengths (B,) int64, at most P; None if all are P.
    """
    device, count = class_ids.device, completion_ids.shape[1]
    lengths = [PROMPT_LENGTH + len(skeleton) for skeleton in skeletons]
    rows = [
        [vocabulary.bos, class_id, *skeleton] + [vocabulary.pad] * (max(lengths) - length + count)
        for class_id, skeleton, length in zip(class_ids.tolist(), skeletons, lengths, strict=True)
    ]
    begins = torch.tensor(lengths, device=device)
    places = begins[:, None] + torch.arange(count, device=device)
    ids = torch.tensor(rows, device=device).scatter(1, places, completion_ids)
    return ids, None if min(lengths) == max(lengths) else begins


def joints_in(skeleton: SkeletonTokens, vocabulary: Vocabulary) -> int:
    """Number of joints of a given skeleton: three coordinates each, and three more after a branch."""
    coordinates = sum(0 <= token < vocabulary.bins for token in skeleton)
    return coordinates // 3 - sum(token == vocabulary.branch for token in skeleton)


def completion_length(joints: int, vocabulary: Vocabulary) -> int:
    """Tokens of the completion of a given skeleton: SkinTokens of `joints` joints and the final eos."""
    return joints * vocabulary.tokens_per_skin + 1


def longest_completion(
    skeletons: Sequence[SkeletonTokens], max_new_tokens: int, positions: int, vocabulary: Vocabulary
) -> int:
    """Tokens to sample for the row that needs most: `max_new_tokens`, or fewer if all skeletons are given.

    positions: those of the model behind the mesh. Raises ValueError if the limit is below 1 or a row's prompt
    and completion do not fit.
    """
    longest = 0
    for skeleton in skeletons:
        limit, room = max_new_tokens, positions - PROMPT_LENGTH - len(skeleton)
        if skeleton:
            limit = min(limit, completion_length(joints_in(skeleton, vocabulary), vocabulary))
        if not 0 < limit <= room:
            raise ValueError(f"max_new_tokens {limit} must be between 1 and {room} for this model")
        longest = max(longest, limit)
    return longest
