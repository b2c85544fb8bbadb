"""Chooses the pass that computes log-probabilities, packed or plain, and checks the packed one on CUDA."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from data.typed_recipe import RecipeError
from policy.tokenrig.configuration import TokenRigConfig
from policy.tokenrig.packed_attention import unsupported

Engine = Literal["auto", "fast", "plain"]

# Mean |difference| between the two passes, nats, over the completions that the check runs. Under autocast the
# plain pass keeps its residual stream in float32 and the packed one does not, which is most of it.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}


def compute_dtype(mixed_precision: str, weights: torch.dtype) -> torch.dtype:
    """The dtype of activations under accelerate's `mixed_precision` with weights of a dtype."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(mixed_precision, weights)


class LogProbEngine:
    """Which pass a run uses: decided once, at its first log-probabilities.

    Raises:
        RecipeError: the engine is `fast` and the packed pass cannot run on this device in this dtype.
    """

    def __init__(
        self, engine: Engine, device: torch.device, dtype: torch.dtype, config: TokenRigConfig
    ) -> None:
        self._required, self._dtype = engine == "fast", dtype
        self._packed = engine != "plain"
        self._unchecked = self._packed and device.type == "cuda"
        reason = unsupported(device, dtype, config.head_dim) if self._packed else None
        if reason is not None:
            self._refuse(reason)

    def packed(self, log_probs: Callable[[bool], Tensor]) -> bool:
        """Whether to run the packed pass.

        log_probs: computes a few log-probabilities (n,) of real tokens, packed if True; called twice on CUDA,
        the first time.

        Raises:
            RecipeError: the engine is `fast` and the packed pass fails its check.
        """
        if self._unchecked:
            self._unchecked = False
            self._check(log_probs)
        return self._packed

    @torch.no_grad()
    def _check(self, log_probs: Callable[[bool], Tensor]) -> None:
        expected = log_probs(False)
        try:
            found = log_probs(True)
        except RuntimeError as error:  # a kernel that cannot be compiled or run on this GPU
            self._refuse(f"it does not run here ({' '.join(str(error).split())[:200]})")
            return
        difference = float((found - expected).abs().mean())
        if not difference <= TOLERANCES[self._dtype]:
            self._refuse(
                f"its log-probabilities differ by {difference:.3g} nats on average, more than the "
                f"{TOLERANCES[self._dtype]:g} that {str(self._dtype).removeprefix('torch.')} explains"
            )

    def _refuse(self, reason: str) -> None:
        """Run the plain pass for this reason; raises RecipeError if the recipe demands the packed one."""
        self._packed = self._unchecked = False
        if self._required:
            raise RecipeError(f"'log_probs.engine' is fast, but {reason}; or set log_probs.engine=plain")
        print(
            f"log-probabilities use the plain pass, which repeats each mesh's prefix: {reason}",
            file=sys.stderr,
        )
