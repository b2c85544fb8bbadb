"""Rig scoring: preparing a mesh, all rewards of a rig, groups, diagnostics, errors."""

import math
import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import rewards
from data.welding import weld_surface
from rewards import (
    MeshRewardError,
    RewardError,
    RewardSettings,
    RigRewardError,
    mesh_edges,
    prepare_scoring_mesh,
    score_group,
    score_rig,
)
from tests.rewards import cases
from tests.rewards.shapes import blob, box, random_rig

SMALL = RewardSettings(resolution=24)


def fox():
    data = cases.inputs("Fox")
    mesh = prepare_scoring_mesh(data["vertices"], data["faces"], RewardSettings(), name="Fox")
    return mesh, data["joints"], data["parents"], data["weights"][mesh.source]


def test_score_is_the_four_rewards():
    mesh, joints, parents, weights = fox()
    settings = RewardSettings()
    turns = settings.rotations(len(joints), 5)
    score = score_rig(mesh, joints, parents, weights, turns, settings)
    assert score.rewards == {
        "coverage": rewards.joint_coverage(mesh.grid, joints),
        "containment": rewards.bone_containment(mesh.grid, joints, parents),
        "sparsity": rewards.skin_sparsity(weights),
        "smoothness": rewards.deformation_smoothness(
            mesh.vertices, mesh.edges, joints, parents, weights, turns
        ),
    }
    assert tuple(score.rewards) == rewards.REWARD_NAMES
    # The grid and so the joint rewards are those of the reference case; welded vertices see more stretch.
    numbers = cases.expected("Fox")["variants"]["gt"]
    assert score.coverage == pytest.approx(numbers["R_vj_projection"], abs=1e-6)
    assert score.containment == pytest.approx(numbers["R_vk_projection"], abs=1e-6)


def test_settings_reach_every_reward():
    mesh, joints, parents, weights = fox()
    turns = RewardSettings().rotations(len(joints), 5)

    def score(**changes):
        settings = replace(RewardSettings(), **changes)
        return score_rig(mesh, joints, parents, weights, turns, settings).rewards

    base = score()
    for change, reward in (
        ({"alpha": 0.1}, "coverage"),
        ({"distance_unit": "mesh"}, "coverage"),
        ({"samples_per_bone": 3}, "containment"),
        ({"threshold": 0.99}, "sparsity"),
        ({"threshold": 0.99, "unbound_power": 3.0}, "sparsity"),
        ({"max_influences": 1}, "sparsity"),
        ({"max_influences": 1, "crowded_power": 3.0}, "sparsity"),
        ({"smoothness_scale": 2.0}, "smoothness"),
        ({"reduce": "mean"}, "smoothness"),
    ):
        changed = score(**change)
        assert changed[reward] != base[reward], change
        assert {k: v for k, v in changed.items() if k != reward} == {
            k: v for k, v in base.items() if k != reward
        }
    assert score(threshold=0.99, unbound_power=3.0)["sparsity"] > score(threshold=0.99)["sparsity"]


def test_a_mesh_that_welds_into_nothing_is_refused():
    # Specks: a triangle with sides of 1e-7 of the box, and one with one such side.
    specks = np.array([[0, 0, 0], [1e-7, 0, 0], [0, 1e-7, 0], [1, 1, 1]])
    with pytest.raises(MeshRewardError, match="every triangle of the mesh has a side shorter than"):
        prepare_scoring_mesh(specks, np.array([[0, 1, 2], [0, 1, 3]]), SMALL)


def test_welding_joins_what_a_seam_splits_and_shows_its_tears():
    # Two triangles of a square with their own copies of the diagonal; the second is bound to another joint.
    square = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], dtype=np.float32)
    faces = np.array([[0, 1, 2], [3, 4, 5]])
    mesh = prepare_scoring_mesh(square, faces, SMALL)
    assert mesh.vertices.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]]
    assert mesh.source.tolist() == [0, 1, 2, 4]
    assert mesh.edges.tolist() == [[0, 1], [0, 2], [1, 2], [1, 3], [2, 3]]
    assert np.allclose(mesh.normals, [0, 0, 1])

    rig = (np.array([[0.0, 0, 0], [1, 0.5, 0.3]]), np.array([-1, 0]))
    weights = np.array([[1.0, 0]] * 3 + [[0, 1]] * 3)
    turns = rewards.random_rotations(5, 2, 30, 0)
    as_filed = rewards.deformation_smoothness(square, mesh_edges(faces), *rig, weights, turns)
    assert as_filed == pytest.approx(
        0.5, abs=1e-6
    )  # each triangle is rigid: the tear between them goes unseen
    assert score_rig(mesh, *rig, weights[mesh.source], turns, SMALL).smoothness < 0.49


