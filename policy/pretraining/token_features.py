"""Lets similar tokens share what they learn: coordinates near each other, SkinTokens with equal digits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from policy.skintokens.fsq import FSQ
from policy.tokenrig.modeling import TokenRigForCausalLM

# Waves of coordinates: the slowest has half a period over [-1, 1], the fastest 32.
_OCTAVES = 7


class _FeatureVectors(nn.Module):
    """Adds to a table of embeddings one learned vector per feature of a token, times the feature.

    The sum stays a table of embeddings, so nothing changes for those who use the model. During training, a
    row's gradient also moves its features' vectors, and with them all tokens that have these features: of
    thousands of SkinTokens, each one by itself is seen too rarely.
    """

    def __init__(self, features: Tensor, width: int) -> None:
        super().__init__()
        self.features: Tensor
        self.register_buffer("features", features, persistent=False)
        self.vectors = nn.Parameter(torch.zeros(features.shape[1], width))

    def forward(self, table: Tensor) -> Tensor:
        shared = self.features.to(table.dtype) @ self.vectors.to(table.dtype)
        return table + shared


def share_features(model: TokenRigForCausalLM, levels: Sequence[int]) -> None:
    """Give the tokens of `model`, in place, a vector per feature (see `token_features`); 0 at first.

    levels: of the skin VAE's FSQ. Raises ValueError if their product is not the size of the codebook. Source:
    this project.
    """
    words = model.config.get_vocabulary()
    coordinates, digits = coordinate_features(words.bins), digit_features(levels)
    if len(digits) != words.codebook:
        raise ValueError(f"FSQ levels {list(levels)} have {len(digits)} codes, not {words.codebook}")
    features = torch.zeros(model.config.vocab_size, coordinates.shape[1] + digits.shape[1])
    features[: words.bins, : coordinates.shape[1]] = coordinates
    features[words.skin_first : words.eos, coordinates.shape[1] :] = digits
    vectors = _FeatureVectors(features, model.config.hidden_size)
    # Embedding and head are tied: the same vectors belong to both.
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        parametrize.register_parametrization(module, "weight", vectors)


def merge_features(model: TokenRigForCausalLM) -> None:
    """Make the embeddings of `model` a plain table again, in place; the inverse of `share_features`."""
    parametrize.remove_parametrizations(model.get_input_embeddings(), "weight", leave_parametrized=True)
    # That changed the table itself, which the head shares: it must not get the vectors a second time.
    parametrize.remove_parametrizations(model.get_output_embeddings(), "weight", leave_parametrized=False)
    model.tie_weights()


def coordinate_features(bins: int) -> Tensor:
    """Features (bins, 15) float32 of coordinates: the bin's centre x in [-1, 1], sin and cos of 2^k π/2 x."""
    centres = (torch.arange(bins) + 0.5) * (2 / bins) - 1
    phases = centres[:, None] * (math.pi / 2 * 2.0 ** torch.arange(_OCTAVES))
    return torch.cat([centres[:, None], phases.sin(), phases.cos()], dim=1)


def digit_features(levels: Sequence[int]) -> Tensor:
    """Features (codes, sum of levels) float32 of SkinTokens: 1 for each digit of a code, else 0."""
    fsq = FSQ(levels, len(levels))
    digits = fsq.indices_to_digits(torch.arange(fsq.codebook_size))
    starts = torch.tensor([0, *levels[:-1]]).cumsum(0)
    return torch.zeros(fsq.codebook_size, sum(levels)).scatter_(1, digits + starts, 1.0)
