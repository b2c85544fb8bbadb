"""Losses of stage 2: the negative log-likelihood of rig tokens, of all and by phase."""

from __future__ import annotations

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
