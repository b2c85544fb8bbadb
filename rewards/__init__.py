"""Rewards of a decoded rig: occupancy grid, the paper's four rewards, rig scoring and the reward service.

Importing this package must stay light (no torch, Ray or SciPy): every scoring actor holds a copy of it.
"""

from rewards.containment import bone_containment
from rewards.coverage import joint_coverage
from rewards.edges import mesh_edges
from rewards.errors import MeshRewardError, RewardError, RigRewardError
from rewards.guards import bone_influence, joint_count_prior
from rewards.lbs import linear_blend_skinning, skinning_matrices
from rewards.locality import weight_locality
from rewards.occupancy import OccupancyGrid, build_occupancy
from rewards.poses import pose_seed, random_rotations
from rewards.score import RigScore, score_group, score_rig
from rewards.scoring_mesh import ScoringMesh, prepare_scoring_mesh
from rewards.settings import REWARD_NAMES, RewardSettings
from rewards.smoothness import deformation_smoothness
from rewards.sparsity import skin_sparsity
from rewards.volume import volume_preservation

__all__ = [
    "REWARD_NAMES",
    "MeshRewardError",
    "OccupancyGrid",
    "RewardError",
    "RewardSettings",
    "RigRewardError",
    "RigScore",
    "ScoringMesh",
    "bone_containment",
    "bone_influence",
    "build_occupancy",
    "deformation_smoothness",
    "joint_count_prior",
    "joint_coverage",
    "linear_blend_skinning",
    "mesh_edges",
    "pose_seed",
    "prepare_scoring_mesh",
    "random_rotations",
    "score_group",
    "score_rig",
    "skin_sparsity",
    "skinning_matrices",
    "volume_preservation",
    "weight_locality",
]
