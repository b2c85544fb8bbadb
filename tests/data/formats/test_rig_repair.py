"""Repairs of raw rigs and the refusals of what cannot be repaired."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.rig_files import FACES, JOINTS, POINTS, SKIN, matrices, nan_at, only, plain_npz, refusal


def test_repairs_of_order_roots_and_weights(tmp_path: Path) -> None:
    """Joint 0 below 2 below nobody, joint 1 a second root without descendants: order 2, 0, 1."""
    skin = np.array([[2, 0, 0], [0, 0, 4], [1, 1, 0], [0, 0, 0], [1, 0, 0]])
    read = only(plain_npz(tmp_path, parents=np.array([2, -1, -1]), skin=skin))
    rig = read.rigged.rig
    assert rig.parents.tolist() == [-1, 0, 0]
    assert rig.names == ("foot", "hip", "knee")
    np.testing.assert_array_equal(rig.joints[:, 0], [1, -1, 0])
    np.testing.assert_array_equal(rig.weights, [[0, 1, 0], [1, 0, 0], [0, 0.5, 0.5], [0, 0, 0]])
    assert read.notes == (
        "1 unreferenced vertices dropped",
        "2 roots joined",
        "joints reordered so that parents come first",
        "weights of 3 vertices normalised to sum to 1",
        "1 vertices not bound to any joint",
    )


def test_rounding_below_zero_is_repaired(tmp_path: Path) -> None:
    skin = SKIN.copy()
    skin[0, 1] = -1e-6
    read = only(plain_npz(tmp_path, skin=skin))
    np.testing.assert_array_equal(read.rigged.rig.weights, SKIN[:4])
    assert "1 slightly negative weights set to 0" in read.notes


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"faces": np.zeros((0, 3), int)}, "no faces"),
        ({"faces": FACES + 9}, "refers to vertex 12"),
        ({"vertices": nan_at(POINTS, 1, 1)}, "not finite"),
        ({"vertices": POINTS * 0}, "extent is zero"),
        ({"matrix_local": matrices(nan_at(JOINTS, 2, 0))}, "joint 2 is not finite"),
        ({"matrix_local": matrices(JOINTS * 100)}, "joint 2 is 199 half side lengths"),
        ({"matrix_local": matrices(JOINTS * 0)}, "all 3 joints coincide"),
        ({"parents": np.array([-1, 0, 3])}, "joint 2 has parent 3, but there are 3 joints"),
        ({"parents": np.array([-1, 0, -2])}, "joint 2 has parent -2, but there are 3 joints"),
        ({"parents": np.array([1, 2, 0])}, "no joint is a root because the parents form a cycle"),
        ({"parents": np.array([-1, 2, 1])}, "the parents of joint 1 form a cycle"),
        ({"joint_names": np.array(["a"])}, "1 joint names for 3 joints"),
        ({"skin": SKIN[:, :2]}, r"shape \(5, 2\) for 5 vertices and 3 joints"),
        ({"skin": nan_at(SKIN, 3, 1)}, "vertex 3 are NaN"),
        ({"skin": SKIN - 0.5}, "negative"),
        ({"skin": SKIN * 0}, "all skinning weights are 0"),
    ],
)
def test_broken_rigs_are_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    assert re.search(reason, refusal(plain_npz(tmp_path, **changes)))
