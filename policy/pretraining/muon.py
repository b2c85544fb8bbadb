"""Muon for matrices and AdamW for everything else, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class MuonAdamW(torch.optim.Optimizer):
    """Steps a `torch.optim.Muon` and a `torch.optim.AdamW` that share its parameter groups and state.

    One object, so that one state dict, one set of groups and one `step` is all that a training loop or
    accelerate sees. The arithmetic is theirs, to the last bit. Gradients must be of whole matrices: Muon
    makes no sense on the flat pieces that ZeRO hands out.
    """

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW) -> None:
        self._muon, self._adamw = muon, adamw
        self._muon_groups = len(muon.param_groups)
        super().__init__([*muon.param_groups, *adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both; returns what `closure` does, which must compute the gradients anew."""
        loss: Tensor | float | None = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Loading a state dict makes new groups and a new state.
        groups = self.param_groups
        self._muon.param_groups = groups[: self._muon_groups]
        self._adamw.param_groups = groups[self._muon_groups :]
        self._muon.state = self._adamw.state = self.state
        self._muon.step()
        self._adamw.step()
        return loss
