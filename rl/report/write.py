"""Writes the page of one or several runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data.atomic import write_atomic
from data.typed_recipe import RecipeError
from rl.report.page import run_page
from rl.report.read_run import read_run, run_names
from rl.report.run_rigs import run_views

ONE_RUN, SEVERAL_RUNS = "report.html", "compared.html"


def write_report(folders: Sequence[Path], out: Path | None = None, overrides: Sequence[str] = ()) -> Path:
    """Write the page of runs, given by their output directories, and return its path.

    Rolls out a few rigs of each run, unless an earlier page stored them there. `overrides` change the recipe
    with which it does, such as `report.meshes=2`. `out`: by default in the first run's directory.

    Raises:
        RecipeError: a directory is no run or is named twice, `out` is a folder, or an override is wrong.
        OSError: the page cannot be written.
    """
    path = out or folders[0] / (ONE_RUN if len(folders) == 1 else SEVERAL_RUNS)
    if path.is_dir():
        raise RecipeError(f"--out {path} is a folder; name a file in it")
    resolved = [folder.resolve() for folder in folders]
    for folder, own in zip(folders, resolved, strict=True):
        if resolved.count(own) > 1:
            raise RecipeError(f"{folder} is named twice; name each run once")
    names = run_names(folders)
    runs = [read_run(folder, name, overrides) for folder, name in zip(folders, names, strict=True)]
    views = [view for place, run in enumerate(runs) for view in run_views(run, place)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, run_page(runs, views, path.parent).encode())
    return path
