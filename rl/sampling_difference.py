"""Measures how far the distribution that was sampled is from the one that is trained."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

MEAN, LARGEST, KL = "sampling/logp_difference", "sampling/logp_difference_max", "sampling/kl"


def sampling_difference(
    sampled: Tensor, trained: Tensor, mask: Tensor, gather: Callable[[Tensor], Tensor]
) -> dict[str, float]:
    """Difference between log-probabilities of the same sampled tokens, in nats, over all processes.

    sampled, trained, mask: (B, C), zero in the mask at padding; gather: concatenates all processes' (1, 4)
    tensors. Returns the mean and largest |sampled - trained| and the KL divergence of the trained from the
    sampled distribution, estimated as the mean of `exp(d) - 1 - d`, d = trained - sampled; empty without
    tokens. Source: Schulman, "Approximating KL Divergence" (k3).
    """
    used = mask.bool()
    log_ratio = (trained.detach() - sampled)[used].double()
    size = log_ratio.abs()
    largest = size.max() if len(size) else size.new_zeros(())
    sums = [size.sum(), (log_ratio.expm1() - log_ratio).sum(), used.sum().double(), largest]
    rows = gather(torch.stack(sums)[None]).tolist()
    difference, divergence, count, _ = (sum(column) for column in zip(*rows, strict=True))
    if not count:
        return {}
    return {MEAN: difference / count, LARGEST: max(row[3] for row in rows), KL: divergence / count}
