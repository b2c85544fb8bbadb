"""The pages in headless Chromium: no errors, nothing fetched, pictures that pose and colours change.

Skipped without Chromium; `make browser` installs it.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from data.gltf.influences import as_stored
from rewards.lbs import linear_blend_skinning, skinning_matrices
from rl.report.page import run_page, viewer_page
from rl.report.read_run import read_run
from tests.rl.report.browser import Browser, binary, chromium
from tests.rl.report.pages import views, write_run

NAME = "<i>a"  # of a run: it must stay text

# Sets a control of the page as a user does.
SET = """(() => {{
  const control = document.querySelectorAll("{selector}")[{place}];
  control.value = "{value}";
  for (const kind of ["input", "change"]) control.dispatchEvent(new Event(kind));
}})()"""
NEXT_FRAMES = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
SHOW_RIGS = "document.getElementById('rigs').scrollIntoView({behavior: 'instant'})"
PLACES = """[...document.querySelectorAll(".space")].map((own) => {
  const r = own.getBoundingClientRect();
  return [r.left, r.top, r.right, r.bottom];
})"""
DRAWN = """[...document.querySelectorAll("#curve-charts path")].every(
  (own) => !/NaN|undefined/.test(own.getAttribute("d")))"""
CHOSEN = "[...document.querySelectorAll('.pick select')].map((own) => Number(own.value))"


def set_control(browser: Browser, selector: str, value: object, place: int = 0) -> None:
    browser.evaluate(SET.format(selector=selector, place=place, value=value))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if binary() is None:
        pytest.skip("Chromium is not installed; run make browser")
    with chromium(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """one.html: a run; two.html: two runs; rig.html: a rig."""
    folder = tmp_path_factory.mktemp("pages")
    write_run(folder / NAME)
    write_run(folder / "b", {"rewards.coverage.weight": 0.0}, steps=2, after=False)
    runs = [read_run(folder / name, name) for name in (NAME, "b")]
    both = [*views(0), *(view for view in views(1, (0,)) if view.run == 1)]
    (folder / "one.html").write_text(run_page(runs[:1], views(), folder))
    (folder / "two.html").write_text(run_page(runs, both, folder))
    (folder / "rig.html").write_text(viewer_page("<fox>", views()[0]))
    return folder


def cells(browser: Browser, part: str) -> list[np.ndarray]:
    """A list of numbers of each column of the viewer, as (n, 3)."""
    found = browser.evaluate(f"window.rigViewer.cells().map((cell) => cell.{part})")
    return [np.array(own).reshape(-1, 3) for own in found]


def assert_clean(browser: Browser, page: Path) -> None:
    assert browser.problems == []
    fetched = [url for url in browser.requests if not url.startswith(("data:", "blob:"))]
    assert fetched == [page.resolve().as_uri()]


def colours_in(browser: Browser, path: Path) -> list[int]:
    """How many colours each column of the viewer shows, on a screenshot."""
    browser.evaluate(SHOW_RIGS)
    browser.evaluate(NEXT_FRAMES)
    browser.screenshot(path)
    places = browser.evaluate(PLACES)
    with Image.open(path) as shot:
        pictures = [shot.convert("RGB").crop([round(side) for side in place]) for place in places]
    return [len(picture.getcolors(1 << 20) or []) for picture in pictures]


def test_a_run_in_the_browser(browser: Browser, pages: Path, tmp_path: Path) -> None:
    page = pages / "one.html"
    browser.open(page)
    assert min(colours_in(browser, tmp_path / "shot.png")) > 300  # shaded and coloured, not empty
    charts = "document.querySelectorAll('#{} figure').length"
    assert browser.evaluate(charts.format("curve-charts")) == 8
    assert browser.evaluate(charts.format("histograms")) == 5
    assert browser.evaluate(charts.format("scatters")) == 6
    assert browser.evaluate(DRAWN)
    assert_clean(browser, page)


@pytest.mark.parametrize(("pose", "degrees"), [(1, 30), (2, 90)])
def test_the_slider_poses_the_vertices_as_the_reward_does(
    browser: Browser, pages: Path, pose: int, degrees: int
) -> None:
    browser.open(pages / "one.html")
    rest = cells(browser, "positions")
    set_control(browser, "#pose", pose)
    set_control(browser, "#degrees", degrees)
    posed = cells(browser, "positions")
    assert all(np.abs(a - b).max() > 0.02 for a, b in zip(posed, rest, strict=True))
    for view, own, before in zip(views()[:3], posed, rest, strict=True):
        assert view.rig is not None
        assert view.poses is not None
        # The page stores vertices in the order of a grid: compare places, whatever their order.
        turns = Rotation.from_rotvec(view.poses.vectors[pose]).as_matrix()[None]
        matrices = skinning_matrices(view.rig.joints, view.rig.parents, turns)
        stored = as_stored(view.rig.weights)
        expected = linear_blend_skinning(view.mesh.vertices, stored, matrices)[0]
        distance, source = cKDTree(view.mesh.vertices).query(before)
        assert distance.max() < 1e-4
        assert np.abs(own - expected[source]).max() < 0.01  # weights are bytes
    stretch = "document.querySelector('.choice button[value=stretch]').click()"
    browser.evaluate(stretch)
    assert all(len(np.unique(own, axis=0)) > 5 for own in cells(browser, "colours"))
    set_control(browser, "#degrees", 0)
    still = cells(browser, "colours")  # nothing is stretched: one colour, green
    assert all(np.ptp(own, axis=0).max() < 0.01 and own[0].argmax() == 1 for own in still)
    assert all((a == b).all() for a, b in zip(cells(browser, "positions"), rest, strict=True))
    assert_clean(browser, pages / "one.html")


def test_a_chosen_bone_shows_its_weights_and_turns(browser: Browser, pages: Path) -> None:
    browser.open(pages / "one.html")
    joints = views()[0].rig
    assert joints is not None
    chosen = len(joints.joints) - 2
    every = cells(browser, "colours")
    set_control(browser, ".pick select", chosen)
    one = cells(browser, "colours")
    assert all((a != b).any() for a, b in zip(every, one, strict=True))
    # The other columns choose the joint at the same place: it has the same number here.
    assert (
        browser.evaluate("[...document.querySelectorAll('.pick select')].map((own) => Number(own.value))")
        == [chosen] * 3
    )
    set_control(browser, ".pick select", 0)
    assert all((a != b).any() for a, b in zip(one, cells(browser, "colours"), strict=True))
    set_control(browser, ".pick select", chosen)
    rest = cells(browser, "positions")[0]
    set_control(browser, "#pose", "z")
    set_control(browser, "#degrees", 60)
    moved = np.abs(cells(browser, "positions")[0] - rest).max(axis=1) > 1e-6
    red = np.abs(one[0] - [0.62, 0.65, 0.68]).max(axis=1) > 1e-6
    assert moved.any()
    assert not (moved & ~red).any() or (joints.parents == chosen).any()  # only what the bone holds moves
    assert_clean(browser, pages / "one.html")


def test_a_click_on_a_joint_chooses_it_and_a_drag_turns_the_view(
    browser: Browser, pages: Path, tmp_path: Path
) -> None:
    browser.open(pages / "one.html")
    browser.evaluate(SHOW_RIGS)
    left, top, right, bottom = browser.evaluate(PLACES)[0]
    before = tmp_path / "before.png"
    browser.screenshot(before)
    # Somewhere on the body there is a joint within reach: walk down the middle.
    for share in np.linspace(0.2, 0.9, 15):
        browser.click((left + right) / 2, top + (bottom - top) * share)
        if browser.evaluate("document.querySelector('.pick select').value") != "-1":
            break
    else:
        pytest.fail("no joint was chosen")
    middle = (left + right) / 2, (top + bottom) / 2
    browser.drag(middle, (middle[0] + 90, middle[1]))
    after = tmp_path / "after.png"
    browser.evaluate(NEXT_FRAMES)
    browser.screenshot(after)
    assert before.read_bytes() != after.read_bytes()
    assert_clean(browser, pages / "one.html")


def test_several_runs_in_the_browser(browser: Browser, pages: Path, tmp_path: Path) -> None:
    page = pages / "two.html"
    browser.open(page, dark=True)
    titles = "[...document.querySelectorAll('.cell .title')].map((own) => own.firstChild.textContent)"
    assert browser.evaluate(titles) == [NAME, "b", "ground truth"]
    assert min(colours_in(browser, tmp_path / "shot.png")) > 300
    # The second mesh has rigs of the first run only.
    set_control(browser, "#mesh", 1)
    assert browser.evaluate("document.querySelectorAll('.space')[1].textContent") == "no rig of this mesh"
    assert [len(own) > 0 for own in cells(browser, "positions")] == [True, False, True]
    lines = "document.querySelectorAll('#curve-charts figure:first-of-type .curve').length"
    both = browser.evaluate(lines)
    browser.evaluate("document.querySelector('#curve-charts .legend input').click()")
    assert browser.evaluate(lines) < both
    assert_clean(browser, page)


def test_many_runs_in_the_browser(browser: Browser, tmp_path: Path) -> None:
    """Bands and rigs before training are drawn for up to four runs; the ninth run has the first's colour."""
    for number in range(9):
        write_run(tmp_path / f"run{number}")
    runs = [read_run(tmp_path / f"run{number}", f"run{number}") for number in range(9)]
    page = tmp_path / "many.html"
    page.write_text(run_page(runs, [], tmp_path))
    browser.open(page)
    count = "document.querySelectorAll('{}').length"
    bands, before = count.format("#curve-charts .area"), count.format("#histograms .stage-before")
    charts = browser.evaluate(count.format("#curve-charts figure"))
    assert browser.evaluate(bands) == browser.evaluate(before) == 0
    assert browser.evaluate(count.format("#curve-charts .run0.dash1 .curve")) == charts
    browser.evaluate("[...document.querySelectorAll('.legend button')][1].click()")
    for run in range(4):
        browser.evaluate(f"document.querySelectorAll('#curve-charts .legend input')[{run}].click()")
    assert browser.evaluate(bands) == 4 * charts
    assert browser.evaluate(before) == 4 * 5
    browser.evaluate("document.querySelector('.legend button').click()")
    assert browser.evaluate(count.format("#curve-charts .legend input:checked")) == 9
    assert_clean(browser, page)


def test_one_rig_in_the_browser(browser: Browser, pages: Path, tmp_path: Path) -> None:
    browser.open(pages / "rig.html", width=500)
    assert browser.evaluate("document.title") == "<fox>"
    assert colours_in(browser, tmp_path / "shot.png")[0] > 300
    assert_clean(browser, pages / "rig.html")
