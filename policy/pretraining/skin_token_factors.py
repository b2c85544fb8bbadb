"""Shares what is learned about a SkinToken with the SkinTokens that have a digit of its code in common."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from policy.skintokens.fsq import FSQ
from policy.tokenrig.modeling import TokenRigForCausalLM


class _DigitVectors(nn.Module):
    """Adds to each SkinToken's embedding one learned vector per digit of its FSQ code.

    The sum stays a table of embeddings, so nothing changes for those who use the model. During training, a
    row's gradient also moves its digits' vectors, and with them all codes that share a digit: of thousands of
    codes, each one by itself is seen too rarely.
    """

    def __init__(self, levels: Sequence[int], first: int, width: int) -> None:
        super().__init__()
        fsq = FSQ(levels, len(levels))
        digits = fsq.indices_to_digits(torch.arange(fsq.codebook_size))
        starts = torch.tensor([0, *levels[:-1]]).cumsum(0)
        marks = torch.zeros(fsq.codebook_size, sum(levels)).scatter_(1, digits + starts, 1.0)
        self.first = first
        self.marks: Tensor
        self.register_buffer("marks", marks, persistent=False)
        self.vectors = nn.Parameter(torch.zeros(sum(levels), width))

    def forward(self, table: Tensor) -> Tensor:
        before, codes, after = table.split(
            [self.first, len(self.marks), len(table) - self.first - len(self.marks)]
        )
        return torch.cat([before, codes + self.marks.to(table.dtype) @ self.vectors.to(table.dtype), after])


def share_digits(model: TokenRigForCausalLM, levels: Sequence[int]) -> None:
    """Give the SkinTokens of `model`, in place, a vector per digit of their FSQ codes; 0 at first.

    levels: of the skin VAE's FSQ. Raises ValueError if their product is not the size of the codebook. Source:
    this project.
    """
    words = model.config.get_vocabulary()
    vectors = _DigitVectors(levels, words.skin_first, model.config.hidden_size)
    if len(vectors.marks) != words.codebook:
        raise ValueError(f"FSQ levels {list(levels)} have {len(vectors.marks)} codes, not {words.codebook}")
    # Embedding and head are tied: the same vectors belong to both.
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        parametrize.register_parametrization(module, "weight", vectors)


def merge_digits(model: TokenRigForCausalLM) -> None:
    """Make the embeddings of `model` a plain table again, in place; the inverse of `share_digits`."""
    parametrize.remove_parametrizations(model.get_input_embeddings(), "weight", leave_parametrized=True)
    # That changed the table itself, which the head shares: it must not get the vectors a second time.
    parametrize.remove_parametrizations(model.get_output_embeddings(), "weight", leave_parametrized=False)
    model.tie_weights()
