"""Losses of stage 2, by hand."""

import pytest
import torch

from policy.pretraining.rig_losses import rig_losses
from policy.tokens.vocabulary import Vocabulary

WORDS = Vocabulary(codebook=64, tokens_per_skin=2)


def test_rig_losses_by_hand():
    skin, end, eos = WORDS.skin_first, WORDS.skeleton_eos, WORDS.eos
    ids = torch.tensor([[5, 6, 7, end, skin, skin + 63, eos], [8, 9, 10, end, skin, eos, WORDS.pad]])
    real = ids != WORDS.pad
    log_probs = -torch.tensor(
        [[1.0, 2, 3, 4, 5, 6, 0], [7, 8, 9, 10, 11, 0, 99]]
    )  # 99: padding, never counted
    losses = rig_losses(log_probs, ids, real, WORDS)
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(
        {
            "loss": (1 + 2 + 3 + 4 + 5 + 6 + 7 + 8 + 9 + 10 + 11) / 13,  # the two ends of rig count, as 0
            "skeleton": (1 + 2 + 3 + 4 + 7 + 8 + 9 + 10) / 8,
            "skin": (5 + 6 + 11) / 3,
        }
    )
    # A pad is below the SkinTokens' ids: real, not its id, keeps it out of the skeleton's mean.
    assert WORDS.pad < skin


def test_skeletons_alone_have_no_skin_loss():
    ids = torch.tensor([[5, 6, 7, WORDS.skeleton_eos]])
    losses = rig_losses(torch.full((1, 4), -2.0), ids, torch.ones(1, 4, dtype=torch.bool), WORDS)
    assert {name: value.item() for name, value in losses.items()} == {"loss": 2.0, "skeleton": 2.0}
