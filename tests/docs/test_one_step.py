"""docs/one_step.md: its program runs, and its numbers agree with each other."""

import re
import statistics

import pytest

from tests.docs.pages import ROOT, code_blocks, load_program, table_rows

TEXT = (ROOT / "docs" / "one_step.md").read_text("utf-8")
WEIGHTS = (5, 1, 1, 1)


def number(cell):
    return float(cell.replace("−", "-"))


def test_program_prints_the_step(capsys):
    """What does not depend on sampling is that of the page; the rest has its form."""
    assert load_program("one_step").main() == 0
    printed = capsys.readouterr().out
    prompt, *_, logged = code_blocks(TEXT, "text")
    assert f"\n{prompt}" in f"\n{printed}"  # other libraries may print first
    for label in (
        "rollout 0",
        "ids",
        "from",
        "joint 0",
        "joint 3",
        *(line.split()[0] for line in logged.splitlines()),
    ):
        assert re.search(rf"^{re.escape(label)} ", printed, re.MULTILINE), label
    assert len(re.findall(r"^ +[0-3]  ", printed, re.MULTILINE)) == 4


def test_totals_and_advantages_follow_from_the_rewards():
    rows = [[number(cell) for cell in row] for row in table_rows(TEXT, "rollout")]
    totals = [row[7] for row in rows]
    for row in rows:
        assert row[7] == pytest.approx(sum(w * r for w, r in zip(WEIGHTS, row[3:7], strict=True)), abs=4e-4)
    mean, deviation = statistics.mean(totals), statistics.stdev(totals)
    for row in rows:
        assert row[8] == pytest.approx((row[7] - mean) / (deviation + 1e-4), abs=1e-3)
    assert f"mean, {mean:.3f}," in TEXT
    assert f"standard deviation plus 1e-4, {deviation:.3f}." in TEXT


def test_better_rollouts_became_more_likely():
    advantages = [number(row[8]) for row in table_rows(TEXT, "rollout")]
    log_probs = TEXT[TEXT.index("## 6.") :]
    for row, advantage in zip(table_rows(log_probs, "rollout"), advantages, strict=True):
        _, before, after, change = map(number, row)
        assert change == pytest.approx(after - before, abs=0.011)
        assert (change > 0) == (advantage > 0)


def test_loss_is_zero_because_advantages_sum_to_zero():
    assert sum(number(row[8]) for row in table_rows(TEXT, "rollout")) == pytest.approx(0, abs=2e-3)
    values = dict(line.split() for line in code_blocks(TEXT, "text")[-1].splitlines())
    assert abs(float(values["loss"])) < 1e-5 < float(values["grad_norm"])
    assert float(values["kl"]) == 0
