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
from rl.ground_truth import METRICS, GroundTruthMetrics, failed_metrics, make_ground_truth, rig_metrics
from rl.meshes import load_meshes
from rl.metrics import (
    BOX_SIDE,
    FAILED_MOTION,
    FAILED_SKELETON,
    MetricError,
    failed_skin,
    motion_loss,
    pair_joints,
    skeleton_distances,
)


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
        # unirig's samples leave the root out: it is 1 % of its shortest bone from the nearest.
        root = truth.rig.joints[0].astype(np.float64)
        shortest = min(
            np.linalg.norm(truth.rig.joints[i] - root) for i, p in enumerate(truth.rig.parents) if p == 0
        )
        good = {"skin_precision": 1.0, "skin_recall": 1.0, "skin_iou": 1.0}
        good["unirig_j2b"] = pytest.approx(shortest / 100 / len(truth.rig.joints) / BOX_SIDE, abs=1e-5)
        assert list(found) == list(METRICS)
        for name, value in found.items():
            assert value == (good[name] if name in good else pytest.approx(0, abs=1e-6)), name


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
    # Published tables of RigNet's line print distances × 100.
    for convention, scale in (("unirig", 1), ("rignet", 100), ("exact", 1)):
        distances = skeleton_distances(
            predicted.joints, predicted.parents, truth.rig.joints, truth.rig.parents, convention
        )
        names = [f"{convention}_{name}" for name in ("j2j", "j2b", "b2b")]
        assert [found[name] for name in names] == [scale * value for value in astuple(distances)]
    # The joint is 0.1 of the mesh frame's 2 off, one of two: 0.1 / 2 / 2 * 100.
    assert found["rignet_j2j"] == pytest.approx(2.5, abs=1e-5)
    assert found["skin_l1_per_entry"] == pytest.approx(0.875 / 2)
    loss = motion_loss(truth.points, predicted, truth.rig, truth.rotations, pair_joints(predicted, truth.rig))
    assert found["motion_loss"] == pytest.approx(loss.mean / BOX_SIDE)
    assert found["motion_mse"] == pytest.approx(loss.squared)
    assert loss.mean > 0


def test_skin_as_puppeteer_counts_it():
    weights = [*SEAM_WEIGHTS[:2], [0.3, 0.5], *SEAM_WEIGHTS[3:]]  # the third sums to 0.8: does not count
    truth = make_ground_truth(sample(*SEAM, weights), None, 0)
    # Of the others the first keeps its joint (0.1 / 1.0 < 0.15 is cut), the second has both (0.16 / 0.84 is
    # above 0.15), the last loses 0.2 / 0.8 to the cut of ModelsResource alone.
    rows = np.array([[1, 0.1], [0.16, 0.84], [1, 0], [0.2, 0.8]], dtype=np.float32)
    predicted = Rig(truth.rig.joints, truth.rig.parents, rows)
    found = rig_metrics(predicted, truth, "puppeteer")
    # L1: 0, 0.32 and, against 0.25 and 0.75, 0.1: over 3 vertices. Non-zero: predicted 1 + 2 + 2, true
    # 1 + 1 + 2, both 4.
    assert found["skin_l1"] == pytest.approx(0.42 / 3, abs=1e-6)
    assert found["skin_l1_per_entry"] == pytest.approx(0.42 / 6, abs=1e-6)
    assert (found["skin_precision"], found["skin_recall"]) == pytest.approx((4 / 5, 1))
    found = rig_metrics(predicted, truth, "puppeteer_modelsresource")
    # L1: 0, 0 and 0.5. Predicted 1 + 1 + 1, all true.
    assert found["skin_l1"] == pytest.approx(0.5 / 3, abs=1e-6)
    assert (found["skin_precision"], found["skin_recall"]) == pytest.approx((1, 3 / 4))
    # Skeletons and motion do not depend on it.
    plain = rig_metrics(predicted, truth)
    assert all(found[name] == plain[name] for name in METRICS if not name.startswith("skin_"))


