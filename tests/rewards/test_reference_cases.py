"""Real rigs and their corruptions: rewards against an independent brute-force program's numbers."""

import hashlib

import numpy as np
import pytest

import rewards
from rewards.poses import rotation_matrices
from rewards.references import (
    bone_containment_reference,
    deformation_smoothness_reference,
    joint_coverage_reference,
    skin_sparsity_reference,
)
from rewards.smoothness import edge_stretch
from tests.rewards import cases

VARIANTS = [(name, variant) for name in cases.NAMES for variant in cases.expected(name)["variants"]]


@pytest.mark.parametrize("interior", cases.INTERIORS)
@pytest.mark.parametrize("name", cases.NAMES)
def test_grid_is_identical_cell_for_cell(name, interior):
    grid, voxel = cases.grid(name, interior), cases.expected(name)["voxel"]
    assert list(grid.occupied.shape) == voxel["dims"]
    assert grid.origin.tolist() == pytest.approx(voxel["origin"], abs=1e-12)
    assert grid.cell == pytest.approx(voxel["h"], rel=1e-12)
    assert grid.count == voxel[interior]
    assert (
        hashlib.sha256(np.packbits(grid.occupied).tobytes()).hexdigest()[:16] == voxel[f"sha256_{interior}"]
    )


@pytest.mark.parametrize(
    ("coverage", "containment"),
    [
        (rewards.joint_coverage, rewards.bone_containment),
        (joint_coverage_reference, bone_containment_reference),
    ],
    ids=["fast", "reference"],
)
@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_joint_rewards(name, variant, coverage, containment):
    data, numbers = cases.inputs(name), cases.expected(name)["variants"][variant]
    joints = data[numbers["joints"]]
    for interior in cases.INTERIORS:
        grid = cases.grid(name, interior)
        if f"R_vj_{interior}" in numbers:
            assert coverage(grid, joints) == pytest.approx(numbers[f"R_vj_{interior}"], abs=1e-6)
        if f"R_vk_{interior}" in numbers:
            value = containment(grid, joints, data["parents"])
            assert value == pytest.approx(numbers[f"R_vk_{interior}"], abs=1e-6)


@pytest.mark.parametrize("sparsity", [rewards.skin_sparsity, skin_sparsity_reference])
@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_sparsity(name, variant, sparsity):
    numbers = cases.expected(name)["variants"][variant]
    assert sparsity(cases.inputs(name)[numbers["weights"]]) == pytest.approx(numbers["R_sc"], abs=1e-9)


@pytest.mark.parametrize(
    "smoothness",
    [rewards.deformation_smoothness, deformation_smoothness_reference],
    ids=["fast", "reference"],
)
@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_smoothness(name, variant, smoothness):
    data, numbers = cases.inputs(name), cases.expected(name)["variants"][variant]
    edges = rewards.mesh_edges(data["faces"])
    assert len(edges) == cases.expected(name)["n_edges"]
    rig = (data[numbers["joints"]], data["parents"], data[numbers["weights"]])
    rotations = rotation_matrices(data["poses"].astype(np.float64))
    for reduce in ("max", "mean"):
        value = smoothness(data["vertices"], edges, *rig, rotations, reduce=reduce)
        assert value == pytest.approx(numbers[f"R_mo_{reduce}"], abs=1e-5)
    largest, mean, _ = edge_stretch(data["vertices"], edges, *rig, rotations)
    assert largest.tolist() == pytest.approx(numbers["per_pose_max"], rel=1e-6)
    assert mean.tolist() == pytest.approx(numbers["per_pose_mean"], rel=1e-6)
