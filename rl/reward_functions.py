"""The reward functions TRL calls, and the metrics they log per step: validity, diagnostics, times."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tqdm import tqdm

from data.command_line import RunFailedError
from rewards.service import RewardService, SupervisedService
from rewards.worker import GroupScore
from rl.phases import REWARD_WAIT, phase
from rl.scoring import PendingScore

LogMetric = Callable[[str, float], None]


@dataclass(frozen=True)
class RolloutBatch:
    """Times and size of one batch of rollouts on one process.

    rollout_seconds: time to sample it. submit_seconds: time to submit it for scoring, which with the inline
    backend includes the scoring. tokens: number of sampled tokens.
    """

    rollout_seconds: float
    submit_seconds: float
    tokens: int


@dataclass(frozen=True)
class ScoredRollout:
    """One rollout as it travels from the rollout function to the reward functions through TRL's columns.

    joints: number of joints, None if the completion is not a rig. batch: shared by all rows of the batch.
    """

    score: PendingScore
    joints: int | None
    batch: RolloutBatch


class RigRewards:
    """The rewards of a recipe as TRL reward functions, which only look up scores computed elsewhere.

    The first function also logs what is not a reward, and stops the run after `max_failed_batches` batches in
    a row without any score. With a `service` whose workers can fail, it logs their failures so far.
    """

    def __init__(
        self, names: Sequence[str], max_failed_batches: int, service: RewardService | None = None
    ) -> None:
        self.names, self.max_failed_batches = tuple(names), max_failed_batches
        self._service = service if isinstance(service, SupervisedService) else None
        self._failed_batches = 0

    def functions(self) -> list[Callable[..., list[float | None]]]:
        """One function per reward, named after it, in the order of the recipe's weights."""
        return [self._function(name, first=i == 0) for i, name in enumerate(self.names)]

    def _function(self, name: str, first: bool) -> Callable[..., list[float | None]]:
        def reward(
            scored_rollout: list[ScoredRollout], log_metric: LogMetric, **columns: Any
        ) -> list[float | None]:
            if first:
                if self._service is not None:
                    state = columns.get("trainer_state")
                    self._service.at_step(None if state is None else state.global_step + 1)
                self._log(scored_rollout, log_metric)
            rewards = [rollout.score.rewards([name]) for rollout in scored_rollout]
            return [None if row is None else row[name] for row in rewards]

        reward.__name__ = name
        return reward

    def _log(self, rollouts: Sequence[ScoredRollout], log_metric: LogMetric) -> None:
        """Wait for the batch's scores, then log validity, joints, diagnostics, times and failures."""
        batch = rollouts[0].batch
        log_metric("seconds/rollout", batch.rollout_seconds)
        log_metric("tokens_per_second", batch.tokens / batch.rollout_seconds)
        started = time.perf_counter()
        with phase(REWARD_WAIT):
            groups = list({id(group): group for group in (row.score.group() for row in rollouts)}.values())
        log_metric("seconds/wait_for_rewards", batch.submit_seconds + time.perf_counter() - started)
        log_metric("seconds/decode", sum(group.decode_seconds for group in groups))
        log_metric("seconds/score", sum(group.score_seconds for group in groups))
        scores = [row.score.score() for row in rollouts]
        is_rig = [row.joints is not None for row in rollouts]
        unscored = sum(score.rewards is None for score in scores)
        log_metric("rig/unscored", float(unscored))
        if unscored:
            reason = _failure(groups) or "their mesh cannot be scored"
            tqdm.write(
                f"{unscored} of {len(rollouts)} rigs have no score and are excluded: {reason}",
                file=sys.stderr,
            )
        if self._service is not None:
            for name, count in asdict(self._service.health()).items():
                log_metric(f"workers/{name}", float(count))
        self._count_failures([row for row, rig in zip(rollouts, is_rig, strict=True) if rig])
        # A rig that no worker could score is still valid; one that scoring rejects is not.
        valid = [
            rig and (score.valid or score.rewards is None) for score, rig in zip(scores, is_rig, strict=True)
        ]
        log_metric("rig/valid", sum(valid) / len(valid))
        # One number per rig: TRL averages over the rigs of all processes, which may differ in number.
        for row in rollouts:
            if row.joints is not None:
                log_metric("rig/joints", float(row.joints))
        for score in scores:
            for name, number in score.diagnostics.items() if score.valid else ():
                log_metric(f"rig/{name}", number)

    def _count_failures(self, rigs: Sequence[ScoredRollout]) -> None:
        """`rigs`: the rows that are rigs; the others score 0 without a worker. Rows of quarantined meshes do
        not count: they have a budget of their own, `data.max_quarantined`."""
        counted = [row.score for row in rigs if not row.score.group().quarantined]
        if not counted:
            return
        failed = all(score.score().rewards is None for score in counted)
        self._failed_batches = self._failed_batches + 1 if failed else 0
        if self._failed_batches >= self.max_failed_batches:
            reason = _failure([score.group() for score in counted]) or "the meshes cannot be scored"
            raise RunFailedError(
                f"{self._failed_batches} batches in a row could not be scored ({reason}), as many as "
                "'workers.max_failed_batches' allows; check the Ray logs and run the same command again to "
                "resume from the last checkpoint"
            )


def _failure(groups: Sequence[GroupScore]) -> str | None:
    return next((group.failure for group in groups if group.failure), None)
