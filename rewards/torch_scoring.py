"""Rig scoring on a torch device: the numbers of `score`, for skin decoders that keep weights on a GPU.

Exhaustive, not pruned: every cell is compared with every joint, without branches. Everything is float64, so
that the results agree with `rewards.score` up to rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike

from rewards.containment import bone_points
from rewards.coverage import decay_per_cell
from rewards.diagnostics import joint_diagnostics
from rewards.errors import RewardError, RigRewardError
from rewards.lbs import NO_WEIGHT, check_rotations, skinning_matrices
from rewards.occupancy import OccupancyGrid
from rewards.score import Rig, RigScore, guards_of
from rewards.scoring_mesh import ScoringMesh
from rewards.settings import RewardSettings
from rewards.skeleton import check_joints, check_parents
from rewards.smoothness import LENGTH_EPSILON, smoothness_of
from rewards.sparsity import sparsity_of

# Cells compared with the joints at a time: 2^16 cells by 40 joints by 3 float64 coordinates are 63 MB.
CELLS_PER_CHUNK = 1 << 16


@dataclass(frozen=True, eq=False)
class DeviceMesh:
    """What scoring needs of a mesh, on a device.

    Attributes:
        source: the mesh on the host.
        centres: (N, 3) float64 centres of the occupied cells, in cells from the grid's origin.
        vertices: (S, 3) float64, mesh frame.
        edges: (E, 2) int64.
        rest_lengths: (E,) float64 lengths at rest plus the formula's 1e-6.
    """

    source: ScoringMesh
    centres: torch.Tensor
    vertices: torch.Tensor
    edges: torch.Tensor
    rest_lengths: torch.Tensor


def to_device(mesh: ScoringMesh, device: torch.device | str) -> DeviceMesh:
    """Copy what scoring needs of a mesh to `device`, once per mesh."""
    vertices = torch.from_numpy(mesh.vertices.astype(np.float64)).to(device)
    edges = torch.from_numpy(mesh.edges).to(device)
    lengths = (vertices[edges[:, 0]] - vertices[edges[:, 1]]).norm(dim=1) + LENGTH_EPSILON
    return DeviceMesh(mesh, cell_centres(mesh.grid, device), vertices, edges, lengths)


def cell_centres(grid: OccupancyGrid, device: torch.device | str) -> torch.Tensor:
    """Centres of the occupied cells, in cells from the grid's origin: (N, 3) float64."""
    return torch.from_numpy(np.argwhere(grid.occupied)).to(device, torch.float64) + 0.5


def joint_coverage_torch(centres: torch.Tensor, joints: torch.Tensor, decay: float) -> torch.Tensor:
    """`rewards.joint_coverage`, a scalar, from cell centres (N, 3) and joints (J, 3), float64, in cells."""
    total = centres.new_zeros(())
    for chunk in centres.split(CELLS_PER_CHUNK):
        # Not torch.cdist: its matrix-product form loses half the digits.
        nearest = (chunk[:, None] - joints[None]).square().sum(dim=2).amin(dim=1)
        total += (-decay * nearest.sqrt()).exp().sum()
    return total / len(centres)


def linear_blend_skinning_torch(
    vertices: torch.Tensor, weights: torch.Tensor, matrices: torch.Tensor
) -> torch.Tensor:
    """`rewards.linear_blend_skinning`, all float64: vertices (S, 3), weights (S, J) and matrices (P, J, 3, 4)
    to posed vertices (P, S, 3).
    """
    total = weights.sum(dim=1)
    blend = torch.einsum("sj,pjab->psab", weights, matrices)
    moved = torch.einsum("psab,sb->psa", blend[..., :3], vertices) + blend[..., 3]
    weighted = total > NO_WEIGHT
    return torch.where(weighted[:, None], moved / torch.where(weighted, total, 1.0)[:, None], vertices)


def score_rig_torch(
    mesh: DeviceMesh,
    joints: ArrayLike,
    parents: ArrayLike,
    weights: torch.Tensor,
    rotations: ArrayLike,
    settings: RewardSettings,
) -> RigScore:
    """`rewards.score_rig` with weights (S, J) float on the mesh's device; the same errors."""
    rest = check_joints(joints)
    up = check_parents(parents, len(rest))
    _check_weights(weights, len(mesh.vertices), len(rest))
    shared = np.asarray(rotations, dtype=np.float64)
    turns = check_rotations(shared[:, : len(rest)] if shared.ndim == 4 else shared, len(rest))
    device = mesh.vertices.device
    matrices = torch.from_numpy(skinning_matrices(rest, up, turns)).to(device)
    posed = linear_blend_skinning_torch(mesh.vertices, weights.double(), matrices)
    ends = posed[:, mesh.edges]
    stretch = ((ends[:, :, 0] - ends[:, :, 1]).norm(dim=2) / mesh.rest_lengths).clamp(min=1.0)
    if stretch.shape[1] == 0:
        stretch = stretch.new_ones((len(stretch), 1))
    largest, mean = stretch.amax(dim=1).cpu().numpy(), stretch.mean(dim=1).cpu().numpy()
    grid = mesh.source.grid
    in_cells = torch.from_numpy((rest - grid.origin) / grid.cell).to(device)
    beta = torch.tensor(settings.threshold, dtype=weights.dtype)
    uninfluenced = (weights < beta).all(dim=1).double().mean().item()
    overinfluenced = ((weights > beta).sum(dim=1) > settings.max_influences).double().mean().item()
    strongest, owner = weights.max(dim=1)
    weighted = strongest > 0
    owned = owner[weighted].bincount(minlength=len(rest)).cpu().numpy()
    elsewhere = (weights[:, torch.from_numpy(up >= 0).to(device)] > 0).any(dim=1)
    return RigScore(
        coverage=joint_coverage_torch(
            mesh.centres, in_cells, decay_per_cell(grid, settings.alpha, settings.distance_unit)
        ).item(),
        containment=float(grid.contains(bone_points(rest, up, settings.samples_per_bone)).mean()),
        sparsity=sparsity_of(uninfluenced, overinfluenced, settings.unbound_power, settings.crowded_power),
        smoothness=smoothness_of(largest if settings.reduce == "max" else mean, settings.smoothness_scale),
        diagnostics=joint_diagnostics(rest, up)
        | {
            "unused_bones": float((owned == 0).mean()),
            "root_only_vertices": (weighted & ~elsewhere).sum().item() / max(int(weighted.sum()), 1),
            "worst_stretch": float(largest.max()),
        },
        guards=guards_of(rest, owned, settings),
    )


def score_group_torch(
    mesh: DeviceMesh, rigs: Sequence[Rig], rotations: ArrayLike, settings: RewardSettings
) -> list[RigScore | RigRewardError]:
    """`rewards.score_group` with each rig's weights on the mesh's device."""
    scores: list[RigScore | RigRewardError] = []
    for rig in rigs:
        try:
            scores.append(score_rig_torch(mesh, rig.joints, rig.parents, rig.weights, rotations, settings))
        except RigRewardError as error:
            scores.append(error)
    return scores


def _check_weights(weights: torch.Tensor, vertex_count: int, joint_count: int) -> None:
    if tuple(weights.shape) != (vertex_count, joint_count):
        raise RewardError(
            f"weights have shape {tuple(weights.shape)}; "
            f"this mesh and rig need ({vertex_count}, {joint_count})"
        )
    if not bool(((weights >= 0) & (weights <= 1e30)).all()):
        raise RigRewardError("a weight is negative, above 1e30 or not finite; discard the rig")
