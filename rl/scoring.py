"""Reads rigs from completions, submits them for scoring, and collects their scores."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from policy.tokens.skeleton_tokenizer import RigTokenError, detokenize, split_rig
from policy.tokens.vocabulary import Vocabulary
from rewards.service import PendingGroupScore, RewardService
from rewards.worker import GroupScore, RolloutRig, RolloutScore
from rl.given_skeleton import GivenSkeleton
from rl.recipe import RewardsRecipe, total_reward


def read_rollout(
    completion_ids: Sequence[int],
    class_id: int,
    vocabulary: Vocabulary,
    given: GivenSkeleton | None = None,
) -> RolloutRig | None:
    """The rig that a completion encodes, or None if it is incomplete or malformed (the policy's fault).

    With a given skeleton, the completion holds its SkinTokens, and the rig has its exact joints in the given
    order.
    """
    rig = _read(completion_ids, class_id, vocabulary, given)
    return rig if isinstance(rig, RolloutRig) else None


def why_unreadable(
    completion_ids: Sequence[int],
    class_id: int,
    vocabulary: Vocabulary,
    given: GivenSkeleton | None = None,
) -> str | None:
    """Why `read_rollout` finds no rig in a completion, in the tokenizer's words; None if it finds one."""
    rig = _read(completion_ids, class_id, vocabulary, given)
    return None if isinstance(rig, RolloutRig) else rig


def _read(
    completion_ids: Sequence[int], class_id: int, vocabulary: Vocabulary, given: GivenSkeleton | None
) -> RolloutRig | str:
    prompt = [vocabulary.bos, class_id, *(given.tokens if given is not None else ())]
    try:
        skeleton, codes = split_rig([*prompt, *completion_ids], vocabulary)
        if given is not None:
            return given.rollout_rig(codes)
        decoded = detokenize(skeleton, vocabulary)
    except RigTokenError as error:
        return str(error)
    return RolloutRig(decoded.joints, decoded.parents, codes)


@dataclass(frozen=True, eq=False)
class SampledRollout:
    """One rollout of a training step as it was sampled, with the score that it was sent off for.

    mesh: index into the bank. tokens: its completion, <eos> included. seed: of its sampling; pose_seed: of
    the poses that it is scored in. rig: None if the tokens are no rig.
    """

    mesh: int
    class_id: int
    tokens: Sequence[int]
    seed: int
    pose_seed: int
    rig: RolloutRig | None
    score: PendingScore


class PendingScore:
    """The score of one rollout, waited for on first use: scoring overlaps the log-probability passes."""

    def __init__(self, pending: PendingGroupScore, row: int) -> None:
        self._pending, self._row = pending, row

    def group(self) -> GroupScore:
        """Scores of all rollouts of this mesh in this batch."""
        return self._pending.result()

    def score(self) -> RolloutScore:
        """Score of this rollout."""
        return self.group().scores[self._row]

    def rewards(self, names: Sequence[str]) -> dict[str, float] | None:
        """Rewards of this rollout: all 0 for an invalid rig, None if it could not be scored."""
        score = self.score()
        if score.rewards is None:
            return None
        return {name: score.rewards[name] if score.valid else 0.0 for name in names}

    def rank(self, rewards: RewardsRecipe) -> float:
        """Total reward to rank rollouts by: -inf for an invalid rig and one that could not be scored."""
        score = self.score()
        return total_reward(score.rewards, rewards) if score.valid and score.rewards else -math.inf


def submit_scores(
    service: RewardService,
    meshes: Sequence[int],
    rigs: Sequence[RolloutRig | None],
    seed_of: Callable[[int], int],
) -> list[PendingScore]:
    """Submit rigs for scoring, one request per mesh; entry i is the score of rigs[i] on mesh meshes[i].

    `seed_of(mesh)` is the pose seed, shared by all rollouts of the mesh.
    """
    rows_of: dict[int, list[int]] = defaultdict(list)
    for row, mesh in enumerate(meshes):
        rows_of[mesh].append(row)
    scores: dict[int, PendingScore] = {}
    for mesh, rows in rows_of.items():
        pending = service.submit(mesh, [rigs[row] for row in rows], seed_of(mesh))
        scores.update({row: PendingScore(pending, place) for place, row in enumerate(rows)})
    return [scores[row] for row in range(len(rigs))]
