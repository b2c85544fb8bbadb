"""Rigs: validation and the canonical joint order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import MeshError, Rig, depth_first


def make(**changes: object) -> Rig:
    fields: dict = {
        "joints": np.array([[0.0, 0, 0], [0, 1, 0], [0, 2, 0]]),
        "parents": np.array([-1, 0, 1]),
        "weights": np.eye(3),
        "names": ("a", "b", "c"),
    }
    return Rig(**{**fields, **changes})


def test_fields_are_converted() -> None:
    rig = make(parents=np.array([-1, 0, 1], dtype=np.int32), names=())
    assert (rig.joints.dtype, rig.parents.dtype, rig.weights.dtype) == (np.float32, np.int64, np.float32)
    assert rig.names == ("bone_0", "bone_1", "bone_2")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"joints": np.zeros((3, 2))}, r"joints have shape \(3, 2\)"),
        ({"joints": np.zeros((0, 3))}, r"at least one joint"),
        ({"parents": np.array([-1, 0])}, r"pass 3 integers"),
        ({"parents": np.array([-1.0, 0, 1])}, r"pass 3 integers"),
        ({"parents": np.array([-1, -1, 1])}, "the single root .* must be joint 0"),
        ({"parents": np.array([1, -1, 1])}, "the single root .* must be joint 0"),
        ({"parents": np.array([-1, 2, 0])}, "joint 1 comes before its parent 2"),
        ({"parents": np.array([-1, 1, 0])}, "joint 1 comes before its parent 1"),
        ({"joints": np.diag([0, np.nan, 0])}, "joint 1 is not finite"),
        ({"weights": np.ones((4, 2))}, r"weights have shape \(4, 2\); pass \(V, 3\)"),
        ({"weights": np.diag([1, np.nan, 1])}, "vertex 1 are NaN or infinite"),
        ({"weights": np.diag([1, 1, -0.1])}, "vertex 2 has a negative skinning weight"),
        ({"names": ("a",)}, "1 names for 3 joints"),
    ],
)
def test_refusals(changes: dict, reason: str) -> None:
    with pytest.raises(MeshError, match=reason):
        make(**changes)


def test_depth_first_by_hand() -> None:
    # Root 0 has children 1 (y=2), 2 (y=1, z=1, x=0), 3 (y=1, z=0, x=5), 4 (y=1, z=0, x=4);
    # 5 hangs on 1, 6 on 4.
    # By (y, z, x): 4, 3, 2, 1. Depth first: 0, 4, 6, 3, 2, 1, 5.
    joints = np.array(
        [[0, 0, 0], [0, 2, 0], [0, 1, 1], [5, 1, 0], [4, 1, 0], [9, 9, 9], [7, 0, 0]], dtype=float
    )
    rig = Rig(joints, np.array([-1, 0, 0, 0, 0, 1, 4]), np.arange(14).reshape(2, 7), tuple("abcdefg"))
    ordered = depth_first(rig)
    assert ordered.names == tuple("aegdcbf")
    assert ordered.parents.tolist() == [-1, 0, 1, 0, 0, 0, 5]
    np.testing.assert_array_equal(ordered.joints, joints[[0, 4, 6, 3, 2, 1, 5]])
    np.testing.assert_array_equal(ordered.weights[0], [0, 4, 6, 3, 2, 1, 5])
    np.testing.assert_array_equal(depth_first(ordered).joints, ordered.joints)


@given(st.integers(0, 10**6), st.integers(1, 15))
def test_depth_first_keeps_the_rig_and_forgets_the_order(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    parents = np.array([-1] + [int(rng.integers(0, i)) for i in range(1, count)])
    rig = Rig(rng.normal(size=(count, 3)), parents, rng.random((4, count)))
    ordered = depth_first(rig)

    def bones(one: Rig) -> set:
        return {
            (name, one.names[p] if p >= 0 else "", tuple(j), tuple(w))
            for name, p, j, w in zip(
                one.names, one.parents, one.joints.tolist(), one.weights.T.tolist(), strict=True
            )
        }

    assert bones(ordered) == bones(rig)
    # Each subtree is contiguous: a joint's parent is on the chain of ancestors of the joint before it.
    for joint in range(1, count):
        chain = [joint - 1]
        while chain[-1] >= 0:
            chain.append(int(ordered.parents[chain[-1]]))
        assert ordered.parents[joint] in chain
