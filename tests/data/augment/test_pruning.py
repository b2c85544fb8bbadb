"""Deleted joints, cut limbs and other parents, on a strip whose every vertex can be followed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import Mesh, Rig, make_creature
from data.augment.pruning import reparented, with_joints_deleted, without_joints, without_subtree

COLUMNS = 8


def strip() -> tuple[Mesh, Rig]:
    """Eight columns of two vertices along x in [-1, 1]; joints 0-1-2-3 in a chain own two columns each."""
    x = np.linspace(-1, 1, COLUMNS)
    vertices = np.array([[at, y, 0] for at in x for y in (-0.1, 0.1)], dtype=np.float32)
    faces = [[2 * c + i for i in corner] for c in range(COLUMNS - 1) for corner in ((0, 2, 1), (1, 2, 3))]
    weights = np.zeros((COLUMNS, 4), dtype=np.float32)
    weights[np.arange(COLUMNS), np.arange(COLUMNS) // 2] = 1
    weights[1] = [0.6, 0.4, 0, 0]
    weights[4] = [0, 0.3, 0.5, 0.2]
    joints = np.zeros((4, 3), dtype=np.float32)
    joints[:, 0] = [-0.9, -0.4, 0.1, 0.6]
    names = ("hip", "thigh", "shin", "foot")
    mesh = Mesh(vertices, np.array(faces), "strip", np.zeros(3), 1.0)
    return mesh, Rig(joints, np.array([-1, 0, 1, 2]), np.repeat(weights, 2, axis=0), names)


def gone(*joints: int) -> np.ndarray:
    return np.isin(np.arange(4), joints)


def test_a_joint_goes_with_its_vertices():
    old_mesh, old_rig = strip()
    mesh, rig = without_joints(old_mesh, old_rig, gone(1))
    # Columns 2 and 3 go, and with them the cells 1-2, 2-3 and 3-4 of seven; the box stays.
    columns = np.array([0, 1, 4, 5, 6, 7])
    kept = np.stack([2 * columns, 2 * columns + 1], axis=1).reshape(-1)
    np.testing.assert_allclose(mesh.vertices, old_mesh.vertices[kept], atol=1e-6)
    cells = np.array([[2 * c + i for i in corner] for c in (0, 2, 3, 4) for corner in ((0, 2, 1), (1, 2, 3))])
    np.testing.assert_array_equal(mesh.faces, cells)
    assert rig.names == ("hip", "shin", "foot")
    np.testing.assert_array_equal(rig.parents, [-1, 0, 1])  # the shin hangs below the hip now
    np.testing.assert_allclose(rig.joints, old_rig.joints[[0, 2, 3]], atol=1e-6)
    # Column 1: 0.6 of the hip grows to 1. Column 4: 0.5 and 0.2 of 0.7 grow to 5/7 and 2/7.
    expected = np.array([[1, 0, 0], [1, 0, 0], [0, 5 / 7, 2 / 7], [0, 1, 0], [0, 0, 1], [0, 0, 1]])
    np.testing.assert_allclose(rig.weights, np.repeat(expected, 2, axis=0), atol=1e-6)


def test_what_is_left_returns_to_the_mesh_frame():
    mesh, rig = without_joints(*strip(), gone(2, 3))
    # Columns 0 to 3: x from -1 to -1/7, centre -4/7, half 3/7, so x -> (x + 4/7) * 7/3.
    np.testing.assert_allclose(mesh.vertices[::2, 0], [-1, -1 / 3, 1 / 3, 1], atol=1e-6)
    np.testing.assert_allclose(mesh.vertices[:, 1], np.tile([-0.7 / 3, 0.7 / 3], 4), atol=1e-6)
    np.testing.assert_allclose(rig.joints[:, 0], [(-0.9 + 4 / 7) * 7 / 3, (-0.4 + 4 / 7) * 7 / 3], atol=1e-6)
    np.testing.assert_allclose(rig.weights.sum(axis=1), 1, atol=1e-6)


def test_a_cut_that_leaves_too_little_is_not_made():
    mesh, rig = strip()
    # One cell of seven is 14 %, less than 20 %.
    result = without_joints(mesh, rig, gone(1, 2, 3))
    assert result == (mesh, rig)
    # All but the hip's two columns are bound to the thigh: without the thigh nothing is left to stand on.
    assert without_joints(mesh, rig, gone())[0] is mesh


def test_a_cut_that_leaves_a_joint_in_the_air_is_not_made():
    mesh, rig = strip()
    # The foot at 0.6 would stay while all beyond the shin's surface went: bind its columns to the shin.
    weights = rig.weights.copy()
    weights[8:] = [0, 0, 1, 0]
    loose = Rig(rig.joints, rig.parents, weights, rig.names)
    assert without_joints(mesh, loose, gone(2))[1] is loose
    assert len(without_joints(mesh, loose, gone(2, 3))[1].joints) == 2


def test_unbound_vertices_stay_unbound_and_short_sums_stay_short():
    mesh, rig = strip()
    weights = rig.weights.copy()
    weights[0] = 0
    weights[2] /= 2
    cut = without_joints(mesh, Rig(rig.joints, rig.parents, weights), gone(1))[1]
    assert cut.weights[0].sum() == 0
    np.testing.assert_allclose(cut.weights[2], [0.5, 0, 0], atol=1e-7)


def test_sub_trees_are_limbs():
    mesh, rig = strip()
    left = {without_subtree(mesh, rig, np.random.default_rng(seed))[1].names for seed in range(30)}
    # Below the thigh hang three of four joints: not a limb.
    assert left == {("hip", "thigh"), ("hip", "thigh", "shin")}
    single = Rig(rig.joints[:1], np.array([-1]), np.ones((16, 1)))
    assert without_subtree(mesh, single, np.random.default_rng(0)) == (mesh, single)


def test_how_many_joints_are_deleted():
    mesh, rig = strip()
    counts = [
        4 - len(with_joints_deleted(mesh, rig, np.random.default_rng(seed), 0.5)[1].joints)
        for seed in range(200)
    ]
    # 0, 1 or 2, each as likely: 67 of 200, standard deviation 6.7.
    assert {count: 40 < counts.count(count) < 95 for count in set(counts)} == {0: True, 1: True, 2: True}
    single = Rig(rig.joints[:1], np.array([-1]), np.ones((16, 1)))
    assert with_joints_deleted(mesh, single, np.random.default_rng(0), 1.0) == (mesh, single)


def test_the_root_stays():
    for wrong in (gone(0), np.zeros(3, dtype=bool)):
        with pytest.raises(
            ValueError, match="gone must hold one bool for each of 4 joints and be False for the root"
        ):
            without_joints(*strip(), wrong)


def test_the_only_other_parent_there_is():
    # Two children of the root; a third of three joints is one, drawn for half the seeds.
    joints = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]])
    rig = Rig(joints, np.array([-1, 0, 0]), np.eye(3), ("root", "a", "b"))
    seen = set()
    for seed in range(30):
        new = reparented(rig, np.random.default_rng(seed), 0.34)
        seen.add((new.names, tuple(new.parents.tolist())))
        places = [rig.names.index(name) for name in new.names]
        np.testing.assert_array_equal(new.joints, joints[places])
        np.testing.assert_array_equal(new.weights, np.eye(3)[:, places])
    assert seen == {
        (("root", "a", "b"), (-1, 0, 0)),
        (("root", "a", "b"), (-1, 0, 1)),
        (("root", "b", "a"), (-1, 0, 1)),
    }


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6), share=st.floats(0, 1))
def test_another_tree_of_the_same_joints(seed, share):
    rig = make_creature(seed % 5).rig
    new = reparented(rig, np.random.default_rng(seed), share)
    places = [rig.names.index(name) for name in new.names]
    assert sorted(places) == list(range(len(rig.joints)))
    np.testing.assert_array_equal(new.joints, rig.joints[places])
    np.testing.assert_array_equal(new.weights, rig.weights[:, places])

    def parents(one: Rig) -> dict[str, str]:
        return {
            name: one.names[parent]
            for name, parent in zip(one.names, one.parents, strict=True)
            if parent >= 0
        }

    changed = sum(parents(new)[name] != parent for name, parent in parents(rig).items())
    assert changed <= share * len(rig.joints) + 1e-6
