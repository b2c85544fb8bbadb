"""Point clouds by the fast ways, against plain ones: points near a bone, skeletons without weights."""

import numpy as np
import pytest
from scipy.spatial import cKDTree

from data import make_creature
from policy.pretraining.point_cloud import (
    INFLUENCE,
    RigExample,
    make_example,
    near_bones,
    skeleton_example,
    skin_points,
    vertex_shares,
)
from policy.pretraining.recent_items import RecentItems


def near_by_tree(example: RigExample, bone: int) -> np.ndarray:
    """`near_bones`, with a k-d tree and no grid."""
    near = example.weights[:, bone] > INFLUENCE
    own = example.points[near]
    if not len(own):
        return np.arange(len(near))
    reach = min(0.1 * float(np.linalg.norm(own.max(axis=0) - own.min(axis=0))), 0.1)
    distance, _ = cKDTree(own).query(example.points, distance_upper_bound=reach)
    return np.flatnonzero(near | np.isfinite(distance))


@pytest.mark.parametrize("seed", range(6))
def test_points_near_a_bone_are_those_that_a_tree_finds(seed):
    creature = make_creature(seed)
    example = make_example(creature.mesh, creature.rig, 1024, 1024, 2048, np.random.default_rng(seed))
    found = 0
    for bone in range(len(example.joints)):
        expected = near_by_tree(example, bone)
        np.testing.assert_array_equal(near_bones(example, [bone])[bone], expected)
        found += len(expected) - int((example.weights[:, bone] > INFLUENCE).sum())
    assert found > 1000  # points that the bone does not influence


def test_bones_of_one_point_of_none_and_of_a_plane():
    axis = np.linspace(-1, 1, 21, dtype=np.float32)
    points = np.stack(np.meshgrid(axis, axis, [0.0]), axis=-1).reshape(-1, 3).astype(np.float32)
    weights = np.zeros((len(points), 4), dtype=np.float32)
    weights[0, 0] = weights[5:7, 2] = weights[::2, 3] = 1
    joints = np.zeros((4, 3), np.float32)
    example = RigExample(joints, np.array([-1, 0, 0, 0]), points, points, weights, len(points))
    for bone in range(4):
        np.testing.assert_array_equal(near_bones(example, [bone])[bone], near_by_tree(example, bone))
    assert near_bones(example, [0])[0].tolist() == [0]
    assert len(near_bones(example, [1])[1]) == len(points)


def test_shares_by_hand():
    # 8 uniform points and 2 vertices around 5 dense ones. Bone 0 influences one uniform and the dense ones,
    # bone 1 nothing: every row is near.
    points = np.zeros((15, 3), np.float32)
    points[:, 0] = np.arange(15)
    weights = np.zeros((15, 2), np.float32)
    weights[[3, 8, 9, 10, 11, 12], 0] = 1
    example = RigExample(np.zeros((2, 3), np.float32), np.array([-1, 0]), points, points, weights, 8, 2)
    rows = np.array([[0, 3, 9, 13], [0, 3, 9, 13]])
    # A tenth of what is everywhere is near: 0.1 / 1.1. All of it: 1 / 2.
    expected = [[1, 1 / 11, 1 / 11, 1], [0.5, 0.5, 0.5, 0.5]]
    np.testing.assert_allclose(vertex_shares(example, [0, 1], rows), expected, rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_sums_weighted_by_shares_are_those_over_the_mesh(seed):
    creature = make_creature(seed)
    rng = np.random.default_rng(seed)
    example = make_example(creature.mesh, creature.rig, 1024, 0, 1024, rng)
    bones = np.arange(len(example.joints))
    rows = skin_points(example, bones, 20_000, rng)
    shares = vertex_shares(example, bones, rows)
    inside = example.weights[rows, bones[:, None]] > 0.01
    share = (shares * inside).sum(axis=1) / shares.sum(axis=1)
    np.testing.assert_allclose(share, (example.weights > 0.01).mean(axis=0), atol=0.01)
    plain = inside.mean(axis=1)
    assert (plain > 1.5 * share).mean() > 0.8


def test_a_skeleton_example_has_the_points_and_joints_of_the_whole_one():
    creature = make_creature(4)
    whole = make_example(creature.mesh, creature.rig, 50, 70, 30, np.random.default_rng(2))
    bare = skeleton_example(creature.mesh, creature.rig, 50, np.random.default_rng(2))
    for name in ("joints", "parents"):
        np.testing.assert_array_equal(getattr(bare, name), getattr(whole, name))
    for name in ("points", "normals"):
        np.testing.assert_array_equal(getattr(bare, name), getattr(whole, name)[:50])
    assert bare.uniform == len(bare.points) == 50


def test_recent_items_stay_within_their_budget():
    read = []

    def load(key: int) -> str:
        read.append(key)
        return "x" * key

    items = RecentItems(load, len, budget=10)
    for key, reads in (
        (4, [4]),
        (5, [4, 5]),
        (4, [4, 5]),
        (3, [4, 5, 3]),
        (5, [4, 5, 3, 5]),
        (3, [4, 5, 3, 5]),
    ):
        assert items[key] == "x" * key
        assert read == reads  # 3 displaced 5, which was used longer ago than 4; then 5 displaced 4
    assert items[11] == "x" * 11  # larger than everything: read, and nothing else is kept
    read.clear()
    assert [len(items[key]) for key in (11, 3)] == [11, 3]
    assert read == [11, 3]
    none = RecentItems(load, len, budget=0)
    read.clear()
    assert none[2] == none[2] == "xx"
    assert read == [2, 2]
