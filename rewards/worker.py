"""What a reward worker does, whichever process it runs in: decode SkinTokens, score the rigs of one mesh."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from policy.skin_vae import SkinVAE
from rewards.errors import MeshRewardError, RigRewardError
from rewards.guards import GUARD_NAMES
from rewards.score import REWARD_NAMES, RewardSettings, ScoringMesh, prepare_scoring_mesh, score_rig

INVALID_REWARDS = dict.fromkeys((*REWARD_NAMES, *GUARD_NAMES), 0.0)


@dataclass(frozen=True, eq=False)
class RewardMesh:
    """A mesh as a reward worker needs it: faces to score on and the cloud the decoder is conditioned on.

    vertices (V, 3), faces (F, 3); points, normals (N, 3) float32 surface samples; mesh frame.
    """

    name: str
    vertices: NDArray[np.floating]
    faces: NDArray[np.integer]
    points: NDArray[np.float32]
    normals: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class RolloutRig:
    """A complete rollout: joints (J, 3) float32, mesh frame; parents (J,), SkinTokens codes (J, K) int64."""

    joints: NDArray[np.float32]
    parents: NDArray[np.int64]
    codes: NDArray[np.int64]


@dataclass(frozen=True)
class RolloutScore:
    """Rewards of one rollout by name.

    `rewards` is None when no score could be had and the policy is not to blame (worker, time-out, mesh);
    `valid` is False for a rollout that is no rig: its rewards are all 0.
    """

    rewards: dict[str, float] | None
    valid: bool
    diagnostics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class GroupScore:
    """Scores of the rollouts of one mesh, in order, and the seconds spent decoding and scoring them."""

    scores: list[RolloutScore]
    decode_seconds: float
    score_seconds: float
    failure: str | None = None


UNSCORED = RolloutScore(rewards=None, valid=False)
INVALID = RolloutScore(rewards=INVALID_REWARDS, valid=False)


class SkinDecoder:
    """The frozen decoder. Condition latents are computed once per mesh; see `SkinVAE.decode` for the rest."""

    def __init__(self, skin_vae: SkinVAE, device: str = "cpu", threads: int = 1) -> None:
        self.skin_vae = skin_vae.to(device).eval().requires_grad_(False)
        self.device = device
        self.threads = threads
        self._conditions: dict[int, torch.Tensor] = {}

    def decode(
        self,
        key: int,
        points: NDArray[np.float32],
        normals: NDArray[np.float32],
        scoring_mesh: ScoringMesh,
        codes: Sequence[NDArray[np.int64]],
    ) -> list[NDArray[np.float32]]:
        """Weights (S, J) float32 at the scoring mesh's vertices for each rollout's codes (J, K), one batch.

        `key` names the mesh whose cloud `points`, `normals` (N, 3) conditions the decoder.
        """
        if not codes:
            return []
        # A fixed thread count makes every backend sum in the same order, so rewards agree to the last bit.
        with _torch_threads(self.threads):
            if key not in self._conditions:
                self._conditions[key] = self.skin_vae.encode_condition(
                    self._tensor(points)[None], self._tensor(normals)[None]
                )
            weights = self.skin_vae.decode(
                torch.from_numpy(np.concatenate(codes)).to(self.device),
                self._conditions[key],
                self._tensor(scoring_mesh.vertices),
                self._tensor(scoring_mesh.normals),
            )
        per_bone = weights.cpu().numpy()
        ends = np.cumsum([len(rows) for rows in codes])[:-1]
        return [np.ascontiguousarray(rows.T) for rows in np.split(per_bone, ends)]

    def _tensor(self, values: NDArray[np.floating]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(self.device)


def score_rollouts(
    scoring_mesh: ScoringMesh,
    rigs: Sequence[RolloutRig],
    weights: Sequence[NDArray[np.float32]],
    seed: int,
    settings: RewardSettings,
) -> list[RolloutScore]:
    """Score complete rollouts of one mesh with the poses of `seed`.

    A rig that cannot be scored gets zeros: its tokens are the policy's fault.
    """
    scores = []
    for rig, rig_weights in zip(rigs, weights, strict=True):
        # Joint j turns alike in every rig of the group: see `random_rotations`.
        rotations = settings.rotations(len(rig.joints), seed, rig.parents)
        try:
            score = score_rig(scoring_mesh, rig.joints, rig.parents, rig_weights, rotations, settings)
        except RigRewardError:
            scores.append(INVALID)
        else:
            scores.append(RolloutScore(score.rewards, True, score.diagnostics))
    return scores


def prepare(mesh: RewardMesh, settings: RewardSettings) -> ScoringMesh | str:
    """The scoring mesh, or why there is none (one sentence)."""
    try:
        return prepare_scoring_mesh(mesh.vertices, mesh.faces, settings, mesh.name)
    except MeshRewardError as error:
        return f"{mesh.name}: {error}"


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
