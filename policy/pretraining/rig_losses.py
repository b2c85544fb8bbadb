"""Losses of stage 2: log-likelihood of rig tokens by phase, and targets that spread over near coordinates."""

from __future__ import annotations

import torch
from torch import Tensor

from policy.pretraining.loop import Losses
from policy.tokens.vocabulary import Vocabulary


def rig_losses(log_probs: Tensor, ids: Tensor, real: Tensor, vocabulary: Vocabulary) -> Losses:
    """Mean negative log-likelihood per token under the strict grammar: `loss`, and its parts by phase.

    log_probs (B, C) of the completion ids (B, C); `real` (B, C) is False on padding.
    """
    nll = -log_probs
    skin = (ids >= vocabulary.skin_first) & (ids < vocabulary.eos) & real
    skeleton = (ids < vocabulary.skin_first) & real
    result = {
        "loss": nll[real].mean(),
        "skeleton": nll[skeleton].mean(),
    }
    if skin.any():
        result["skin"] = nll[skin].mean()
    return result


def smoothed_targets(hidden: Tensor, ids: Tensor, real: Tensor, coordinates: Tensor, sigma: float) -> Tensor:
    """What targets spread over near bins add to the negative log-likelihoods of coordinates, (B, C) float32.

    The target of bin b is the Gaussian of `sigma` bins about b, over all bins. Its cross entropy is
    -log p(b) - h · Σ_k q_k (e_k - e_b), because the logits are products of hidden state and embeddings.
    hidden (B, C, H), ids (B, C); `real` (B, C) is False on padding; coordinates (bins, H), their embeddings.
    """
    bins = torch.arange(len(coordinates), device=ids.device, dtype=torch.float32)
    spread = torch.softmax(-((bins[:, None] - bins) ** 2) / (2 * sigma**2), dim=1)
    with torch.autocast(ids.device.type, enabled=False):
        table = coordinates.float()
        shift = spread @ table - table
    chosen = (ids < len(coordinates)) & real
    added = torch.zeros(ids.shape, dtype=torch.float32, device=ids.device)
    added[chosen] = -(hidden[chosen].float() * shift[ids[chosen]]).sum(-1)
    return added
