"""Rollouts against ground truth: the same points for both, the right numbers, failures, awkward meshes."""

from dataclasses import astuple, replace

import numpy as np
import pytest

from data.mesh import Mesh
from data.rig import Rig
from data.sets.dataset import MeshSample, make_sample
from rewards.scoring_mesh import prepare_scoring_mesh
from rewards.settings import RewardSettings
from rewards.worker import RolloutRig
from rl.ground_truth import (
    FAILED_METRICS,
    GroundTruthMetrics,
    failed_metrics,
    make_ground_truth,
    rig_metrics,
)
from rl.meshes import load_meshes
from rl.metrics import BOX_SIDE, FAILED_MOTION, FAILED_SKELETON, FAILED_SKIN, motion_loss, skeleton_distances


def sample(vertices, faces, weights, joints=((0, 0, 0), (0.5, 0, 0)), parents=(-1, 0)) -> MeshSample:
    mesh = Mesh(np.array(vertices, dtype=np.float32), np.array(faces), "mesh", np.zeros(3), 1.0)
    rig = Rig(np.array(joints, dtype=np.float32), np.array(parents), np.array(weights, dtype=np.float32))
    return make_sample(mesh, rig, 16, 0)


# Two triangles that share an edge; vertices 3 and 4 repeat 1 and 2 (a seam), and 6 is used by no face.
SEAM = (
    [[-1, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [9, 9, 9]],
    [[0, 1, 2], [3, 5, 4]],
)
SEAM_WEIGHTS = [[1, 0], [0, 1], [0.5, 0.5], [0, 1], [0.5, 0.5], [0.25, 0.75], [1, 0]]


@pytest.fixture
def creatures(make_recipe) -> list[MeshSample]:
    return load_meshes(make_recipe()).samples


def test_ground_truth_is_compared_at_distinct_vertices_with_their_own_weights():
    truth = make_ground_truth(sample(*SEAM, SEAM_WEIGHTS), 100, 0)
    assert truth.points.tolist() == [[-1, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]]
    assert truth.rig.weights.tolist() == [[1, 0], [0, 1], [0.5, 0.5], [0.25, 0.75]]
    assert np.abs(truth.normals).tolist() == [[0, 0, 1]] * 4


def test_the_points_are_those_the_rewards_score(creatures):
    for item in creatures:
        truth = make_ground_truth(item, 10**6, 0)
        scoring = prepare_scoring_mesh(
            item.mesh.vertices, item.mesh.faces, RewardSettings(resolution=8, max_scoring_vertices=10**6)
        )
        assert np.array_equal(truth.points, scoring.vertices)
        assert np.array_equal(truth.normals, scoring.normals)
        assert np.array_equal(truth.rig.weights, item.rig.weights[scoring.source])


def test_of_many_vertices_a_fixed_choice(creatures):
    item = creatures[0]
    whole, few = make_ground_truth(item, 10**6, 0), make_ground_truth(item, 50, 0)
    assert len(few.points) == 50 < len(whole.points)
    assert np.array_equal(make_ground_truth(item, 50, 1).points, few.points)  # whatever the seed of the poses
    place = {point.tobytes(): weights for point, weights in zip(whole.points, whole.rig.weights, strict=True)}
    for point, weights in zip(few.points, few.rig.weights, strict=True):
        assert np.array_equal(place[point.tobytes()], weights)
    assert len({point.tobytes() for point in few.points}) == 50


def test_poses_leave_the_root_alone_and_depend_on_seed_and_mesh(creatures):
    first, again, other = (make_ground_truth(creatures[0], 50, seed).rotations for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.shape == (5, len(creatures[0].rig.joints), 3, 3)
    assert (first[:, 0] == np.eye(3)).all()
    # 1 + 2 cos(angle) is the trace: no turn is above 30 degrees.
    assert np.trace(first, axis1=2, axis2=3).min() >= 1 + 2 * np.cos(np.pi / 6) - 1e-9


def test_the_ground_truth_is_perfect(creatures):
    for item in creatures:
        truth = make_ground_truth(item, 200, 0)
        found = rig_metrics(truth.rig, truth)
        good = {"skin_precision": 1.0, "skin_recall": 1.0, "skin_iou": 1.0}
        assert found == pytest.approx({name: good.get(name, 0.0) for name in FAILED_METRICS}, abs=1e-6)


def test_a_rig_by_hand():
    truth = make_ground_truth(sample(*SEAM, SEAM_WEIGHTS), 100, 0)
    # The second joint is 0.1 further. The first vertex is right, the second all wrong, the others are bound
    # to the second joint alone: L1 0, 2, 1, 0.5, mean 0.875.
    weights = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], dtype=np.float32)
    predicted = Rig(np.array([[0, 0, 0], [0.6, 0, 0]], dtype=np.float32), truth.rig.parents, weights * 0.5)
    found = rig_metrics(predicted, truth)
    assert found["unirig_j2j"] == pytest.approx(0.1 / 2 / 2, abs=1e-7)
    assert found["skin_l1"] == pytest.approx(0.875)
    # Squares of the distances from the mean: 0.875^2 + 1.125^2 + 0.125^2 + 0.375^2 = 2.1875, / 4.
    assert found["skin_l1_variance"] == pytest.approx(2.1875 / 4)
    # Said: 4 entries. True: 1 + 1 + 2 + 2 = 6. Both: the first and the last two, 3. Either: 7.
    assert found["skin_precision"] == pytest.approx(3 / 4)
    assert found["skin_recall"] == pytest.approx(3 / 6)
    assert found["skin_iou"] == pytest.approx(3 / 7)
    for convention in ("unirig", "rignet"):
        distances = skeleton_distances(
            predicted.joints, predicted.parents, truth.rig.joints, truth.rig.parents, convention
        )
        names = [f"{convention}_{name}" for name in ("j2j", "j2b", "b2b")]
        assert [found[name] for name in names] == list(astuple(distances))
    loss = motion_loss(truth.points, predicted, truth.rig, truth.rotations)
    assert found["motion_loss"] == pytest.approx(loss / BOX_SIDE)
    assert loss > 0


