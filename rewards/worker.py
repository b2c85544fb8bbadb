"""Data types of the reward service, and the scoring of one group by both backends. Imports no torch."""

from __future__ import annotations

import hashlib
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from rewards.errors import MeshRewardError, RigRewardError
from rewards.score import (
    REWARD_NAMES,
    RewardSettings,
    RigScore,
    ScoringMesh,
    prepare_scoring_mesh,
    score_group,
)

V = TypeVar("V")

INVALID_REWARDS = dict.fromkeys(REWARD_NAMES, 0.0)


@dataclass(frozen=True, eq=False)
class RewardMesh:
    """A mesh to score on, with the point cloud that conditions the skin decoder; mesh frame.

    Attributes:
        name: for messages; part of the key.
        vertices: (V, 3) float.
        faces: (F, 3) int.
        points: (N, 3) float32 surface samples.
        normals: (N, 3) float32, at the points.
        file: where it comes from, for messages; not part of the key.
    """

    name: str
    vertices: NDArray[np.floating]
    faces: NDArray[np.integer]
    points: NDArray[np.float32]
    normals: NDArray[np.float32]
    file: str | None = None

    @cached_property
    def key(self) -> str:
        """Digest of name and geometry: a cached result is never used for another mesh."""
        digest = hashlib.blake2b(self.name.encode(), digest_size=16)
        for array in (self.vertices, self.faces, self.points, self.normals):
            digest.update(f"/{array.dtype.str}{array.shape}/".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class RolloutRig:
    """A complete rollout: joints (J, 3) float32, mesh frame; parents (J,), SkinTokens codes (J, K) int64."""

    joints: NDArray[np.float32]
    parents: NDArray[np.int64]
    codes: NDArray[np.int64]


class _DecodedRig(NamedTuple):
    joints: NDArray[np.float32]
    parents: NDArray[np.int64]
    weights: NDArray[np.float32]


@dataclass(frozen=True)
class RolloutScore:
    """The score of one rollout.

    Attributes:
        rewards: by name; None if scoring failed and the policy is not to blame (worker, time-out, mesh).
        valid: False if the rollout is not a complete rig (its rewards are 0) or was not scored.
        diagnostics: by name, see `rewards.diagnostics`; empty unless valid.
        reason: why scoring rejects the rig, for a complete one that is not valid.
    """

    rewards: dict[str, float] | None
    valid: bool
    diagnostics: dict[str, float] = field(default_factory=dict)
    reason: str | None = None


@dataclass(frozen=True)
class GroupScore:
    """Scores of the rollouts of one mesh, in order, and the seconds spent on decoding and scoring them.

    `failure` is the reason why rollouts have no rewards (None), if any; `quarantined`: that is because their
    mesh is quarantined.
    """

    scores: list[RolloutScore]
    decode_seconds: float
    score_seconds: float
    failure: str | None = None
    quarantined: bool = False


@dataclass(frozen=True)
class ServiceHealth:
    """Workers replaced since the service started, those of them that hung, and quarantined meshes."""

    restarts: int
    hung: int
    quarantined: int


UNSCORED = RolloutScore(rewards=None, valid=False)
INVALID = RolloutScore(rewards=INVALID_REWARDS, valid=False)


def prepare(mesh: RewardMesh, settings: RewardSettings) -> ScoringMesh | str:
    """The scoring mesh, or one sentence with the mesh's name that says why it cannot be scored."""
    try:
        return prepare_scoring_mesh(mesh.vertices, mesh.faces, settings, mesh.name)
    except MeshRewardError as error:
        return f"{mesh.name}: {error}"


def with_progress(items: Iterable[V], count: int) -> Iterable[V]:
    """The items, with a progress bar on standard error if they take more than a second."""
    return tqdm(items, "prepare meshes", count, file=sys.stderr, delay=1, unit="mesh")


def check_prepared(mesh: int, reasons: Sequence[str | None]) -> None:
    """Raise ValueError if mesh `mesh` cannot be scored, IndexError if there is no such mesh."""
    if not 0 <= mesh < len(reasons):
        raise IndexError(
            f"mesh {mesh} was not prepared; prepare it before scoring ({len(reasons)} meshes are prepared)"
        )
    if reasons[mesh] is not None:
        raise ValueError(f"mesh {mesh} cannot be scored: {reasons[mesh]}")


def score_rollouts(
    scoring_mesh: ScoringMesh,
    rigs: Sequence[RolloutRig],
    weights: Sequence[NDArray[np.float32]],
    seed: int,
    settings: RewardSettings,
) -> list[RolloutScore]:
    """Score complete rollouts of one mesh in the poses of `seed`.

    A rig's score does not depend on which others are scored with it. A rig that cannot be scored gets zeros:
    its tokens are the policy's fault.

    Args:
        scoring_mesh: S vertices.
        rigs: R rollouts.
        weights: R arrays (S, J) float32, the decoder's weights at the scoring mesh's vertices.
        seed: from `pose_seed`.
        settings: the rewards' parameters.

    Raises:
        RewardError: weights that do not fit the mesh or a rig (the caller's fault).
    """
    if not rigs:
        return []
    decoded = [
        _DecodedRig(rig.joints, rig.parents, rig_weights)
        for rig, rig_weights in zip(rigs, weights, strict=True)
    ]
    # Joint j of every rig gets the same rotation; recorded poses follow a rig's hierarchy.
    groups = [decoded] if settings.pose_file is None else [[rig] for rig in decoded]
    scores: list[RigScore | RigRewardError] = []
    for group in groups:
        largest = max(group, key=lambda rig: len(rig.joints))
        try:
            rotations = settings.rotations(len(largest.joints), seed, largest.parents)
        except RigRewardError as error:
            scores += [error] * len(group)
            continue
        scores += score_group(scoring_mesh, group, rotations, settings)
    return [
        replace(INVALID, reason=str(score))
        if isinstance(score, RigRewardError)
        else RolloutScore(score.rewards, True, score.diagnostics)
        for score in scores
    ]


def merge_invalid(rigs: Sequence[RolloutRig | None], scores: Sequence[RolloutScore]) -> list[RolloutScore]:
    """Scores of all rollouts: zeros where a rig is None, `scores`, in order, for the others."""
    remaining = iter(scores)
    return [INVALID if rig is None else next(remaining) for rig in rigs]


class LRUCache(Generic[V]):
    """Least-recently-used cache of at most `size` values, which bounds a worker's memory.

    Threads may share it: two that miss the same key at once both make the value, and one of them is kept.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._values: OrderedDict[str, V] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str, make: Callable[[], V]) -> V:
        """The value of `key`, made by `make` on a miss."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        made = make()
        with self._lock:
            value = self._values.setdefault(key, made)
            self._values.move_to_end(key)
            while len(self._values) > self.size:
                self._values.popitem(last=False)
        return value