def test_padding_a_mesh_does_not_change_what_is_scored():
    vertices, faces = box((2, 1, 1))
    plain = prepare_scoring_mesh(vertices, faces, SMALL)
    padded = prepare_scoring_mesh(
        np.vstack([vertices, [[7, 7, 7]]]), np.vstack([faces, [[0, 7, 7], [8, 8, 0]]]), SMALL
    )
    for name in ("vertices", "normals", "edges", "source"):
        assert getattr(padded, name).tolist() == getattr(plain, name).tolist()
    assert (padded.grid.occupied == plain.grid.occupied).all()


def test_vertices_and_normals_are_those_of_the_welded_surface():
    vertices, faces = blob(np.random.default_rng(1), faces=30)
    faces = np.vstack([faces, [[0, 0, 3]], faces[:4] % 5])
    mesh = prepare_scoring_mesh(vertices, faces, SMALL)
    surface = weld_surface(vertices, faces)
    assert (mesh.vertices == surface.points).all()
    assert (mesh.normals == surface.normals).all()
    assert (mesh.source == surface.source).all()
    assert (mesh.vertices == vertices.astype(np.float32)[mesh.source]).all()


def test_normals_of_a_double_sided_sheet_are_still_unit_vectors():
    vertices, faces = box((2, 1, 1))
    double = prepare_scoring_mesh(vertices, np.vstack([faces, faces[:, ::-1]]), SMALL)
    assert np.allclose(np.linalg.norm(double.normals, axis=1), 1)
    outward = prepare_scoring_mesh(vertices, faces, SMALL).normals
    # A corner of the box looks away from the centre.
    assert (np.sign(outward) == np.sign(vertices - [1, 0.5, 0.5])).all()


@pytest.mark.parametrize("limit", [2, 3, 50, 101])
def test_large_meshes_are_cut_to_a_fixed_subset_of_edges(limit):
    vertices, faces = blob(np.random.default_rng(0), faces=200)
    whole = prepare_scoring_mesh(vertices, faces, SMALL)
    cut = prepare_scoring_mesh(vertices, faces, replace(SMALL, max_scoring_vertices=limit))
    again = prepare_scoring_mesh(vertices, faces, replace(SMALL, max_scoring_vertices=limit))
    assert limit - 1 <= len(cut.vertices) <= limit  # an edge may bring two new vertices
    assert sorted(np.unique(cut.edges).tolist()) == list(range(len(cut.vertices)))  # only end points
    whole_edges = {frozenset(edge) for edge in whole.source[whole.edges].tolist()}
    assert {frozenset(edge) for edge in cut.source[cut.edges].tolist()} <= whole_edges
    assert len(cut.edges) > 0
    assert (cut.vertices == vertices.astype(np.float32)[cut.source]).all()
    assert (again.source == cut.source).all()
    assert (again.edges == cut.edges).all()
    # normals are those of the whole mesh, not of the few faces left
    rows = np.searchsorted(whole.source, cut.source)
    assert (cut.normals == whole.normals[rows]).all()


def test_a_group_scores_like_its_rigs_alone_and_survives_a_bad_one():
    mesh, joints, parents, weights = fox()
    settings = RewardSettings()
    turns = settings.rotations(len(joints), 5)
    shorter = SimpleNamespace(joints=joints[:6], parents=parents[:6], weights=weights[:, :6])
    rigs = [
        SimpleNamespace(joints=joints, parents=parents, weights=weights),
        SimpleNamespace(joints=joints, parents=parents, weights=weights * np.float32(np.nan)),
        shorter,
    ]
    scores = score_group(mesh, rigs, turns, settings)
    assert scores[0] == score_rig(mesh, joints, parents, weights, turns, settings)
    assert isinstance(scores[1], RigRewardError)
    own_turns = settings.rotations(6, 5)
    assert scores[2] == score_rig(mesh, shorter.joints, shorter.parents, shorter.weights, own_turns, settings)


def test_scoring_mesh_pickles_compactly_and_scores_the_same():
    mesh, joints, parents, weights = fox()
    data = pickle.dumps(mesh)
    arrays = mesh.vertices.nbytes + mesh.normals.nbytes + mesh.edges.nbytes + mesh.source.nbytes
    assert len(data) < mesh.grid.occupied.size / 8 + arrays + 2000
    turns = RewardSettings().rotations(len(joints), 5)
    expected = score_rig(mesh, joints, parents, weights, turns, RewardSettings())
    assert score_rig(pickle.loads(data), joints, parents, weights, turns, RewardSettings()) == expected
    assert pickle.loads(data).name == "Fox"