def test_rollouts_are_decoded_at_the_points(policy, creatures, make_recipe):
    recipe = make_recipe()
    recipe = replace(recipe, eval=replace(recipe.eval, metric_vertices=40))
    metrics = GroundTruthMetrics(creatures, [1, 3], policy.skin_vae, recipe)
    rng = np.random.default_rng(0)
    rigs = [
        RolloutRig(
            rng.uniform(-1, 1, (joints, 3)).astype(np.float32),
            np.arange(joints) - 1,
            rng.integers(0, 64, (joints, 2)),
        )
        for joints in (1, 4, 30)
    ]
    found = metrics.measure(3, rigs)
    truth = make_ground_truth(creatures[3], 40, recipe.eval.seed)
    for rig, numbers in zip(rigs, found, strict=True):
        decoded = policy.skin_vae.decode(
            *(_tensor(rig.codes), policy.skin_vae.encode_condition(_tensor(truth.mesh.points)[None],
            _tensor(truth.mesh.normals)[None])), _tensor(truth.points), _tensor(truth.normals)
        )  # fmt: skip
        expected = rig_metrics(Rig(rig.joints, rig.parents, decoded.numpy().T), truth)
        assert numbers == pytest.approx(expected, abs=1e-4)
    assert metrics.joints(1) == len(creatures[1].rig.joints)
    assert metrics.joints(0) is None
    assert metrics.measure(3, []) == []


def test_with_a_given_skeleton_columns_correspond_by_index(make_recipe):
    """Joints 1 and 2 coincide, so positions cannot tell them apart; the prediction swaps their weights."""
    joints = [[0, 0, 0], [0.5, 0, 0], [0.5, 0, 0]]
    weights = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]]
    truth = make_ground_truth(sample(*SEAM, weights, joints, (-1, 0, 0)), 100, 0)
    swapped = Rig(truth.rig.joints, truth.rig.parents, truth.rig.weights[:, [0, 2, 1]])
    found = rig_metrics(swapped, truth, given=True)
    assert set(found) == {name for name in FAILED_METRICS if name.startswith(("skin_", "motion_"))}
    # Of four points the first is right; the others have an L1 of 2.
    assert found["skin_l1"] == pytest.approx(1.5)
    assert found["skin_iou"] == pytest.approx(1 / 7)
    assert found["motion_loss"] > 0.01
    right = rig_metrics(truth.rig, truth, given=True)
    assert (right["skin_l1"], right["skin_iou"], right["motion_loss"]) == (0, 1, pytest.approx(0, abs=1e-9))
    assert failed_metrics(make_recipe()) == FAILED_METRICS
    assert failed_metrics(make_recipe({"eval.skeleton": "given"})) == {
        name: FAILED_METRICS[name] for name in found
    }


def test_failures_are_the_metrics_worst():
    assert FAILED_METRICS["unirig_b2b"] == FAILED_METRICS["rignet_j2j"] == FAILED_SKELETON.j2j
    assert FAILED_METRICS["skin_l1"] == FAILED_SKIN.l1
    assert FAILED_METRICS["skin_iou"] == 0
    assert FAILED_METRICS["motion_loss"] == FAILED_MOTION / BOX_SIDE == pytest.approx(3**0.5)


def test_a_mesh_without_a_rig_has_no_ground_truth(policy, creatures, make_recipe):
    bare = replace(creatures[0], rig=None)
    assert make_ground_truth(bare, 100, 0) is None
    assert GroundTruthMetrics([bare], [0], policy.skin_vae, make_recipe()).joints(0) is None


def test_a_ground_truth_in_another_unit_is_reported_and_skipped(policy, make_recipe, capsys):
    far = sample(*SEAM, SEAM_WEIGHTS, joints=[[0, 0, 0], [500, 0, 0]])
    assert GroundTruthMetrics([far], [0], policy.skin_vae, make_recipe()).joints(0) is None
    assert "mesh: ground-truth rig skipped (skeleton a: joint 1 is at [500.0" in capsys.readouterr().err


def _tensor(values):
    import torch

    return torch.from_numpy(np.ascontiguousarray(values))