def test_a_given_skeleton_is_not_paired():
    # Two joints at one place with the same parent: a pairing may not tell them apart, the given order does.
    joints = [[0, 0, 0], [0.5, 0, 0], [0.5, 0, 0]]
    truth = make_ground_truth(sample(*SEAM, np.eye(3)[[0, 1, 2, 1, 2, 1, 0]], joints, (-1, 0, 0)), None, 0)
    moved = truth.rig.joints + np.array([[0, 0, 0], [0, 0.2, 0], [0, -0.2, 0]], dtype=np.float32)
    exchanged = Rig(moved[[0, 2, 1]], truth.rig.parents, truth.rig.weights)
    assert rig_metrics(exchanged, truth, given_skeleton=True)["skin_l1"] == pytest.approx(0)
    shorter = Rig(truth.rig.joints[:2], truth.rig.parents[:2], truth.rig.weights[:, :2])
    with pytest.raises(MetricError, match="does not have the ground truth's hierarchy"):
        rig_metrics(shorter, truth, given_skeleton=True)


def test_metrics_that_are_not_defined_are_absent(policy, make_recipe):
    distances = [
        f"{convention}_{name}" for convention in ("unirig", "rignet") for name in ("j2j", "j2b", "b2b")
    ]
    truth = make_ground_truth(sample(*SEAM, SEAM_WEIGHTS), None, 0)
    lone = Rig(truth.rig.joints[:1], truth.rig.parents[:1], truth.rig.weights[:, :1])
    assert [name for name in METRICS if name not in rig_metrics(lone, truth)] == distances
    unbound = make_ground_truth(sample(*SEAM, np.array(SEAM_WEIGHTS) * 0.5), None, 0)
    skin = [name for name in METRICS if name.startswith("skin_")]
    found = rig_metrics(unbound.rig, unbound, "puppeteer")
    assert [name for name in METRICS if name not in found] == skin
    # A failed rig has a value of what its mesh's ground truth defines.
    recipe = make_recipe()
    recipe = replace(recipe, eval=replace(recipe.eval, skin_convention="puppeteer", metric_vertices=None))
    single = sample(*SEAM, np.array(SEAM_WEIGHTS)[:, :1], joints=[[0, 0, 0]], parents=(-1,))
    metrics = GroundTruthMetrics(
        [single, sample(*SEAM, np.array(SEAM_WEIGHTS) * 0.5)], [0, 1], policy.skin_vae, recipe
    )
    assert list(metrics.failed(0)) == [name for name in METRICS if name not in distances]
    assert list(metrics.failed(1)) == [name for name in METRICS if name not in skin]
    assert metrics.failed(1)["rignet_b2b"] == pytest.approx(100 * 3**0.5)


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


def test_with_a_given_skeleton_columns_correspond_by_index(policy, make_recipe):
    """Joints 1 and 2 coincide, so positions cannot tell them apart; the prediction swaps their weights."""
    joints = [[0, 0, 0], [0.5, 0, 0], [0.5, 0, 0]]
    weights = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]]
    item = sample(*SEAM, weights, joints, (-1, 0, 0))
    truth = make_ground_truth(item, 100, 0)
    swapped = Rig(truth.rig.joints, truth.rig.parents, truth.rig.weights[:, [0, 2, 1]])
    found = rig_metrics(swapped, truth, given_skeleton=True)
    # No skeleton distances: they would all be 0.
    assert set(found) == {name for name in METRICS if name.startswith(("skin_", "motion_"))}
    # Of four points the first is right; the others have an L1 of 2.
    assert found["skin_l1"] == pytest.approx(1.5)
    assert found["skin_iou"] == pytest.approx(1 / 7)
    assert found["motion_loss"] > 0.01
    right = rig_metrics(truth.rig, truth, given_skeleton=True)
    assert (right["skin_l1"], right["skin_iou"], right["motion_loss"]) == (0, 1, pytest.approx(0, abs=1e-9))
    metrics = GroundTruthMetrics([item], [0], policy.skin_vae, make_recipe(), given_skeleton=True)
    assert set(metrics.failed(0)) == set(found)


def test_failures_are_the_metrics_worst():
    failed = failed_metrics(20)
    assert failed["unirig_b2b"] == failed["exact_j2b"] == FAILED_SKELETON.j2j
    assert failed["rignet_j2j"] == 100 * FAILED_SKELETON.j2j
    assert failed["skin_l1"] == failed_skin(20).l1 == 2
    assert failed["skin_l1_per_entry"] == pytest.approx(0.1)
    assert failed["skin_iou"] == 0
    assert failed["motion_loss"] == FAILED_MOTION.mean / BOX_SIDE == pytest.approx(3**0.5)
    assert failed["motion_mse"] == 12


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
