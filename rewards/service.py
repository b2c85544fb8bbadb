"""The reward service, rollouts in and scores out: its interface and the in-process backend."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from data.welding import mesh_places
from policy.skintokens.skin_vae import SkinVAE
from rewards.score import RewardSettings, ScoringMesh
from rewards.skin_decoder import DecoderDtype, SkinDecoder
from rewards.warm_up import compile_kernels
from rewards.worker import (
    GroupScore,
    RewardMesh,
    RolloutRig,
    RolloutScore,
    ServiceHealth,
    check_prepared,
    merge_invalid,
    prepare,
    score_rollouts,
    with_progress,
)


class PendingGroupScore(Protocol):
    """A group that has been submitted for scoring."""

    def result(self) -> GroupScore:
        """Wait for the scores; further calls return the same object."""
        ...


class RewardService(Protocol):
    """Scores rollouts; all backends return identical numbers."""

    def prepare_meshes(self, meshes: Sequence[RewardMesh]) -> list[str | None]:
        """Do the work that the rigs of a mesh share, for all meshes; they replace those prepared before.

        Returns:
            For each mesh None, or the reason why it cannot be scored.
        """
        ...

    def submit(self, mesh: int, rigs: Sequence[RolloutRig | None], pose_seed: int) -> PendingGroupScore:
        """Start scoring a group of rollouts of one mesh.

        Args:
            mesh: index into the meshes prepared last.
            rigs: the rollouts; None for one that is not a complete rig, which gets rewards of 0.
            pose_seed: from `pose_seed`.

        Raises:
            ValueError: the mesh cannot be scored.
            IndexError: there is no such mesh.
        """
        ...

    def close(self) -> None:
        """Release processes and memory."""
        ...


@runtime_checkable
class SupervisedService(RewardService, Protocol):
    """A service whose workers can fail and are replaced."""

    def health(self) -> ServiceHealth:
        """Failures so far."""
        ...

    def at_step(self, step: int | None) -> None:
        """Tell the current training step, which is noted with meshes that are quarantined."""
        ...


class _Done:
    def __init__(self, group: GroupScore) -> None:
        self._group = group

    def result(self) -> GroupScore:
        return self._group


class InlineRewardService:
    """Scores synchronously in this process: for debugging, tests and machines without Ray.

    Args:
        skin_vae: the frozen VAE, moved to `device`.
        settings: the rewards' parameters.
        device: the decoder's torch device.
        threads: torch threads while decoding; with 1, numbers equal the Ray backend's.
        dtype: of the decoder, see `SkinDecoder`.
    """

    def __init__(
        self,
        skin_vae: SkinVAE,
        settings: RewardSettings,
        device: str = "cpu",
        threads: int = 1,
        dtype: DecoderDtype = "float32",
    ) -> None:
        compile_kernels(settings)
        self.settings = settings
        self._decoder = SkinDecoder(skin_vae, device, threads, dtype)
        self._meshes: list[tuple[RewardMesh, ScoringMesh | str]] = []
        self._reasons: list[str | None] = []

    def prepare_meshes(self, meshes: Sequence[RewardMesh]) -> list[str | None]:
        """See `RewardService`."""
        self._meshes = [(mesh, prepare(mesh, self.settings)) for mesh in with_progress(meshes, len(meshes))]
        self._reasons = [ready if isinstance(ready, str) else None for _, ready in self._meshes]
        return list(self._reasons)

    def submit(self, mesh: int, rigs: Sequence[RolloutRig | None], pose_seed: int) -> PendingGroupScore:
        """See `RewardService`; scoring is complete when this returns."""
        return _Done(self.score(mesh, rigs, pose_seed)[0])

    def score(
        self, mesh: int, rigs: Sequence[RolloutRig | None], pose_seed: int
    ) -> tuple[GroupScore, list[NDArray[np.float32] | None]]:
        """The scores of `submit`, and the weights behind them.

        Returns:
            scores; for each rollout its raw weights (S, J) float32 at the scoring mesh's vertices, None for
            one that is not a complete rig.
        """
        source, ready = self._prepared(mesh)
        complete = [rig for rig in rigs if rig is not None]
        start = time.perf_counter()
        weights = self._decoder.decode(source, ready.vertices, ready.normals, [rig.codes for rig in complete])
        decoded = time.perf_counter()
        scores = score_rollouts(ready, complete, weights, pose_seed, self.settings)
        group = GroupScore(merge_invalid(rigs, scores), decoded - start, time.perf_counter() - decoded)
        remaining = iter(weights)
        return group, [None if rig is None else next(remaining) for rig in rigs]

    def score_weights(
        self, mesh: int, rig: RolloutRig, weights: NDArray[np.float32], pose_seed: int
    ) -> RolloutScore:
        """The score of a rig with other weights than the decoder's, such as those that a file stores.

        Args:
            mesh: index into the meshes prepared last.
            rig: joints and parents; its codes do not count.
            weights: (S, J) float32 at the scoring mesh's vertices.
            pose_seed: as in `submit`.
        """
        return score_rollouts(self._prepared(mesh)[1], [rig], [weights], pose_seed, self.settings)[0]

    def vertex_weights(self, mesh: int, rig: RolloutRig, scored: NDArray[np.float32]) -> NDArray[np.float32]:
        """The weights of a rig at all vertices of the mesh, to be written to a file: what was scored.

        Vertices at the same coordinates get the same weights: those that were scored where the scoring mesh
        has a vertex. Other places, of vertices beyond `max_scoring_vertices` or without a face with area, are
        decoded here (`data.welding.mesh_places`).

        Args:
            mesh: index into the meshes prepared last.
            rig: a complete rollout.
            scored: (S, J) float32, its weights from `score`.

        Returns:
            (V, J) float32, raw.
        """
        source, ready = self._prepared(mesh)
        places = mesh_places(source.vertices, source.faces)
        weights = np.empty((len(places.points), scored.shape[1]), dtype=np.float32)
        known = places.of_vertex[ready.source]
        weights[known] = scored
        rest = np.setdiff1d(np.arange(len(weights)), known)
        if len(rest):
            weights[rest] = self._decoder.decode(
                source, places.points[rest], places.normals[rest], [rig.codes]
            )[0]
        return weights[places.of_vertex]

    def close(self) -> None:
        """Nothing to release."""

    def _prepared(self, mesh: int) -> tuple[RewardMesh, ScoringMesh]:
        check_prepared(mesh, self._reasons)
        source, ready = self._meshes[mesh]
        assert not isinstance(ready, str)
        return source, ready
