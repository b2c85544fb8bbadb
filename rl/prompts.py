"""Prompts of rollouts: `<bos>`, the class and, if the skeleton is given, its tokens, padded to one length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from policy.tokens.grammar import Grammar, GrammarState
from policy.tokens.vocabulary import Vocabulary

# Tokens the model sees before a completion or a given skeleton: <bos> and the class.
PROMPT_LENGTH = 2

# Tokens of a given skeleton: those after `<bos> <class>`, up to and including the skeleton's eos; empty if
# the policy writes the skeleton itself.
SkeletonTokens = Sequence[int]


def sampling_prompts(
    class_ids: Tensor, skeletons: Sequence[SkeletonTokens], vocabulary: Vocabulary
) -> tuple[Tensor, Tensor | None]:
    """Prompts to extend token by token: padded between the class and the skeleton.

    Args:
        class_ids: (B,) int64, the class token of each row.
        skeletons: B given skeletons.

    Returns:
        Ids (B, P) int64, and a mask (B, P) int64 that is 0 at padding; None if no row is padded. The model
        gives masked ids no position, so a row's numbers do not depend on its padding.
    """
    width = max(map(len, skeletons))
    rows = [[vocabulary.pad] * (width - len(row)) + list(row) for row in skeletons]
    ids = torch.cat([_opening(class_ids, vocabulary), _long(rows, width, class_ids.device)], dim=1)
    lengths = torch.tensor([len(row) for row in skeletons], device=class_ids.device)
    if bool((lengths == width).all()):
        return ids, None
    mask = torch.arange(width, device=class_ids.device) >= width - lengths[:, None]
    return ids, torch.cat([torch.ones_like(ids[:, :PROMPT_LENGTH]), mask.long()], dim=1)


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
    device, width = class_ids.device, max(map(len, skeletons))
    rows = [list(row) + [vocabulary.pad] * (width - len(row)) for row in skeletons]
    prompts = torch.cat([_opening(class_ids, vocabulary), _long(rows, width, device)], dim=1)
    lengths = torch.tensor([PROMPT_LENGTH + len(row) for row in skeletons], device=device)
    ids = torch.cat([prompts, torch.full_like(completion_ids, vocabulary.pad)], dim=1)
    places = lengths[:, None] + torch.arange(completion_ids.shape[1], device=device)
    ids = ids.scatter(1, places, completion_ids)
    return ids, None if bool((lengths == prompts.shape[1]).all()) else lengths


def state_after(grammar: Grammar, ids: Tensor, mask: Tensor | None) -> GrammarState:
    """Grammar state after prompts of `sampling_prompts`: tensors (B,)."""
    start = grammar.start(len(ids), ids.device)
    if ids.shape[1] == PROMPT_LENGTH:
        return start
    return grammar.advance(start, ids[:, PROMPT_LENGTH:], None if mask is None else mask[:, PROMPT_LENGTH:])


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


def _opening(class_ids: Tensor, vocabulary: Vocabulary) -> Tensor:
    return torch.stack([torch.full_like(class_ids, vocabulary.bos), class_ids], dim=1)


def _long(rows: list[list[int]], width: int, device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64, device=device).view(len(rows), width)
