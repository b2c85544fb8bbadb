"""Phase credit: skeleton tokens get the advantage of the skeleton's rewards, SkinTokens that of the skin's.

    A_phase = (R_phase - mean over the group) / (standard deviation over the group + 1e-4)

R_phase is the weighted sum of the phase's rewards (docs/rewards.md, "Phase credit"). This project's own; the
normalisation is TRL's, phase by phase.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from trl.trainer.utils import nanstd

from rewards.settings import PARTS, parts_of

_EPSILON = 1e-4  # TRL's


@dataclass(frozen=True)
class Normalisation:
    """How TRL turns rewards into advantages: its options of these names."""

    num_generations: int
    multi_objective_aggregation: str
    scale_rewards: str


@dataclass(frozen=True)
class PhaseAdvantages:
    """Advantages (B, T) float32 of one process's completions, and metrics of the whole batch by name."""

    advantages: Tensor
    metrics: dict[str, float]


def phase_advantages(
    rewards: Tensor,
    weights: Tensor,
    names: Sequence[str],
    options: Normalisation,
    completion_ids: Tensor,
    skeleton_end: int,
    first_row: int,
) -> PhaseAdvantages:
    """Advantages of each token from the rewards of its phase.

    Args:
        rewards: (N, F) float, of all processes, groups as neighbours; NaN for a reward that is missing.
        weights: (F,) float.
        names: F names, in the same order. A name that is in none of `rewards.settings.PARTS`, a user's own
            reward, counts in both phases.
        options: of the run.
        completion_ids: (B, T) int64, of this process, padded after the end.
        skeleton_end: the token that ends the skeleton; those after it are the skin's.
        first_row: which of the N rows is the first of this process.
    """
    own_rows = slice(first_row, first_row + len(completion_ids))
    of_phase, metrics = {}, {}
    for phase in PARTS:
        columns = [place for place, name in enumerate(names) if phase in parts_of(name)]
        found, equal = group_advantages(rewards[:, columns], weights[columns], options)
        of_phase[phase] = found[own_rows, None]
        metrics[f"credit/{phase}_zero_std"] = float(equal.float().mean())
    skin = after_skeleton(completion_ids, skeleton_end)
    return PhaseAdvantages(torch.where(skin, of_phase["skin"], of_phase["skeleton"]), metrics)


def after_skeleton(completion_ids: Tensor, skeleton_end: int) -> Tensor:
    """(B, T) bool: the tokens behind the first `skeleton_end` of their row."""
    ends = completion_ids == skeleton_end
    return (ends.cumsum(dim=1) - ends.int()) > 0


def group_advantages(rewards: Tensor, weights: Tensor, options: Normalisation) -> tuple[Tensor, Tensor]:
    """TRL's advantages of the weighted rewards.

    Args:
        rewards: (N, F) float, groups as neighbours; NaN for a reward that is missing.
        weights: (F,) float.
        options: of the run.

    Returns:
        Advantages (N,), 0 for a row without any reward; whether the row's rewards have no spread (N,) bool.
    """
    group = options.num_generations
    missing = rewards.isnan().all(dim=1)
    if options.multi_objective_aggregation == "normalize_then_sum":
        grouped = rewards.view(-1, group, rewards.shape[1])
        spread = nanstd(grouped, dim=1, keepdim=True)
        single = (grouped - grouped.nanmean(dim=1, keepdim=True)) / (spread + _EPSILON)
        total = (single.view(rewards.shape) * weights).nansum(dim=1).masked_fill(missing, torch.nan)
        deviation = nanstd(total).expand_as(total)
        advantages = (total - total.nanmean()) / (deviation + _EPSILON)
    else:
        total = (rewards * weights).nansum(dim=1).masked_fill(missing, torch.nan)
        groups = total.view(-1, group)
        mean = groups.nanmean(dim=1).repeat_interleave(group)
        if options.scale_rewards == "batch":
            deviation = nanstd(total).expand_as(total)
        else:
            deviation = nanstd(groups, dim=1).repeat_interleave(group)
        advantages = total - mean
        if options.scale_rewards != "none":
            advantages = advantages / (deviation + _EPSILON)
    return advantages.nan_to_num(nan=0.0), deviation.isclose(torch.zeros_like(deviation))
