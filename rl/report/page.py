"""Puts the page together: one HTML file with its style, scripts, data and three.js in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from rl.report.curves import curve_groups
from rl.report.distributions import histograms, scatters
from rl.report.html import escaped, paragraph
from rl.report.packing import compressed
from rl.report.read_run import RunFiles
from rl.report.tables import failures_table, recipe_tables, results_table, rollouts_tables, runs_table
from rl.report.viewer_data import MOST_FACES, RigView, viewer_data

_MOST_NAMES = 4  # of runs in the title
_VIEWER_HELP = (
    "Drag to turn the view; click, then scroll to zoom. Click a joint, or use the menu below a rig, to see "
    "the weights of its bone. At the angle in its name a pose is one that the smoothness reward saw."
)


def run_page(runs: Sequence[RunFiles], views: Sequence[RigView], folder: Path) -> str:
    """The page of one run, or of several side by side.

    `views`: the rigs that its viewer shows, if any. `folder`: where the page will be, for links to kept
    rollouts.
    """
    names = [run.name for run in runs]
    title = ", ".join(names)
    if len(runs) > 1:
        title = f"{len(runs)} runs: {title}" if len(runs) <= _MOST_NAMES else f"{len(runs)} runs"
    charts: dict[str, Any] = {
        "runs": names,
        "curves": curve_groups(runs),
        "histograms": histograms(runs),
        "scatters": scatters(runs),
    }
    shown = charts["histograms"]
    sections = [
        ("runs", "Runs" if len(runs) > 1 else "Run", runs_table(runs)),
        ("results", "Before and after", results_table(runs)),
        (
            "rigs",
            "Rigs",
            _viewer_part(views) if views else paragraph("There are no rigs to show; see the notes above."),
        ),
        ("curves", "Training", _curves_part(charts["curves"])),
        (
            "distributions",
            "Rewards of single rigs",
            paragraph(
                "Share of the held-out rigs, %. Filled: after training; grey or dashed: before, left out "
                "where more than four runs are shown."
            )
            + '<div id="histograms"></div>'
            if shown
            else paragraph("No evaluation has rows of single rigs."),
        ),
        (
            "diagnostics",
            "Diagnostics against rewards",
            paragraph(
                "One dot per valid held-out rig. A reward that is bought with a diagnostic shows as a slope."
            )
            + '<div id="scatters"></div>'
            if shown
            else paragraph("No evaluation has rows of single rigs."),
        ),
        ("failures", "Failures", failures_table(runs)),
        ("rollouts", "Kept rollouts", rollouts_tables(runs, folder)),
        ("recipe", "Recipe", recipe_tables(runs)),
    ]
    return _page(title, sections, views, names, charts)


def viewer_page(title: str, view: RigView) -> str:
    """The page of one rig: the viewer alone."""
    sections = [("rigs", "", _viewer_part([view]))]
    return _page(title, sections, [view], [], None)


def _viewer_part(views: Sequence[RigView]) -> str:
    reduced = any(len(view.mesh.faces) > MOST_FACES for view in views)
    extra = f" Meshes of more than {MOST_FACES:,} faces are shown with fewer." if reduced else ""
    return f'{paragraph(_VIEWER_HELP + extra)}<div id="viewer"></div>'


def _curves_part(groups: Sequence[Any]) -> str:
    if not groups:
        return paragraph("No step has been logged yet.")
    about = paragraph(
        "Lines are running means by training step. Bands show the standard deviation over a step's rollouts "
        "for rewards, shortest to longest for lengths, and neighbouring steps for the rest; they are left "
        "out where more than four runs are shown. Circles are evaluations on held-out meshes, ± standard "
        "error."
    )
    return f'{about}<div id="curve-charts"></div>'


def _page(
    title: str,
    sections: Sequence[tuple[str, str, str]],
    views: Sequence[RigView],
    runs: Sequence[str],
    charts: dict[str, Any] | None,
) -> str:
    filled = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{key}">{escaped(name)}</a>' for key, name, _ in filled if name)
    body = "".join(
        f'<section id="{key}">{f"<h2>{escaped(name)}</h2>" if name else ""}{content}</section>'
        for key, name, content in filled
    )
    data: dict[str, Any] = {}
    scripts = [asset("page.js")]
    blocks = []
    if charts is not None:
        data["charts"] = charts
        scripts.insert(0, asset("charts.js"))
    if views:
        data["viewer"], geometry = viewer_data(views, runs)
        scripts[:0] = [asset("arithmetic.js"), asset("viewer.js")]
        library = compressed(asset("three.min.js").encode())
        blocks = [
            f"<!-- three.js\n{asset('three.LICENSE')}-->",
            f'<script type="text/plain" id="library">{library}</script>',
            f'<script type="text/plain" id="geometry">{geometry}</script>',
        ]
    text = json.dumps(_finite(data), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    inline = text.replace("<", "\\u003c")  # so that no name in it ends the script
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{escaped(title)}</title>\n<style>\n{asset('page.css')}</style>\n</head>\n<body>\n<main>",
            f"<header><h1>{escaped(title)}</h1></header>",
            f"<nav>{links}</nav>" if links else "",
            body,
            "<footer>Made by tokenrig-rl. The 3D viewer uses three.js (MIT licence).</footer>",
            "</main>",
            f'<script type="application/json" id="data">{inline}</script>',
            *blocks,
            *(f"<script>\n{script}</script>" for script in scripts),
            "</body>\n</html>\n",
        ]
    )


def asset(name: str) -> str:
    """The text of a file in `rl/report/assets/`."""
    return resources.files("rl.report").joinpath("assets", name).read_text(encoding="utf-8")


def _finite(value: Any) -> Any:
    """The data with null for numbers that JSON lacks."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {key: _finite(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(own) for own in value]
    return value
