"""The check of RAY_TMPDIR and TMPDIR before a local Ray starts."""

import sys
from pathlib import Path

import pytest

from rewards.ray_connection import RayUnavailableError
from rewards.ray_folder import ray_folder_problem
from rewards.ray_service import RayRewardService
from rewards.settings import RewardSettings

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit of Linux")

# Of the 107 bytes, "/ray/session_2000-01-01_00-00-00_000000_1/sockets/plasma_store" takes 62: 45 are left
# for the folder of process 1, and 39 for process 4,194,304.
LONGEST = "/tmp/" + "x" * 40


def test_without_the_variables_the_folder_is_not_checked() -> None:
    assert ray_folder_problem({}) is None


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
def test_the_longest_path_that_fits_is_accepted_and_one_byte_more_is_not(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: None)
    monkeypatch.setattr("os.access", lambda *_: True)
    assert ray_folder_problem({name: LONGEST}, process=1) is None
    assert ray_folder_problem({name: LONGEST + "/"}, process=1) is None
    assert ray_folder_problem({name: LONGEST + "x"}, process=1) == (
        f"{name} is '{LONGEST}x', whose 46 bytes leave no room for the names of Ray's sockets; set "
        "RAY_TMPDIR to a shorter path (up to 39 bytes), such as /tmp"
    )
    assert "whose 46 bytes" in str(ray_folder_problem({name: LONGEST[:-1] + "é"}, process=1))


def test_ray_tmpdir_takes_precedence(tmp_path: Path) -> None:
    assert "TMPDIR is ''" in str(ray_folder_problem({"TMPDIR": ""}))
    assert ray_folder_problem({"RAY_TMPDIR": "/tmp", "TMPDIR": "/" + "x" * 200}) is None


@pytest.mark.parametrize("folder", ["relative", "/proc/nowhere"])
def test_a_folder_that_ray_could_not_use_is_reported(folder: str) -> None:
    problem = str(ray_folder_problem({"RAY_TMPDIR": folder}))
    assert problem.startswith(f"RAY_TMPDIR is '{folder}', which ")
    assert problem.endswith("set RAY_TMPDIR to the absolute path of a writable folder, such as /tmp")


def test_the_service_reports_it_before_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/" + "x" * 150)
    with pytest.raises(RayUnavailableError, match="a local Ray cannot start: RAY_TMPDIR is '/xxx") as caught:
        RayRewardService("unused", RewardSettings())
    assert "ray.address" not in str(caught.value)


def test_a_home_that_cannot_hold_rays_token_is_reported(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.write_text("a file, so that root cannot make a folder in it either")
    assert ray_folder_problem({"HOME": str(home)}) == (
        f"{home}/.ray, where Ray keeps its token, cannot be written; set HOME to a folder that can"
    )
    for name, value in (("RAY_AUTH_TOKEN", "x"), ("RAY_AUTH_TOKEN_PATH", "x"), ("RAY_AUTH_MODE", "disabled")):
        assert ray_folder_problem({"HOME": str(home), name: value}) is None
    assert ray_folder_problem({"HOME": str(tmp_path / "new")}) is None
