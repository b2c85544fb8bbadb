"""Muon for matrices and AdamW for everything else, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class MuonAdamW(torch.optim.Optimizer):
    """Steps a `torch.optim.Muon` and a `torch.optim.AdamW` that share its parameter groups and state.

    The training loop and accelerate see one optimizer: one state dict, one list of groups, one `step`.
    Updates equal those of the two optimizers bit for bit. Gradients must be whole matrices, so ZeRO's flat
    partitions are not supported.
    """

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW) -> None:
        self._muon, self._adamw = muon, adamw
        self._muon_groups = len(muon.param_groups)
        super().__init__([*muon.param_groups, *adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both optimizers; returns the loss of `closure`, which must recompute the gradients."""
        loss: Tensor | float | None = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Loading a state dict replaces groups and state.
        groups = self.param_groups
        self._muon.param_groups = groups[: self._muon_groups]
        self._adamw.param_groups = groups[self._muon_groups :]
        self._muon.state = self._adamw.state = self.state
        self._muon.step()
        self._adamw.step()
        return loss
