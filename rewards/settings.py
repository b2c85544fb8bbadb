"""Every number the rewards depend on, with the paper's (or this project's) values as defaults."""

from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from rewards.coverage import DistanceUnit
from rewards.guards import GUARD_NAMES
from rewards.occupancy import Interior
from rewards.poses import random_rotations
from rewards.recorded_poses import load_recorded_poses, recorded_rotations
from rewards.smoothness import Reduce

REWARD_NAMES = ("coverage", "containment", "sparsity", "smoothness")


@dataclass(frozen=True)
class RewardSettings:
    """Parameters of the rewards. Brackets hold the paper's symbols; values that it does not give have a *.

    Attributes:
        resolution: cells along the longest side [196].
        interior: which inner cells count as occupied: projection*, flood or surface.
        alpha: decay of the coverage per unit of distance [alpha = 0.05].
        distance_unit: unit of that distance: cells* or mesh.
        samples_per_bone: intervals between samples on a bone [s = 10].
        threshold: weight from which on a bone influences a vertex [beta = 0.1].
        max_influences: influences a vertex may have [4].
        unbound_power: [alpha_z], 1*.
        crowded_power: [alpha_m], 1*.
        poses: random poses per mesh and step [5].
        max_angle_deg: largest joint rotation of a pose, degrees, 30*.
        smoothness_scale: [s of R_mo], 1*.
        reduce: over edges: max as in the formula, or mean.
        max_scoring_vertices: meshes with more are scored on a fixed random subset, 16,384*: as many as the
            released skin model's queries per mesh.
        pose_file: recorded poses instead of random ones*: see `rewards.recorded_poses`.
        guards: opt-in rewards to score as well*, of `rewards.guards`: bone_influence, joint_count_prior.
        min_owned_vertices: of bone_influence*.
        expected_joints: of joint_count_prior*.
        joint_count_factor: of joint_count_prior*.

    Raises:
        ValueError: a value out of range, naming the field.
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
    smoothness_scale: float = 1.0
    reduce: Reduce = "max"
    max_scoring_vertices: int = 16384
    pose_file: str | None = None
    guards: tuple[str, ...] = ()
    min_owned_vertices: int = 1
    expected_joints: float = 30.0
    joint_count_factor: float = 2.0

    def __post_init__(self) -> None:
        for name, choices in (
            ("interior", get_args(Interior)),
            ("distance_unit", get_args(DistanceUnit)),
            ("reduce", get_args(Reduce)),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}")
        for name, least in (
            ("resolution", 1),
            ("alpha", 0),
            ("samples_per_bone", 1),
            ("max_influences", 0),
            ("poses", 1),
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
        if not 0 <= self.max_angle_deg <= 180:
            raise ValueError(f"max_angle_deg is {self.max_angle_deg}; it must be between 0 and 180")

    @property
    def reward_names(self) -> tuple[str, ...]:
        """Names of all rewards that are scored: the paper's four, then the guards asked for."""
        return REWARD_NAMES + self.guards

    def rotations(
        self,
        joint_count: int,
        seed: int,
        parents: NDArray[np.int64] | None = None,
        names: tuple[str, ...] = (),
    ) -> NDArray[np.float64]:
        """The poses of one mesh and step for a rig with J joints, (P, J, 3, 3) float64.

        Random ones (`random_rotations`), or from `pose_file` (`recorded_rotations`), which needs the rig's
        parents (J,) and uses its joint names, if it has any. Raises PoseFileError for an unusable file and
        ValueError for a pose file without `parents`.
        """
        if self.pose_file is None:
            return random_rotations(self.poses, joint_count, self.max_angle_deg, seed)
        if parents is None:
            raise ValueError("recorded poses are mapped by hierarchy; pass the rig's parents")
        return recorded_rotations(
            load_recorded_poses(self.pose_file), self.poses, np.asarray(parents, dtype=np.int64), seed, names
        )
