"""Weight locality: owners, connected bones and shares by hand, and the reference on random rigs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import (
    OccupancyGrid,
    RewardError,
    RewardSettings,
    RigRewardError,
    build_occupancy,
    prepare_scoring_mesh,
    score_rig,
)
from rewards import weight_locality as locality
from rewards.kernels.locality import owning_bones
from rewards.locality import bone_segments, coarse_grid, connected_bones, in_cells
from rewards.references import weight_locality_reference
from tests.rewards.shapes import blob, box, random_rig

# Two legs of cells, at x = 0 and x = 4, hang from hips at z = 5; a gap of three empty columns lies between.
#
#     z = 5   H H H H H
#         4   L . . . R
#         …   L . . . R
#         0   L . . . R
LEGS = np.zeros((5, 1, 6), dtype=np.bool_)
LEGS[:, :, 5] = LEGS[0] = LEGS[4] = True
GRID = OccupancyGrid(LEGS, np.zeros(3), 1.0)

#   0 hips, 1 left thigh, 2 left foot, 3 right thigh, 4 right foot
JOINTS = np.array([[2.5, 0.5, 5.5], [0.5, 0.5, 4.5], [0.5, 0.5, 0.5], [4.5, 0.5, 4.5], [4.5, 0.5, 0.5]])
PARENTS = np.array([-1, 0, 1, 0, 3])
LEFT_SHIN, RIGHT_SHIN, HIPS = [0.5, 0.5, 2.5], [4.5, 0.5, 2.5], [2.5, 0.5, 5.5]


def owners(grid, joints, parents, points):
    starts, ends, bones = bone_segments(np.asarray(joints, dtype=float), np.asarray(parents))
    cells = [in_cells(grid, np.asarray(each, dtype=float)) for each in (starts, ends, points)]
    return owning_bones(grid.occupied, cells[0], cells[1], bones, cells[2]).tolist()


def test_connected_bones_by_hand():
    # thigh and foot of one leg, the two thighs (both hang on the hips), and the hips with all
    expected = [
        [1, 1, 1, 1, 1],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 1],
        [1, 0, 0, 1, 1],
    ]
    assert connected_bones(PARENTS).astype(int).tolist() == expected
    assert connected_bones(np.array([-1, -1])).tolist() == [[True, False], [False, True]]  # two roots
    assert connected_bones(np.array([1, -1])).all()  # a child before its parent


def test_segments_belong_to_the_joint_that_turns_them():
    starts, ends, bones = bone_segments(JOINTS, PARENTS)
    assert bones.tolist() == [0, 1, 2, 3, 4, 0, 1, 0, 3]
    assert (starts[:5] == JOINTS).all()
    assert (ends[:5] == JOINTS).all()
    assert (starts[6] == JOINTS[1]).all()
    assert (ends[6] == JOINTS[2]).all()


def test_owners_by_hand():
    assert owners(GRID, JOINTS, PARENTS, [LEFT_SHIN, RIGHT_SHIN, HIPS, JOINTS[2], JOINTS[4]]) == [
        1,
        3,
        0,
        2,
        4,
    ]


def test_the_way_through_the_mesh_decides_not_the_air():
    """A right foot that stands off to the left: nearer to the left shin than the left thigh's joint is."""
    joints = JOINTS.copy()
    joints[2] = JOINTS[1]  # the left leg's bones all lie at its top
    joints[4] = [3.9, 0.5, 0.5]  # in an empty cell
    joints[3] = [3.9, 0.5, 4.5]
    point = [[0.5, 0.5, 0.5]]  # 3.4 from the right foot in a straight line, 4 from the left thigh
    assert owners(GRID, joints, PARENTS, point) == [1]
    assert locality(GRID, point, joints, PARENTS, [[0, 0, 0, 0, 1]]) == 0.0
    assert locality(GRID, point, joints, PARENTS, [[0, 1, 0, 0, 0]]) == 1.0


