"""The sweep changes one number at a time, times every part, and draws what it measured."""

import json
from pathlib import Path

import pytest

from rl.benchmarks import sweep
from rl.benchmarks.sizes import SIZES

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(("axis", "value"), [("group", 4), ("joints", 7), ("meshes", 3), ("points", 99)])
def test_one_number_changes(axis, value):
    before = SIZES["tiny"]
    after = sweep.changed(before, axis, value)
    names = [name for name in vars(before) if getattr(before, name) != getattr(after, name)]
    assert names == [axis]
    assert getattr(after, axis) in (value, (value, value))


def test_every_part_is_timed():
    seconds = sweep.time_step(SIZES["tiny"])
    assert set(seconds) == set(sweep.PARTS)
    assert all(value > 0 for value in seconds.values())


def test_no_rounds_are_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        sweep.main(["--rounds", "0"])
    assert stopped.value.code == 2
    assert "--rounds must be at least 1, not 0" in capsys.readouterr().err


def test_the_committed_measurements_are_drawn(tmp_path, capsys):
    svg = tmp_path / "plot.svg"
    measured = ROOT / "docs" / "step_time.json"
    assert sweep.main(["--draw-only", "--json", str(measured), "--svg", str(svg)]) == 0
    assert svg.read_text().startswith("<?xml")
    axes = json.loads(measured.read_text())["axes"]
    assert {axis: [row["value"] for row in rows] for axis, rows in axes.items()} == {
        axis: list(values) for axis, (_, values) in sweep.AXES.items()
    }
