"""Occupancy grid: cells by hand, comparison with the reference, invariances."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import MeshRewardError, OccupancyGrid, build_occupancy
from rewards.occupancy import solid_faces
from rewards.references import build_occupancy_reference, solid_faces_reference, triangle_touches_cubes
from tests.rewards import cases
from tests.rewards.shapes import blob, box

INTERIORS = ("surface", "projection", "flood")


def cells(grid):
    return {tuple(cell) for cell in np.argwhere(grid.occupied).tolist()}


def test_one_triangle_by_hand():
    # Longest side 4, resolution 4: cells of edge 1. In the plane z = 0 the triangle x + y <= 4 touches cell
    # (i, j) when its lower corner does: i + j <= 4 (closed cubes: the corner (i, j) with i + j = 4 lies on
    # the long side).
    grid = build_occupancy([[0, 0, 0], [4, 0, 0], [0, 4, 0]], [[0, 1, 2]], resolution=4, interior="surface")
    assert grid.occupied.shape == (4, 4, 1)
    assert grid.cell == 1.0
    assert grid.origin.tolist() == [0, 0, 0]
    assert cells(grid) == {(i, j, 0) for i in range(4) for j in range(4) if i + j <= 4}


def test_contact_counts_on_both_sides_of_a_grid_plane():
    # A 4 x 4 x 4 box keeps the grid at cells of 1; the extra triangle lies in the plane x = 2, from y, z =
    # 1.2 to 1.8: it touches the cubes on both sides of that plane and no others.
    vertices, faces = box((4, 4, 4))
    vertices = np.vstack([vertices, [[2, 1.2, 1.2], [2, 1.8, 1.2], [2, 1.2, 1.8]]])
    with_sheet = build_occupancy(vertices, np.vstack([faces, [[8, 9, 10]]]), 4, "surface")
    without = build_occupancy(vertices, faces, 4, "surface")
    assert cells(with_sheet) - cells(without) == {(1, 1, 1), (2, 1, 1)}


def test_box_surface_and_interior_by_hand():
    # 4 x 4 x 4 cells: 64, of which the inner 2 x 2 x 2 = 8 are not surface; every interior fills them.
    vertices, faces = box((4, 4, 4))
    assert build_occupancy(vertices, faces, 4, "surface").count == 64 - 8
    assert build_occupancy(vertices, faces, 4, "projection").count == 64
    assert build_occupancy(vertices, faces, 4, "flood").count == 64


def test_open_box_is_filled_by_projection_but_not_by_flood():
    # Without its lid (z = 4) the box is a cup. Along z a column of the cavity has only the floor as surface,
    # so projection leaves the cavity above it empty; flood fill enters through the opening: both keep the
    # surface only.
    vertices, faces = box((4, 4, 4))
    cup = faces[:10]
    surface = build_occupancy(vertices, cup, 4, "surface")
    # floor 16 + three rings of 12
    assert surface.count == 16 + 3 * 12
    assert cells(build_occupancy(vertices, cup, 4, "flood")) == cells(surface)
    assert cells(build_occupancy(vertices, cup, 4, "projection")) == cells(surface)
    # A second, smaller lid floating inside closes the columns below it for projection only: the opening
    # beside it stays.
    lid = np.array([[1.2, 1.2, 3.5], [1.8, 1.2, 3.5], [1.2, 1.8, 3.5]])
    vertices, cup = np.vstack([vertices, lid]), np.vstack([cup, [[8, 9, 10]]])
    assert cells(build_occupancy(vertices, cup, 4, "flood")) == cells(surface) | {(1, 1, 3)}
    assert cells(build_occupancy(vertices, cup, 4, "projection")) == cells(surface) | {
        (1, 1, 3),
        (1, 1, 2),
        (1, 1, 1),
    }


@pytest.mark.parametrize(
    ("extent", "shape"),
    [
        ((196.0, 98.0, 1.0), (196, 98, 1)),  # whole numbers of cells stay whole
        ((196.0, 98.1, 0.0), (196, 99, 1)),  # a fraction of a cell rounds up, and a flat axis has one cell
        ((196.0, 98.0 + 1e-10, 97.0 - 1e-10), (196, 98, 97)),  # rounding error does not add a cell
    ],
)
def test_grid_size(extent, shape):
    vertices, faces = box(extent)
    if extent[2] == 0:
        faces = faces[[8, 9]]
    assert build_occupancy(vertices, faces).occupied.shape == shape


def test_contains_by_hand():
    occupied = np.zeros((2, 2, 2), dtype=bool)
    occupied[0, 0, 0] = occupied[1, 1, 1] = True
    grid = OccupancyGrid(occupied, np.array([-1.0, -1.0, -1.0]), 1.0)
    points = {
        (-1, -1, -1): True,  # the origin
        (-0.01, -0.5, -0.5): True,  # cell (0, 0, 0)
        (0, -0.5, -0.5): False,  # a shared face belongs to the upper cell, (1, 0, 0)
        (0, 0, 0): True,  # cell (1, 1, 1)
        (1, 1, 1): True,  # the grid's upper corner belongs to the last cell
        (1 + 1e-6, 1, 1): False,  # outside
        (-1 - 1e-6, -1, -1): False,
        (np.nan, 0, 0): False,
        (np.inf, 0.5, 0.5): False,
    }
    assert grid.contains(np.array(list(points))).tolist() == list(points.values())
    assert grid.contains([0.5, 0.5, 0.5])  # one point, no batch axis
    assert grid.contains(np.full((3, 4, 3), 0.5)).shape == (3, 4)
    assert grid.centres().tolist() == [[-0.5, -0.5, -0.5], [0.5, 0.5, 0.5]]


def test_pickling_is_bit_packed_and_exact():
    grid = cases.grid("Fox")
    grid.blocks  # noqa: B018  the cached value must not be pickled
    data = pickle.dumps(grid)
    assert len(data) < grid.occupied.size / 8 + 1000
    back = pickle.loads(data)
    assert (back.occupied == grid.occupied).all()
    assert back.occupied.dtype == np.bool_
    assert (back.origin == grid.origin).all()
    assert (back.cell, back.count) == (grid.cell, grid.count)
    odd = OccupancyGrid(np.ones((3, 5, 7), dtype=bool), np.zeros(3), 1.0)  # 105 cells: not whole bytes
    assert pickle.loads(pickle.dumps(odd)).count == 105


def test_blocks_hold_every_occupied_cell_once():
    grid = cases.grid("Fox")
    first, rows = grid.blocks
    block, row, bit = np.nonzero(np.unpackbits(rows[..., None], axis=2, bitorder="little"))
    found = first[block] + np.stack([row // 8, row % 8, bit], axis=1)
    assert len(found) == grid.count
    assert set(map(tuple, found.tolist())) == cells(grid)


lattice = st.integers(-8, 8).map(lambda n: n / 2)  # corners and edges on grid planes: contacts everywhere
anywhere = st.floats(-4, 4, width=32)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from([lattice, anywhere]), st.integers(1, 5), st.integers(1, 13))
def test_fast_grid_is_the_reference_grid(data, numbers, triangles, resolution):
    corners = data.draw(
        st.lists(st.tuples(numbers, numbers, numbers), min_size=3 * triangles, max_size=3 * triangles)
    )
    vertices, faces = np.array(corners, dtype=np.float64), np.arange(3 * triangles).reshape(-1, 3)
    for interior in INTERIORS:
        try:
            expected = build_occupancy_reference(vertices, faces, resolution, interior)
        except MeshRewardError:
            with pytest.raises(MeshRewardError):
                build_occupancy(vertices, faces, resolution, interior)
            return
        assert (build_occupancy(vertices, faces, resolution, interior).occupied == expected.occupied).all()


@pytest.mark.parametrize("spread", [0.01, 0.2, 1.0])
def test_fast_grid_is_the_reference_grid_on_soups(spread):
    vertices, faces = blob(np.random.default_rng(7), faces=40, spread=spread)
    for interior in INTERIORS:
        fast = build_occupancy(vertices, faces, 47, interior)
        assert (fast.occupied == build_occupancy_reference(vertices, faces, 47, interior).occupied).all()


def test_separating_axes_against_dense_sampling():
    # A sampled point of the triangle that lies in a cube proves contact, so every such cube must be reported.
    # The other direction: shrink the cube's neighbourhood to samples within half a sampling step.
    rng = np.random.default_rng(3)
    grid = np.stack(np.meshgrid(*[np.arange(6)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    u, v = (axis.ravel() for axis in np.meshgrid(*[np.linspace(0, 1, 200)] * 2))
    inside = u + v <= 1
    barycentric = np.stack([1 - u - v, u, v], axis=1)[inside]
    for _ in range(10):
        triangle = rng.uniform(0, 6, (3, 3))
        points = barycentric @ triangle
        touched = {tuple(c) for c in grid[triangle_touches_cubes(triangle, grid)].tolist()}
        assert {tuple(c) for c in np.floor(points).astype(int).tolist()} <= touched
        for cell in touched:
            gap = np.maximum(np.maximum(cell - points, points - np.add(cell, 1)), 0)
            assert (
                np.linalg.norm(gap, axis=1).min() < 0.06
            )  # the samples' spacing: sides up to 10 over 199 steps


@pytest.mark.parametrize("name", ["Fox", "RiggedFigure"])
@pytest.mark.parametrize("interior", INTERIORS)
def test_grid_of_a_shape_does_not_depend_on_its_file(name, interior):
    vertices = cases.inputs(name)["vertices"].astype(np.float64)
    faces = cases.inputs(name)["faces"].astype(np.int64)
    expected = cases.grid(name, interior).occupied
    soup = vertices[faces].reshape(-1, 3)
    stray = np.vstack([[[9, 9, 9], [np.nan, 0, 0]], vertices])
    needles = np.array([[0, 0, 0], [1, 1, 300], [5, 200, 5]])  # repeated corners: lines across the shape
    variants = {
        "flipped": (vertices, faces[:, ::-1]),
        "soup": (soup, np.arange(len(soup)).reshape(-1, 3)),
        "doubled": (vertices, np.vstack([faces, faces[:, [1, 2, 0]]])),
        "shuffled": (vertices, np.random.default_rng(0).permutation(faces)),
        "degenerate faces": (vertices, np.vstack([needles, faces])),
        "unreferenced vertices": (stray, faces + 2),
        "scaled": (vertices * 37.3, faces),
        "moved": (vertices + np.array([1000.0, -2000.0, 500.0]), faces),
        "scaled and moved far": (vertices * 1e-3 + np.array([0.0, 3e3, -1e3]), faces),
    }
    for label, (points, triangles) in variants.items():
        grid = build_occupancy(points, triangles, interior=interior)
        assert grid.occupied.shape == expected.shape, label
        assert (grid.occupied == expected).all(), label


@pytest.mark.parametrize("offset", [0.0, 0.1, 12345.678, -1e6, 3.3e8])
def test_contacts_survive_rounding(offset):
    # A box of 7 x 5 x 3 cells touches only grid planes; inner sheets at whole cells as well.
    vertices, faces = box((7, 5, 3))
    sheet = np.array([[3, 1, 1], [3, 4, 1], [3, 1, 2.5]])
    vertices, faces = np.vstack([vertices, sheet]) * 0.1 + offset, np.vstack([faces, [[8, 9, 10]]])
    grid = build_occupancy(vertices, faces, 7, "surface")
    assert grid.occupied.shape == (7, 5, 3)
    # All 105 cells but the inner 5 x 3 x 1, of which the sheet in the plane x = 3 touches i = 2 and 3, j = 1,
    # 2, 3 # (the grid counts contact: at z = 1 to 2.5 the layer k = 1 is touched).
    assert grid.count == 105 - 15 + 6


def test_faces_without_area_are_found():
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0.5, 0, 0], [1, 0, 0]], dtype=np.float64)
    faces = np.array([[0, 1, 2], [0, 0, 1], [0, 1, 3], [0, 1, 4], [2, 1, 0]])
    _, _, solid = solid_faces(vertices, faces)
    # not: repeated index, collinear, repeated position
    assert solid.tolist() == [True, False, False, False, True]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1.0, 1e6]))
def test_faces_without_area_are_found_as_by_the_reference(seed, offset):
    rng = np.random.default_rng(seed)
    vertices = np.round(rng.uniform(-1, 1, (12, 3)), 1) + offset
    faces = rng.integers(0, 12, (30, 3))
    try:
        points, triangles, solid = solid_faces(vertices, faces)
    except MeshRewardError:
        assert not solid_faces_reference(vertices, faces).any()
    else:
        assert (solid == solid_faces_reference(points, triangles)).all()


@pytest.mark.parametrize(
    ("vertices", "faces", "reason"),
    [
        (np.zeros((3, 2)), [[0, 1, 2]], r"\(V, 3\)"),
        (np.zeros((3, 3), dtype=object), [[0, 1, 2]], "dtype object"),
        (np.eye(3), [[0, 1]], r"\(F, 3\)"),
        (np.eye(3), [[0.0, 1.0, 2.0]], "integers"),
        (np.eye(3), np.zeros((0, 3), dtype=int), "no faces"),
        (np.eye(3), [[0, 1, 3]], "0 to 3, but the mesh has 3 vertices"),
        (np.eye(3), [[-1, 1, 2]], "-1"),
        (np.diag([1, 1, np.nan]), [[0, 1, 2]], "not finite"),
        (np.diag([1, 1, np.inf]), [[0, 1, 2]], "not finite"),
        (np.eye(3) * 1e200, [[0, 1, 2]], "exceeds 1e30"),
        (np.zeros((3, 3)), [[0, 1, 2]], "no triangle with area"),
        (np.arange(9.0).reshape(3, 3), [[0, 1, 2]], "no triangle with area"),
        (np.zeros((1, 3)), [[0, 0, 0]], "no triangle with area"),
        (np.eye(3) * 1e-200, [[0, 1, 2]], "no triangle with area"),
    ],
)
def test_meshes_that_cannot_be_voxelised_raise_one_error(vertices, faces, reason):
    for build in (build_occupancy, build_occupancy_reference):
        with pytest.raises(MeshRewardError, match=reason):
            build(np.asarray(vertices), np.asarray(faces), 8)


def test_options_are_checked():
    with pytest.raises(ValueError, match="projection, flood, surface"):
        build_occupancy(*box(), interior="winding")
    with pytest.raises(ValueError, match="resolution is 0"):
        build_occupancy(*box(), resolution=0)
