"""Torch scoring equals the CPU path's numbers, on torch's CPU device and, if there is one, on CUDA."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rewards import RewardError, RewardSettings, RigRewardError, prepare_scoring_mesh, score_group, score_rig
from rewards import torch_scoring as device_path
from tests.rewards import cases
from tests.rewards.shapes import blob, random_rig

NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, NO_CUDA])]


def on(device, rig):
    return SimpleNamespace(
        joints=rig.joints, parents=rig.parents, weights=torch.from_numpy(rig.weights).to(device)
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reduce": "mean", "distance_unit": "mesh", "crowded_power": 2.0},
        {"guards": ("bone_influence", "joint_count_prior")},
    ],
)
def test_same_numbers_as_the_cpu_path(device, options):
    rng = np.random.default_rng(4)
    settings = RewardSettings(resolution=40, **options)
    mesh = prepare_scoring_mesh(*blob(rng, faces=80), settings)
    rigs = [
        SimpleNamespace(**dict(zip(("joints", "parents", "weights"), rig, strict=True)))
        for rig in (random_rig(rng, joints, len(mesh.vertices)) for joints in (1, 2, 9, 17))
    ]
    rotations = settings.rotations(17, 3)
    copied = device_path.to_device(mesh, device)
    ours = device_path.score_group_torch(copied, [on(device, rig) for rig in rigs], rotations, settings)
    for score, expected in zip(ours, score_group(mesh, rigs, rotations, settings), strict=True):
        assert score.rewards == pytest.approx(expected.rewards, rel=1e-10)
        assert score.diagnostics == pytest.approx(expected.diagnostics, rel=1e-10)


@pytest.mark.parametrize("device", DEVICES)
def test_reference_case(device, monkeypatch):
    monkeypatch.setattr(device_path, "CELLS_PER_CHUNK", 10_000)  # several chunks, the last not full
    data, numbers = cases.inputs("Fox"), cases.expected("Fox")["variants"]["joints_shift_random"]
    mesh = prepare_scoring_mesh(data["vertices"], data["faces"], RewardSettings())
    joints, weights = data["joints_shift_random"], data["weights"][mesh.source]
    rotations = RewardSettings().rotations(len(joints), 0)
    score = device_path.score_rig_torch(
        device_path.to_device(mesh, device),
        joints,
        data["parents"],
        torch.from_numpy(weights).to(device),
        rotations,
        RewardSettings(),
    )
    assert score.coverage == pytest.approx(numbers["R_vj_projection"], abs=1e-6)
    assert score.containment == pytest.approx(numbers["R_vk_projection"], abs=1e-6)
    expected = score_rig(mesh, joints, data["parents"], weights, rotations, RewardSettings())
    assert score.rewards == pytest.approx(expected.rewards, rel=1e-10)


def test_rig_and_caller_faults_are_distinguished():
    rng = np.random.default_rng(0)
    settings = RewardSettings(resolution=10)
    mesh = device_path.to_device(prepare_scoring_mesh(*blob(rng, faces=5), settings), "cpu")
    joints, parents, weights = random_rig(rng, 3, len(mesh.vertices))
    good = torch.from_numpy(weights)
    rotations = settings.rotations(3, 0)
    rigs = [
        SimpleNamespace(joints=joints, parents=parents, weights=good * float("nan")),
        SimpleNamespace(joints=joints, parents=np.array([1, 0, 0]), weights=good),
        SimpleNamespace(joints=joints, parents=parents, weights=-good),
    ]
    scores = device_path.score_group_torch(mesh, rigs, rotations, settings)
    assert all(isinstance(score, RigRewardError) for score in scores)
    with pytest.raises(RewardError, match=r"need \(15, 3\)") as caught:
        device_path.score_rig_torch(mesh, joints, parents, good[:4], rotations, settings)
    assert caught.type is RewardError
