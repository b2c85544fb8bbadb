"""Reward settings: every parameter of the rewards; defaults are the paper's values where it gives them."""

import math
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from rewards.coverage import DistanceUnit
from rewards.guards import GUARD_NAMES
from rewards.occupancy import Interior
from rewards.poses import pose_seed, random_rotations
from rewards.recorded_poses import load_recorded_poses, recorded_rotations
from rewards.smoothness import Reduce

REWARD_NAMES = ("coverage", "containment", "sparsity", "smoothness")

# The part of a rig that each reward judges. Poses turn joints, but what tears or collapses then is the skin.
PARTS: dict[str, tuple[str, ...]] = {
    "skeleton": ("coverage", "containment", "joint_count_prior"),
    "skin": ("sparsity", "smoothness", "bone_influence", "volume_preservation", "weight_locality"),
}


def parts_of(name: str) -> tuple[str, ...]:
    """The parts of a rig that a reward judges: both for a user's own."""
    return tuple(part for part, names in PARTS.items() if name in names) or tuple(PARTS)


@dataclass(frozen=True)
class RewardSettings:
    """Parameters of the rewards. Brackets hold the paper's symbols; a * marks values that it does not give.

    Attributes:
        resolution: cells along the longest side [196].
        interior: which interior cells count as occupied: projection*, flood or surface (none).
        alpha: decay of the coverage per unit of distance [alpha = 0.05].
        distance_unit: unit of that distance: cells* or mesh.
        samples_per_bone: intervals between the sample points of a bone [s = 10].
        threshold: weight above which a bone influences a vertex [beta = 0.1].
        max_influences: how many bones may influence a vertex [4].
        unbound_power: exponent of the fraction of vertices with every weight below beta [alpha_z], 1*.
        crowded_power: exponent of the fraction of vertices with too many influences [alpha_m], 1*.
        poses: random poses per mesh and step [5].
        max_angle_deg: largest joint rotation of a pose, degrees, 30*.
        wide_poses: further random poses, with larger rotations*.
        wide_angle_deg: largest joint rotation of those, degrees*.
        smoothness_scale: [s of R_mo], 1*.
        reduce: over edges: max as in the formula, or mean.
        max_scoring_vertices: larger meshes are scored on a fixed random subset, 16,384*: the number of
            queries per mesh of the released skin VAE.
        pose_file: recorded poses instead of random ones*, see `rewards.recorded_poses`.
        guards: guard rewards to enable*, any of `rewards.guards.GUARD_NAMES`.
        min_owned_vertices: n of bone_influence*.
        expected_joints: of joint_count_prior*.
        joint_count_factor: of joint_count_prior*.
        custom: the user's own rewards*, as `package.module:function`, see `rewards.custom`.

    Raises:
        ValueError: a value out of range; the message names the field.
    """

    resolution: int = 196
    interior: Interior = "projection"
    alpha: float = 0.05
    distance_unit: DistanceUnit = "cells"
    samples_per_bone: int = 10
    threshold: float = 0.1
    max_influences: int = 4
    unbound_power: float = 1.0
    crowded_power: float = 1.0
    poses: int = 5
    max_angle_deg: float = 30.0
    wide_poses: int = 0
    wide_angle_deg: float = 90.0
    smoothness_scale: float = 1.0
    reduce: Reduce = "max"
    max_scoring_vertices: int = 16384
    pose_file: str | None = None
    guards: tuple[str, ...] = ()
    min_owned_vertices: int = 1
    expected_joints: float = 30.0
    joint_count_factor: float = 2.0
    custom: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, choices in (
            ("interior", get_args(Interior)),
            ("distance_unit", get_args(DistanceUnit)),
            ("reduce", get_args(Reduce)),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}")
        for name in ("alpha", "smoothness_scale", "expected_joints", "unbound_power", "crowded_power"):
            if getattr(self, name) == math.inf:
                raise ValueError(f"{name} is inf; it must be finite")
        for name, least in (
            ("resolution", 1),
            ("alpha", 0),
            ("samples_per_bone", 1),
            ("max_influences", 0),
            ("poses", 1),
            ("wide_poses", 0),
            ("smoothness_scale", 0),
            ("max_scoring_vertices", 2),
            ("min_owned_vertices", 1),
        ):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if not set(self.guards) <= set(GUARD_NAMES):
            raise ValueError(f"guards is {self.guards}; choose from {', '.join(GUARD_NAMES)}")
        if not self.joint_count_factor > 1:
            raise ValueError(f"joint_count_factor is {self.joint_count_factor}; it must be above 1")
        for name in ("unbound_power", "crowded_power", "expected_joints"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}; it must be between 0 and 1")
        for name in ("max_angle_deg", "wide_angle_deg"):
            if not 0 <= getattr(self, name) <= 180:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be between 0 and 180")

    @property
    def reward_names(self) -> tuple[str, ...]:
        """Names of all rewards that are scored: the paper's four, the enabled guards, the user's own."""
        return REWARD_NAMES + self.guards + tuple(place.partition(":")[2] for place in self.custom)

    def rotations(
        self,
        joint_count: int,
        seed: int,
        parents: NDArray[np.int64] | None = None,
        names: tuple[str, ...] = (),
    ) -> NDArray[np.float64]:
        """Joint rotations of all poses of one mesh and step: random or from `pose_file`, then the wide ones.

        Args:
            joint_count: J, the largest of the group.
            seed: from `pose_seed`.
            parents: (J,) int, -1 for a root; needed with `pose_file` only.
            names: J joint names, or none; used with `pose_file` only.

        Returns:
            (P, J, 3, 3) float64, P = poses + wide_poses.

        Raises:
            PoseFileError: an unusable pose file.
            ValueError: `pose_file` without `parents`.
        """
        poses = self._poses(joint_count, seed, parents, names)
        if self.wide_poses == 0:
            return poses
        # A seed of their own: the other poses are those of a run without wide ones.
        wide = random_rotations(self.wide_poses, joint_count, self.wide_angle_deg, pose_seed(seed, "wide", 0))
        return np.concatenate([poses, wide])

    def _poses(
        self, joint_count: int, seed: int, parents: NDArray[np.int64] | None, names: tuple[str, ...]
    ) -> NDArray[np.float64]:
        if self.pose_file is None:
            return random_rotations(self.poses, joint_count, self.max_angle_deg, seed)
        if parents is None:
            raise ValueError("recorded poses are mapped onto the rig's hierarchy; pass the rig's parents")
        return recorded_rotations(
            load_recorded_poses(self.pose_file), self.poses, np.asarray(parents, dtype=np.int64), seed, names
        )
