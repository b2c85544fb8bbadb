"""The page's tables: results, differences between recipes, failures, kept rollouts."""

import json
import math
import re
from dataclasses import asdict, replace

from rl.best_policy import BestPolicy
from rl.evaluation_results import write_evaluation
from rl.report.page import run_page
from rl.report.read_run import read_run
from rl.report.tables import failures_table, recipe_tables, results_table, rollouts_tables, runs_table
from tests.rl.kept_rows import kept_row
from tests.rl.report.pages import evaluation, write_run


def rows(html: str) -> list[list[str]]:
    """The cells of all tables as text."""
    found = []
    for row in re.findall(r"<tr.*?</tr>", html):
        cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)
        found.append([re.sub(r"<[^>]+>", "", cell) for cell in cells])
    return found


def test_results_of_one_run(tmp_path):
    write_run(tmp_path / "a")
    html = results_table([read_run(tmp_path / "a", "a")])
    table = rows(html)
    assert table[0] == ["", "before", "after", "difference ± s.e."]
    assert ["coverage ↑", "0.125", "0.375", "+0.250 ± 0.000"] in table
    assert ["total ↑", "1.000", "3.000", "+2.000 ± 0.000"] in table
    assert "3 held-out meshes, 2 rigs each" in html


def test_results_of_runs_that_lack_some(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", after=False)
    write_run(tmp_path / "c", before=False, after=False)
    runs = [read_run(tmp_path / name, name) for name in "abc"]
    table = rows(results_table(runs))
    assert table[0][:2] == ["", "coverage ↑"]
    assert [row[:2] for row in table[1:]] == [  # c has no row
        ["a", "0.125 → 0.375+0.250 ± 0.000"],
        ["b", "0.125 → ––"],
    ]
    assert "No run has been evaluated yet." in results_table(runs[2:])
    states = rows(runs_table(runs))
    assert [row[1] for row in states[1:]] == [
        "finished: 4 of 4 steps",
        *["not finished: 4 of 4 steps"] * 2,
    ]


def test_what_was_evaluated_is_said_once_if_it_was_the_same(tmp_path):
    for name in "ab":
        write_run(tmp_path / name)
    runs = [read_run(tmp_path / name, name) for name in "ab"]
    said = "3 held-out meshes, 2 rigs each, sampled, seed 7; s.e. over meshes."
    assert results_table(runs).count(said) == 1
    write_evaluation(replace(evaluation(0.0), seed=8), tmp_path / "b" / "before.json")
    html = results_table([runs[0], read_run(tmp_path / "b", "b")])
    assert f"<p>a: {said}</p>" in html
    assert "<p>b: 3 held-out meshes, 2 rigs each, sampled, seed 8; " in html


def test_metrics_of_failed_rigs_are_folded(tmp_path):
    write_run(tmp_path / "a")
    run = read_run(tmp_path / "a", "a")
    for found in (run.before, run.after):
        found.mean.update({"unirig_j2j": 0.5, "unirig_j2j_valid": 0.25, "valid": 0.5})
    open_part, folded_part = results_table([run]).split("<details>")
    assert "Valid rigs, compared with the ground truth" in open_part
    assert ["J2J unirig, % of box ↓", "25.00", "25.00", "–"] in rows(open_part)
    assert "The same including failed rigs" in folded_part
    assert ["J2J unirig, % of box ↓", "50.00", "50.00", "–"] in rows(folded_part)


def test_differences_of_recipes(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", {"rewards.coverage.weight": 0.0})
    runs = [read_run(tmp_path / name, name) for name in "ab"]
    html = recipe_tables(runs)
    table = rows(html)
    assert table[:3] == [
        ["key", "a", "b"],
        ["policy.path", str(tmp_path / "a" / "gone"), str(tmp_path / "b" / "gone")],
        ["rewards.coverage.weight", "5.0", "0.0"],
    ]
    assert html.count('<tr class="marked">') == 2
    assert "2 keys differ between the runs" in html
    alone = rows(recipe_tables(runs[:1]))
    assert ["train.max_steps", "4", "1400"] in alone or ["train.max_steps", "4", "800"] in alone


def test_failures_are_counted(tmp_path):
    folder = tmp_path / "a"
    write_run(folder)
    (folder / "bad_steps").mkdir()
    (folder / "bad_steps" / "step-3.json").write_text(json.dumps({"step": 3, "causes": ["loss"], "rows": []}))
    mesh = {"name": "fox", "key": "k", "stage": "score", "reasons": ["it hung"], "times": ["t"]}
    (folder / "quarantine.json").write_text(json.dumps({"meshes": [mesh]}))
    html = failures_table([read_run(folder, "a")])
    table = rows(html)
    assert ["rollouts in training that are no valid rig", "25.0 %"] in table
    assert ["rollouts without a score", "4"] in table
    assert ["invalid held-out rigs before", "0 of 6"] in table
    assert ["meshes quarantined", "1"] in table
    assert ["reward workers replaced", "–"] in table  # an inline run has none
    assert "a: step 3 was skipped (loss not finite)." in html
    assert "&#x27;fox&#x27; is quarantined: it stopped 1 workers (it hung)." in html


def test_kept_rollouts_are_listed(tmp_path):
    write_run(tmp_path / "a")
    place = tmp_path / "a" / "rollouts"
    place.mkdir()
    kept = [
        kept_row(3, mesh="<fox>", total=4.25, rewards={"a": 0.51234}, glb="best it.glb"),
        kept_row(4, "failure", rewards=None, total=None, joints=None, failure="no <eos>"),
        kept_row(5, "failure", rewards={"a": math.nan}, total=math.nan),
    ]
    (place / "rollouts.jsonl").write_text("".join(row.line() for row in kept))
    html = rollouts_tables([read_run(tmp_path / "a", "a")], tmp_path / "pages")
    assert rows(html) == [
        ["row", "step", "why", "mesh", "total", "a", "joints", "failure", "rig"],
        ["rollouts.jsonl:1", "3", "best", "&lt;fox&gt;", "4.25", "0.5123", "2", "–", "best it.glb"],
        ["rollouts.jsonl:2", "4", "failure", "fox", "–", "–", "–", "no &lt;eos&gt;", "–"],
        ["rollouts.jsonl:3", "5", "failure", "fox", "nan", "nan", "2", "broken at 5", "–"],
    ]
    assert '<a href="../a/rollouts/best%20it.glb">best it.glb</a>' in html


def test_the_best_policy_is_named(tmp_path):
    write_run(tmp_path / "a")
    (tmp_path / "a" / "policy_best").mkdir()
    best = BestPolicy(2, "valid", 0.75, True, {}, {})
    (tmp_path / "a" / "policy_best" / "best.json").write_text(json.dumps(asdict(best)))
    html = runs_table([read_run(tmp_path / "a", "a")])
    assert "finished: 4 of 4 steps; best policy by valid on held-out meshes: step 2 (75.0 %)" in html


def test_a_page_says_what_is_missing(tmp_path):
    write_run(tmp_path / "a", steps=0, before=False, after=False)
    page = run_page([read_run(tmp_path / "a", "a")], [], tmp_path)
    for sentence in (
        "No step has been logged yet.",
        "No run has been evaluated yet.",
        "There are no rigs to show; see the notes above.",
        "No evaluation has rows of single rigs.",
    ):
        assert sentence in page
    assert 'id="library"' not in page  # no viewer, no three.js
    assert "://" not in page.replace("http://www.w3.org/2000/svg", "")  # a name, which nothing fetches
