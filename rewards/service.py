"""The reward service: rollouts of a mesh in, their scores out. Here its interface and the in-process twin."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from policy.skintokens.skin_vae import SkinVAE
from rewards.score import RewardSettings, ScoringMesh
from rewards.skin_decoder import SkinDecoder
from rewards.worker import (
    GroupScore,
    RewardMesh,
    RolloutRig,
    check_prepared,
    merge_invalid,
    prepare,
    score_rollouts,
    with_progress,
)


class PendingGroupScore(Protocol):
    """Scores on their way."""

    def result(self) -> GroupScore:
        """Wait for the scores; the same answer every time it is asked."""
        ...


class RewardService(Protocol):
    """Scores rollouts. The backends give identical numbers."""

    def prepare_meshes(self, meshes: Sequence[RewardMesh]) -> list[str | None]:
        """Do each mesh's share of the work; mesh k is `k` from now on, whatever was prepared before.

        Returns a reason for each mesh that cannot be scored, None for the others.
        """
        ...

    def submit(self, mesh: int, rigs: Sequence[RolloutRig | None], pose_seed: int) -> PendingGroupScore:
        """Start scoring rollouts of one mesh; None stands for a rollout that is no rig (rewards 0).

        Raises ValueError for a mesh that was refused, IndexError for one that was never prepared.
        """
        ...

    def close(self) -> None:
        """Give back processes and memory."""
        ...


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
        self._decoder = SkinDecoder(skin_vae, device, threads)
        self._meshes: list[tuple[RewardMesh, ScoringMesh | str]] = []
        self._reasons: list[str | None] = []

    def prepare_meshes(self, meshes: Sequence[RewardMesh]) -> list[str | None]:
        """See `RewardService`."""
        self._meshes = [(mesh, prepare(mesh, self.settings)) for mesh in with_progress(meshes, len(meshes))]
        self._reasons = [ready if isinstance(ready, str) else None for _, ready in self._meshes]
        return list(self._reasons)

    def submit(self, mesh: int, rigs: Sequence[RolloutRig | None], pose_seed: int) -> PendingGroupScore:
        """See `RewardService`; the scores are there when this returns."""
        check_prepared(mesh, self._reasons)
        source, ready = self._meshes[mesh]
        assert not isinstance(ready, str)
        complete = [rig for rig in rigs if rig is not None]
        start = time.perf_counter()
        weights = self._decoder.decode(source, ready.vertices, ready.normals, [rig.codes for rig in complete])
        decoded = time.perf_counter()
        scores = score_rollouts(ready, complete, weights, pose_seed, self.settings)
        return _Done(GroupScore(merge_invalid(rigs, scores), decoded - start, time.perf_counter() - decoded))

    def close(self) -> None:
        """Nothing to give back."""