def test_what_no_way_reaches_belongs_to_the_nearest_bone():
    island = LEGS.copy()
    island[0, 0, 3:5] = False  # cuts the left leg's lower part off
    grid = OccupancyGrid(island, np.zeros(3), 1.0)
    joints = JOINTS.copy()
    joints[2] = JOINTS[1]
    assert owners(grid, joints, PARENTS, [LEFT_SHIN]) == [1]
    joints[4] = [2.0, 0.5, 0.5]  # the thigh is 2 away, the bone from the right hip to this foot 2.3
    assert owners(grid, joints, PARENTS, [LEFT_SHIN]) == [1]
    joints[4] = [0.9, 0.5, 0.5]  # inside the island, which is then reached
    assert owners(grid, joints, PARENTS, [LEFT_SHIN]) == [4]


@pytest.mark.parametrize(
    ("point", "row", "expected"),
    [
        (LEFT_SHIN, [0, 1, 0, 0, 0], 1.0),
        (LEFT_SHIN, [0, 0, 0, 0, 1], 0.0),  # the right foot moves the left leg
        (LEFT_SHIN, [0, 0.6, 0, 0, 0.2], 0.75),  # 1 - 0.2 / 0.8
        (LEFT_SHIN, [1, 1, 1, 0, 1], 0.75),  # hips and foot are on the same chain
        (LEFT_SHIN, [0, 0, 0, 1, 0], 1.0),  # the right thigh hangs on the same joint
        (JOINTS[2], [0, 0, 0, 1, 0], 0.0),  # but not as the left foot
        (HIPS, [1, 1, 1, 1, 1], 1.0),  # the hips are an ancestor of all
        (LEFT_SHIN, [0, 0, 0, 0, 0], 1.0),  # no weight, no leak
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_by_hand(dtype, point, row, expected):
    weights = np.array([row], dtype=dtype)
    assert locality(GRID, [point], JOINTS, PARENTS, weights) == pytest.approx(expected)
    both = np.concatenate([weights, np.array([[1, 0, 0, 0, 0]], dtype=dtype)])
    assert locality(GRID, [point, HIPS], JOINTS, PARENTS, both) == pytest.approx((expected + 1) / 2)


def test_coarse_grid_by_hand():
    occupied = np.zeros((5, 2, 7), dtype=np.bool_)
    occupied[4, 1, 6] = occupied[0, 0, 2] = True
    coarse = coarse_grid(OccupancyGrid(occupied, np.ones(3), 0.5), cells=4)  # 7 cells in blocks of 2
    assert np.argwhere(coarse.occupied).tolist() == [[0, 0, 1], [2, 0, 3]]
    assert coarse.occupied.shape == (3, 1, 4)
    assert (coarse.cell, coarse.origin.tolist()) == (1.0, [1.0, 1.0, 1.0])
    assert coarse_grid(GRID).occupied.tolist() == LEGS.tolist()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.sampled_from([3, 20, 90]))
def test_equals_reference(seed, joint_count, resolution):
    rng = np.random.default_rng(seed)
    vertices, faces = blob(rng, 15)
    joints, parents, weights = random_rig(rng, joint_count, len(vertices))
    joints *= rng.choice([1.0, 3.0])  # some outside the grid
    grid = build_occupancy(vertices, faces, resolution)
    arguments = grid, vertices, joints, parents, weights
    value = locality(*arguments)
    assert 0 <= value <= 1
    assert value == pytest.approx(weight_locality_reference(*arguments), abs=1e-12)


def test_scored_as_a_guard_only_when_enabled():
    plain = RewardSettings(resolution=8)
    mesh = prepare_scoring_mesh(*box(), plain)
    rng = np.random.default_rng(0)
    joints, parents, weights = random_rig(rng, 6, 8)
    rig = (joints, parents, weights, plain.rotations(6, 0))
    assert "weight_locality" not in score_rig(mesh, *rig, plain).rewards
    guarded = RewardSettings(resolution=8, guards=("weight_locality",))
    expected = locality(mesh.grid, mesh.vertices, joints, parents, weights)
    assert 0 < expected < 1
    assert score_rig(mesh, *rig, guarded).rewards["weight_locality"] == expected


def test_errors():
    with pytest.raises(RigRewardError, match="cycle"):
        locality(GRID, [HIPS], JOINTS[:2], [1, 0], [[1, 0]])
    with pytest.raises(RewardError, match=r"vertices have shape \(3,\)"):
        locality(GRID, HIPS, JOINTS, PARENTS, [[1, 0, 0, 0, 0]])
    with pytest.raises(RewardError, match="this mesh and rig need"):
        locality(GRID, [HIPS], JOINTS, PARENTS, [[1, 0]])