def test_joint_order_does_not_matter():
    rng = np.random.default_rng(2)
    vertices, faces = blob(rng)
    mesh = prepare_scoring_mesh(vertices, faces, SMALL)
    joints, parents, weights = random_rig(rng, 9, len(mesh.vertices))
    turns = SMALL.rotations(9, 0)
    expected = score_rig(mesh, joints, parents, weights, turns, SMALL)
    order = rng.permutation(9)
    renamed = np.where(parents[order] < 0, -1, np.argsort(order)[parents[order]])
    score = score_rig(mesh, joints[order], renamed, weights[:, order], turns[:, order], SMALL)
    assert list(score.rewards.values()) == pytest.approx(list(expected.rewards.values()), abs=1e-12)
    assert score.diagnostics == pytest.approx(expected.diagnostics)


def test_diagnostics_by_hand():
    vertices, faces = box((2, 2, 2), low=(-1, -1, -1))
    mesh = prepare_scoring_mesh(vertices, faces, SMALL)
    # Root, a child 1 away, a grandchild 0.5 further, and a joint on top of the child (1 from its parent, the
    # root).
    joints = np.array([[0, 0, 0], [1, 0, 0], [1, 0.5, 0], [1, 0, 1e-3]])
    parents = np.array([-1, 0, 1, 0])
    weights = np.zeros((8, 4))
    weights[:4, 0] = 0.7  # four vertices on the root alone
    weights[4:6] = [0.2, 0.6, 0.0, 0.0]  # two owned by the child, shared with the root
    weights[6] = [0.0, 0.3, 0.4, 0.0]  # one owned by the grandchild; the last vertex has no weight
    score = score_rig(mesh, joints, parents, weights, np.tile(np.eye(3), (1, 4, 1, 1)), SMALL)
    assert score.diagnostics == pytest.approx(
        {
            "joints": 4,
            "unused_bones": 1 / 4,  # the duplicate
            "duplicate_joints": 1,
            "mean_bone_length": (1 + 0.5 + np.hypot(1, 1e-3)) / 3,
            "root_only_vertices": 4 / 7,
            "worst_stretch": 1.0,
        }
    )


def test_one_joint_rig():
    vertices, faces = box()
    mesh = prepare_scoring_mesh(vertices, faces, SMALL)
    turns = SMALL.rotations(1, 0)
    score = score_rig(mesh, [[0.5, 0.5, 0.5]], np.array([-1]), np.ones((8, 1)), turns, SMALL)
    assert score.containment == 1.0
    assert score.sparsity == 1.0
    assert score.smoothness == pytest.approx(0.5, abs=1e-5)
    assert score.diagnostics["mean_bone_length"] == 0.0
    assert score.diagnostics["root_only_vertices"] == 1.0


def test_whose_fault_it_is():
    vertices, faces = box()
    with pytest.raises(MeshRewardError):
        prepare_scoring_mesh(vertices * np.nan, faces, SMALL)
    mesh = prepare_scoring_mesh(vertices, faces, SMALL)
    joints, parents, weights = np.zeros((2, 3)), np.array([-1, 0]), np.full((8, 2), 0.5)
    turns = SMALL.rotations(2, 0)
    for bad in (
        (joints * np.nan, parents, weights),
        (joints, parents[::-1], weights),
        (joints, np.array([1, 0]), weights),
        (joints, parents, -weights),
        (joints[:0], parents[:0], weights[:, :0]),
    ):
        with pytest.raises(RigRewardError):
            score_rig(mesh, *bad, turns, SMALL)
    # Arguments for another mesh or rig are the caller's fault: neither subclass, so that no reward hides it.
    for weights_, turns_ in (
        (weights[:5], turns),
        (weights[:, :1], turns),
        (weights, turns[:, :1]),
        (weights, 1.0),
    ):
        with pytest.raises(RewardError) as caught:
            score_rig(mesh, joints, parents, weights_, turns_, SMALL)
        assert caught.type is RewardError


@pytest.mark.parametrize(
    "change",
    [
        {"resolution": 0},
        {"interior": "winding"},
        {"alpha": -0.1},
        {"alpha": float("nan")},
        {"distance_unit": "metres"},
        {"samples_per_bone": 0},
        {"threshold": 1.5},
        {"unbound_power": 0.0},
        {"crowded_power": -1.0},
        {"poses": 0},
        {"max_angle_deg": 200.0},
        {"smoothness_scale": -1.0},
        {"alpha": math.inf},
        {"expected_joints": math.inf},
        {"reduce": "median"},
        {"max_scoring_vertices": 1},
    ],
)
def test_settings_name_the_field_that_is_out_of_range(change):
    (name,) = change
    with pytest.raises(ValueError, match=name):
        RewardSettings(**change)
