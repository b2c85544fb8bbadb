"""Keeps the rewards of each row as the reward functions returned them; TRL drops a NaN reward silently."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor

RewardFunction = Callable[..., list[float | None]]


class RewardRecord:
    """The last rewards of this process by reward function, in the order in which TRL calls the functions."""

    def __init__(self) -> None:
        self._last: dict[str, Sequence[float | None]] = {}
        self._is_rig: list[bool] = []

    def recorded(self, function: RewardFunction) -> RewardFunction:
        """`function`, with its rewards recorded, and every one that is not finite passed on as infinity.

        TRL reads None as NaN and NaN as "not received", so a NaN reward would vanish from the row's sum. An
        infinite one makes the whole group's advantages 0, and every process sees it.
        """

        @wraps(function)
        def recorded(*arguments: Any, **columns: Any) -> list[float | None]:
            rewards = function(*arguments, **columns)
            self._last[function.__name__] = rewards
            self._is_rig = [rollout.joints is not None for rollout in columns["scored_rollout"]]
            return [value if value is None or math.isfinite(value) else math.inf for value in rewards]

        return recorded

    def columns(self, device: torch.device) -> dict[str, Tensor]:
        """What the step guard reads, by row.

        `rewards` (B, F) float32; `has_reward` (B, F) bool, whether the row received that reward; `is_rig`
        (B,) bool, False for tokens that are no rig, whose rewards are 0 without any scoring.
        """
        rows = list(zip(*self._last.values(), strict=True))
        rewards = [[math.nan if value is None else value for value in row] for row in rows]
        received = [[value is not None for value in row] for row in rows]
        return {
            "rewards": torch.tensor(rewards, device=device),
            "has_reward": torch.tensor(received, device=device),
            "is_rig": torch.tensor(self._is_rig, device=device),
        }


def mark_reward_metrics(metrics: defaultdict[str, list[Any]]) -> None:
    """Tell apart, in the entries that TRL has just added, rewards without a value (None) and bad ones (NaN).

    TRL's means are NaN if no row received the reward, and infinite if one is not finite; see `recorded`.
    """
    bad = False
    for key in [key for key in metrics if key.startswith("rewards/") and key.endswith("/mean")]:
        mean, std = metrics[key], metrics[key.removesuffix("mean") + "std"]
        if math.isinf(mean[-1]):
            bad, mean[-1], std[-1] = True, math.nan, math.nan
        else:
            mean[-1], std[-1] = _or_none(mean[-1]), _or_none(std[-1])
    for key in ("reward", "reward_std"):
        metrics[key][-1] = math.nan if bad else _or_none(metrics[key][-1])


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
