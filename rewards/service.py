"""The reward service: rollouts of a mesh in, their scores out. Here its interface and the in-process twin."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from policy.skin_vae import SkinVAE
from rewards.score import RewardSettings, ScoringMesh
from rewards.worker import (
    INVALID,
    GroupScore,
    RewardMesh,
    RolloutRig,
    RolloutScore,
    SkinDecoder,
    prepare,
    score_rollouts,
)


class PendingScores(Protocol):
    """Scores on their way."""

    def result(self) -> GroupScore:
        """Wait for the scores; the same answer every time it is asked."""
        ...


class RewardService(Protocol):
    """Scores rollouts. The backends give identical numbers."""

    def prepare_meshes(self, meshes: Sequence[RewardMesh]) -> list[str | None]:
        """Do each mesh's share of the work; mesh k is `k` from now on.

        Returns a reason for each mesh that cannot be scored, None for the others.
        """
        ...

    def submit(self, mesh: int, rigs: Sequence[RolloutRig | None], pose_seed: int) -> PendingScores:
        """Start scoring rollouts of one mesh; None stands for a rollout that is no rig (rewards 0)."""
        ...

    def close(self) -> None:
        """Give back processes and memory."""
        ...


def merge_invalid(rigs: Sequence[RolloutRig | None], scores: Sequence[RolloutScore]) -> list[RolloutScore]:
    """Put zeros where a rollout was no rig: `scores` are those of the others, in order."""
    remaining = iter(scores)
    return [INVALID if rig is None else next(remaining) for rig in rigs]


class _Done:
    def __init__(self, group: GroupScore) -> None:
        self._group = group

    def result(self) -> GroupScore:
        return self._group


class InlineRewardService:
    """Scores in this process, at once: for debugging, tests and machines without Ray."""

    def __init__(
        self, skin_vae: SkinVAE, settings: RewardSettings, device: str = "cpu", threads: int = 1
    ) -> None:
        self.settings = settings
        self.decoder = SkinDecoder(skin_vae, device, threads)
        self._meshes: list[tuple[RewardMesh, ScoringMesh | str]] = []

    def prepare_meshes(self, meshes: Sequence[RewardMesh]) -> list[str | None]:
        """See `RewardService`."""
        self._meshes = [(mesh, prepare(mesh, self.settings)) for mesh in meshes]
        return [ready if isinstance(ready, str) else None for _, ready in self._meshes]

    def submit(self, mesh: int, rigs: Sequence[RolloutRig | None], pose_seed: int) -> PendingScores:
        """See `RewardService`. Raises ValueError for a mesh that was refused."""
        source, ready = self._meshes[mesh]
        if isinstance(ready, str):
            raise ValueError(f"mesh {mesh} cannot be scored: {ready}")
        complete = [rig for rig in rigs if rig is not None]
        start = time.perf_counter()
        weights = self.decoder.decode(
            mesh, source.points, source.normals, ready, [rig.codes for rig in complete]
        )
        decoded = time.perf_counter()
        scores = score_rollouts(ready, complete, weights, pose_seed, self.settings)
        return _Done(GroupScore(merge_invalid(rigs, scores), decoded - start, time.perf_counter() - decoded))

    def close(self) -> None:
        """Nothing to give back."""
