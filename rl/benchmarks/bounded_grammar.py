"""The strict grammar with bounds on the number of joints, as tensors and as a walk in Python.

Random weights hardly ever end a skeleton, so both sides of the benchmark sample under the same bounds.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from transformers import LogitsProcessor

from policy.tokens.grammar import PROMPT_LENGTH, Grammar, GrammarState
from policy.tokens.vocabulary import Vocabulary

# Between the bounds a joint is followed by the skeleton's end or one of this many coordinates: with equally
# likely tokens, a skeleton then ends after each joint with probability 1/8.
_CHOICES = 7


class BoundedGrammar(Grammar):
    """The strict grammar without branches, with `fewest` to `most` joints."""

    def __init__(self, vocabulary: Vocabulary, fewest: int, most: int) -> None:
        super().__init__(vocabulary, "strict")
        self.fewest, self.most = fewest, most
        cpu = torch.device("cpu")
        tables = self._on_device[cpu]
        # After a joint the skeleton may end: the only such state.
        (self._joint,) = tables.legal[:, vocabulary.skeleton_eos].nonzero()[:, 0].tolist()
        self._early = len(tables.legal)
        early, window, last = (torch.zeros(vocabulary.size, dtype=torch.bool) for _ in range(3))
        early[: vocabulary.bins] = True
        window[:_CHOICES] = window[vocabulary.skeleton_eos] = last[vocabulary.skeleton_eos] = True
        rows = torch.stack([early, window, last])
        self._on_device[cpu] = replace(
            tables,
            legal=torch.cat([tables.legal, rows]),
            phase=torch.cat([tables.phase, tables.phase[self._joint].expand(3)]),
            first_legal=torch.cat([tables.first_legal, rows.int().argmax(dim=1)]),
        )

    def legal_row(self, state: GrammarState) -> Tensor:
        """See `Grammar.legal_row`."""
        row = super().legal_row(state)
        bound = (state.bones >= self.fewest).long() + (state.bones >= self.most).long()
        return torch.where(state.state == self._joint, self._early + bound, row)


class PythonGrammar(LogitsProcessor):
    """The same grammar as a logits processor for `generate` that walks every row's tokens in Python.

    That is how the released system constrains sampling: one walk over the prefix per row and token.
    """

    def __init__(self, vocabulary: Vocabulary, fewest: int, most: int) -> None:
        self.vocabulary, self.fewest, self.most = vocabulary, fewest, most

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (B, V) with -inf at illegal tokens."""
        mask = torch.full(scores.shape, -torch.inf)
        for row, ids in enumerate(input_ids.tolist()):
            for first, stop in self.allowed(ids[PROMPT_LENGTH:]):
                mask[row, first:stop] = 0
        return scores + mask.to(scores.device)

    def allowed(self, completion: list[int]) -> list[tuple[int, int]]:
        """Ranges of legal next tokens."""
        words = self.vocabulary
        coordinates, joints, skin, ended_skeleton = 0, 0, 0, False
        for token in completion:
            if ended_skeleton:
                if token == words.eos:
                    return [(words.pad, words.pad + 1)]
                skin += 1
            elif token == words.skeleton_eos:
                ended_skeleton = True
            else:
                coordinates += 1
                joints = coordinates // 3
        if ended_skeleton:
            if skin == joints * words.tokens_per_skin:
                return [(words.eos, words.eos + 1)]
            return [(words.skin_first, words.skin_first + words.codebook)]
        if coordinates % 3 or joints < self.fewest:
            return [(0, words.bins)]
        end = (words.skeleton_eos, words.skeleton_eos + 1)
        return [end] if joints >= self.most else [(0, _CHOICES), end]
