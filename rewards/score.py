"""Rig scoring: the four rewards, the guards and the diagnostics of one rig or of a group of rigs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rewards.containment import bone_points
from rewards.coverage import joint_coverage
from rewards.diagnostics import rig_diagnostics
from rewards.errors import RigRewardError
from rewards.guards import joint_count_prior
from rewards.kernels.weights import owned_vertices
from rewards.lbs import skin, skinning_matrices
from rewards.locality import locality_of
from rewards.scoring_mesh import ScoringMesh, prepare_scoring_mesh
from rewards.settings import REWARD_NAMES, RewardSettings
from rewards.skeleton import check_joints, check_parents
from rewards.smoothness import smoothness_of, stretch_of
from rewards.sparsity import influence_fractions, sparsity_of
from rewards.volume import volume_of
from rewards.weights import check_weights

__all__ = [
    "REWARD_NAMES",
    "RewardSettings",
    "RigScore",
    "ScoringMesh",
    "prepare_scoring_mesh",
    "score_group",
    "score_rig",
]


class Rig(Protocol):
    """A rig to score, with weights at a scoring mesh's vertices; `data.Rig` is one."""

    @property
    def joints(self) -> Any:
        """(J, 3) float, mesh frame."""

    @property
    def parents(self) -> Any:
        """(J,) int, -1 for a root."""

    @property
    def weights(self) -> Any:
        """(S, J) float >= 0, raw."""


@dataclass(frozen=True)
class RigScore:
    """The rewards of one rig, each in [0, 1], and its diagnostics (see `rewards.diagnostics`).

    `guards` holds the guard rewards that the settings enable, by name, and `custom` the user's own.
    """

    coverage: float
    containment: float
    sparsity: float
    smoothness: float
    diagnostics: dict[str, float]
    guards: dict[str, float] = field(default_factory=dict)
    custom: dict[str, float] = field(default_factory=dict)

    @property
    def rewards(self) -> dict[str, float]:
        """The rewards by name, in the order of `RewardSettings.reward_names`: the four, guards, custom."""
        return {name: getattr(self, name) for name in REWARD_NAMES} | self.guards | self.custom


def score_rig(
    mesh: ScoringMesh,
    joints: ArrayLike,
    parents: ArrayLike,
    weights: ArrayLike,
    rotations: ArrayLike,
    settings: RewardSettings,
) -> RigScore:
    """All rewards and diagnostics of one rig; the rigs of a mesh share `mesh`, see `prepare_scoring_mesh`.

    Args:
        mesh: S scoring vertices.
        joints: (J, 3) float, mesh frame.
        parents: (J,) int, -1 for a root; any order, no cycles.
        weights: (S, J) float >= 0 at `mesh.vertices`, raw: a sigmoid per bone, not normalised.
        rotations: (P, K, 3, 3) float, K >= J; the first J are used, so that a group can share one array.
        settings: the rewards' parameters.

    Raises:
        RigRewardError: the rig cannot be scored (the policy's fault).
        RewardError: weights or rotations do not fit this mesh or rig (the caller's fault).
        CustomRewardError: a user's own reward cannot be used; see `rewards.custom`.
    """
    rest = check_joints(joints)
    up = check_parents(parents, len(rest))
    skin_weights = check_weights(weights, len(mesh.vertices), len(rest))
    shared = np.asarray(rotations, dtype=np.float64)
    matrices = skinning_matrices(rest, up, shared[:, : len(rest)] if shared.ndim == 4 else shared)
    vertices = mesh.vertices.astype(np.float64)
    posed = skin(vertices, skin_weights, matrices)
    largest, mean, _ = stretch_of(vertices, mesh.edges, posed)
    owned = owned_vertices(skin_weights)
    contained = mesh.grid.contains(bone_points(rest, up, settings.samples_per_bone))
    score = RigScore(
        coverage=joint_coverage(mesh.grid, rest, settings.alpha, settings.distance_unit),
        containment=float(contained.mean()),
        sparsity=sparsity_of(
            *influence_fractions(skin_weights, settings.threshold, settings.max_influences),
            settings.unbound_power,
            settings.crowded_power,
        ),
        smoothness=smoothness_of(largest if settings.reduce == "max" else mean, settings.smoothness_scale),
        diagnostics=rig_diagnostics(rest, up, skin_weights, owned, float(largest.max())),
        guards=guards_of(mesh, rest, up, skin_weights, owned, matrices, settings),
    )
    if not settings.custom:
        return score
    from rewards.custom import custom_rewards, reward_inputs  # only workers with such rewards need more

    inputs = reward_inputs(mesh, rest, up, skin_weights, posed, score.rewards, score.diagnostics)
    return replace(score, custom=custom_rewards(settings.custom, inputs))


def guards_of(
    mesh: ScoringMesh,
    joints: NDArray[np.float64],
    parents: NDArray[np.int64],
    weights: NDArray[Any],
    owned: NDArray[np.int64],
    matrices: NDArray[np.float64],
    settings: RewardSettings,
) -> dict[str, float]:
    """The guard rewards that the settings enable, in their order; others are not computed.

    joints (J, 3), mesh frame; parents (J,); weights (S, J) from `check_weights`; owned (J,) from
    `owned_vertices`; matrices (P, J, 3, 4) from `skinning_matrices`.
    """
    values: dict[str, Callable[[], float]] = {
        "bone_influence": lambda: float((owned >= settings.min_owned_vertices).mean()),
        "joint_count_prior": lambda: joint_count_prior(
            len(joints), settings.expected_joints, settings.joint_count_factor
        ),
        "volume_preservation": lambda: volume_of(weights, matrices),
        "weight_locality": lambda: locality_of(
            mesh.coarse, mesh.vertices.astype(np.float64), joints, parents, weights
        ),
    }
    return {name: values[name]() for name in settings.guards}


def score_group(
    mesh: ScoringMesh, rigs: Sequence[Rig], rotations: ArrayLike, settings: RewardSettings
) -> list[RigScore | RigRewardError]:
    """Score the rigs of one mesh in the same poses; a rig that cannot be scored gets its error as its result.

    Args:
        mesh: S scoring vertices.
        rigs: each with joints (J, 3), parents (J,), weights (S, J); J may differ.
        rotations: (P, K, 3, 3) float, K at least the largest J; joint j of every rig gets `rotations[:, j]`.
        settings: the rewards' parameters.

    Raises:
        RewardError: weights or rotations do not fit the mesh or a rig (the caller's fault).
        CustomRewardError: a user's own reward cannot be used.
    """
    scores: list[RigScore | RigRewardError] = []
    for rig in rigs:
        try:
            scores.append(score_rig(mesh, rig.joints, rig.parents, rig.weights, rotations, settings))
        except RigRewardError as error:
            scores.append(error)
    return scores
