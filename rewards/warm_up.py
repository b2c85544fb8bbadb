"""Compiles the scoring kernels before the first rig is scored, once per machine (see `data.compiled`)."""

from dataclasses import replace

import numpy as np

from data import welding
from data.compiled import compile_once
from rewards.kernels import coverage, geometry, locality, occupancy, skinning, volume, weights
from rewards.poses import random_rotations
from rewards.score import RewardSettings, prepare_scoring_mesh, score_rig

# All that scoring calls. Kernels that these call are compiled with them.
KERNELS = (
    welding._faces_with_area,
    welding._group,
    welding._vertex_normals,
    occupancy.corners_within,
    occupancy.bounding_box,
    occupancy.mark_surface,
    occupancy.fill_projection,
    occupancy.fill_flood,
    coverage.coverage_sum,
    geometry.duplicate_joints,
    skinning.chain_transforms,
    skinning.skin_vertices,
    skinning.edge_stretch,
    weights.first_bad_row,
    weights.count_influences,
    weights.owned_vertices,
    weights.root_only_vertices,
    volume.kept_volume,
    locality.owning_bones,
    locality.leaked_shares,
)
# Guards with kernels of their own, which are compiled only if they are enabled.
GUARD_KERNELS = ("volume_preservation", "weight_locality")


def compile_kernels(settings: RewardSettings) -> None:
    """Load from numba's cache, or compile, every kernel that scoring with these settings calls.

    Every scoring worker calls this first. On a machine where the kernels are not compiled yet, one worker
    compiles them and the others wait for it.
    """
    variant = "/".join([settings.interior, *sorted(set(settings.guards) & set(GUARD_KERNELS))])
    compile_once(KERNELS, lambda: _score_tetrahedron(settings), variant)


def _score_tetrahedron(settings: RewardSettings) -> None:
    """Prepare a small mesh and score one rig on it, with the types of arrays that the service scores."""
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float32)
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    few_cells = replace(settings, resolution=8, custom=())
    mesh = prepare_scoring_mesh(vertices, faces, few_cells)
    joints, parents = vertices[:2], np.array([-1, 0])
    skin = np.full((len(mesh.vertices), 2), 0.5, dtype=np.float32)
    score_rig(mesh, joints, parents, skin, random_rotations(1, 2, settings.max_angle_deg, 0), few_cells)
