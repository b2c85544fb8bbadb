"""Histograms and scatter plots of single rigs."""

import pytest

from rl.report.distributions import BINS, histograms, scatters
from rl.report.read_run import read_run
from tests.rl.report.pages import write_run


def test_before_and_after_share_their_bins(tmp_path):
    write_run(tmp_path / "a")
    run = read_run(tmp_path / "a", "a")
    charts = {chart["title"]: chart for chart in histograms([run])}
    assert list(charts) == ["total", "coverage", "containment", "sparsity", "smoothness"]
    coverage = charts["coverage"]
    # Before: 0, 0.05, 0.1, 0.15, 0.2, 0.25; after: 0.25 more, so 0 to 0.5 in 24 bins.
    assert coverage["edges"][0] == 0
    assert coverage["edges"][-1] == pytest.approx(0.5)
    before, after = coverage["series"]
    assert (before["stage"], after["stage"]) == ("before", "after")
    assert (before["rigs"], before["mean"]) == (6, pytest.approx(0.125))
    assert len(before["shares"]) == BINS
    assert before["shares"][0] == after["shares"][-1] == pytest.approx(1 / 6, abs=1e-4)
    assert sum(after["shares"][:12]) == 0
    assert sum(before["shares"]) == pytest.approx(1, abs=1e-3)


def test_scatter_plots_have_valid_rigs_only(tmp_path):
    write_run(tmp_path / "a")
    run = read_run(tmp_path / "a", "a")
    assert run.before is not None
    run.before.per_rig["fox"][0]["valid"] = 0.0
    found = scatters([run])
    before, after = found["series"]
    assert (len(before["values"]["total"]), len(after["values"]["total"])) == (5, 6)
    assert after["values"]["unused_bones"][0] == pytest.approx(0.125)
    assert "joints" in found["diagnostics"]


def test_many_dots_are_thinned_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr("rl.report.distributions.MOST_POINTS", 8)  # of 24
    for name in "ab":
        write_run(tmp_path / name)
    series = scatters([read_run(tmp_path / name, name) for name in "ab"])["series"]
    totals = [own["values"]["total"] for own in series]
    assert [len(own) for own in totals] == [2] * 4
    assert totals[0] == pytest.approx([0, 1.2])  # the first and the fourth of six


def test_without_evaluations_there_is_nothing_to_draw(tmp_path):
    write_run(tmp_path / "a", before=False, after=False)
    run = read_run(tmp_path / "a", "a")
    assert histograms([run]) == []
    assert scatters([run])["series"] == []
