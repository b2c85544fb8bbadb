"""The software renderer: pixels worked by hand."""

import numpy as np
import pytest

from rl.render.rasterise import Camera, framed, rasterise, render, sample, view_axes
from rl.render.textured_scene import Material, Surface, to_linear, to_srgb

FRONT = Camera(np.eye(3), np.zeros(2), 4.0, 8, 8)  # 2 x 2 units on 8 x 8 pixels, seen from +z
SQUARE = np.array([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
FACES = np.array([[0, 1, 2], [0, 2, 3]])


def square(depth: float = 0.0, side: float = 1.0, faces=FACES, **material) -> Surface:
    points = SQUARE * side + [0, 0, depth]
    given = Material(np.array(material.pop("factor", (1.0, 1, 1, 1))), **material)
    uv = np.array([[0.0, 1], [1, 1], [1, 0], [0, 0]])
    return Surface(points, faces, None, uv, np.ones((4, 4)), given)


def test_a_camera_projects_to_pixels_with_y_down() -> None:
    np.testing.assert_allclose(
        FRONT.project(np.array([[0.0, 0, 0], [1, 1, 0], [-1, 0.5, 3]])), [[4, 4, 0], [8, 0, 0], [0, 2, -3]]
    )


@pytest.mark.parametrize(
    ("yaw", "right", "towards"), [(0, [1, 0, 0], [0, 0, 1]), (90, [0, 0, -1], [1, 0, 0])]
)
def test_axes_of_a_view(yaw, right, towards) -> None:
    axes = view_axes(yaw, 0)
    np.testing.assert_allclose(axes, [right, [0, 1, 0], towards], atol=1e-12)
    np.testing.assert_allclose(view_axes(yaw, 30) @ view_axes(yaw, 30).T, np.eye(3), atol=1e-12)


def test_a_framed_view_holds_all_points() -> None:
    camera = framed([SQUARE * [1, 3, 1], SQUARE + np.array([5, 0, 0])], np.eye(3), 100, 200, 0.1)
    seen = camera.project(np.array([[-1.0, -3, 0], [6, 3, 0]]))
    # 7 units across 80 pixels are the tighter side: 6 units up take 6 * 80 / 7 pixels.
    np.testing.assert_allclose(seen[:, 0], [10, 90])
    np.testing.assert_allclose(seen[:, 1], [100 + 240 / 7, 100 - 240 / 7])


def test_pixels_and_shares_of_a_triangle() -> None:
    points = np.array([[0.0, 4, 1], [4, 4, 2], [0, 0, 3]])  # pixels: right angle at the lower left
    depth, owner, shares = np.full((4, 4), np.inf), np.full((4, 4), -1), np.zeros((4, 4, 3))
    faces = np.array([[0, 1, 2]])
    rasterise(points, faces, True, np.full((4, 4), -np.inf), 7, depth, owner, shares)
    # Centres on the hypotenuse, x = y, belong to the triangle.
    expected = np.array([[7, -1, -1, -1], [7, 7, -1, -1], [7, 7, 7, -1], [7, 7, 7, 7]])
    np.testing.assert_array_equal(owner, expected)
    # The centre (0.5, 3.5) is 1/8 of the way to each of the other corners.
    np.testing.assert_allclose(shares[3, 0], [0.75, 0.125, 0.125])
    assert depth[3, 0] == pytest.approx(0.75 * 1 + 0.125 * 2 + 0.125 * 3)
    rasterise(points, faces[:, ::-1], True, np.full((4, 4), -np.inf), 9, depth, owner, shares)
    np.testing.assert_array_equal(owner, expected)  # from behind: nothing


def test_the_nearest_surface_is_seen() -> None:
    near, far = square(0.5, 0.5, factor=(1, 0, 0, 1)), square(0.0, factor=(0, 1, 0, 1))
    for surfaces in ([near, far], [far, near]):
        picture = render(surfaces, FRONT)
        assert (picture[..., 3] == 1).all()
        red = picture[..., 0] > 0
        np.testing.assert_array_equal(red, np.pad(np.ones((4, 4), dtype=bool), 2))
        assert (picture[~red, 1] > 0.5).all()


def test_the_back_of_a_single_sided_surface_is_not_drawn() -> None:
    back = FACES[:, ::-1]
    assert not render([square(faces=back)], FRONT).any()
    front, behind = render([square()], FRONT), render([square(faces=back, double_sided=True)], FRONT)
    np.testing.assert_allclose(front, behind)


def test_cut_out_and_translucent_surfaces_show_what_is_behind() -> None:
    half = np.ones((1, 2, 4), dtype=np.float32)
    half[0, 0, 3] = 0.0  # the left half is cut out; bilinear, so only the outer pixels are pure
    behind = square(-1.0, factor=(0, 1, 0, 1))
    picture = render([square(factor=(1, 0, 0, 1), texture=half, alpha_mode="MASK"), behind], FRONT)
    np.testing.assert_array_equal(picture[4, 2:6, 0] > 0, [False, False, True, True])
    veil = render([square(factor=(1, 0, 0, 0.25), alpha_mode="BLEND"), behind], FRONT)
    red, green = to_linear(veil[4, 4, 0]), to_linear(veil[4, 4, 1])
    assert red / green == pytest.approx(0.25 / 0.75)
    alone = render([square(factor=(1, 0, 0, 0.25), alpha_mode="BLEND")], FRONT)
    assert alone[..., 3] == pytest.approx(0.25)


def test_samples_of_a_texture_that_repeats() -> None:
    texture = np.arange(4, dtype=np.float32).reshape(1, 4, 1).repeat(4, axis=2)
    uv = np.array([[0.125, 0.5], [0.375, 0.5], [0.25, 0.5], [1.125, 0.5], [0.0, 0.5]])
    # Centres of texels 0 and 1, half-way, one period on, and between the last and the first.
    np.testing.assert_allclose(sample(texture, uv)[:, 0], [0, 1, 0.5, 0, 1.5])


def test_srgb_and_linear_light() -> None:
    values = np.linspace(0, 1, 101)
    np.testing.assert_allclose(to_srgb(to_linear(values)), values, atol=1e-6)
    assert to_linear(np.array(0.5)) == pytest.approx(0.21404, abs=1e-5)
