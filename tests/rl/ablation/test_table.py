"""Tables of an ablation, worked by hand: mean changes, standard errors, and how they are written."""

import json
from dataclasses import replace

import pytest

from rl.ablation.table import Change, change_of, shown_columns, variant_result
from rl.ablation.table_files import AblationResults, markdown, write_tables
from rl.evaluation_results import Evaluation, summarise


def evaluation(**meshes: dict[str, float] | float) -> Evaluation:
    """An evaluation by mesh: its columns, or its total alone."""
    per_mesh = {
        name: {"coverage": row / 5, "total": row, "valid": 1.0, "joints": 20.0}
        if isinstance(row, float)
        else row
        for name, row in meshes.items()
    }
    columns = list(dict.fromkeys(column for row in per_mesh.values() for column in row))
    mean, error = summarise(per_mesh, columns)
    return Evaluation("p", 2, 7, per_mesh, mean, error, {})


BEFORE = evaluation(a=1.0, b=2.0)


def test_one_seed_has_an_error_over_meshes():
    # Changes 1 and 3: mean 2, squares 1 + 1, variance 2, error sqrt(2 / 2).
    found = change_of([(BEFORE, evaluation(a=2.0, b=5.0))])
    assert found["total"] == Change(2.0, 1.0, "meshes", 2)
    assert found["joints"] == Change(0.0, 0.0, "meshes", 2)


def test_several_seeds_have_an_error_over_seeds():
    """The spread between meshes, which is large, does not count: seeds are what varies."""
    pairs = [
        (BEFORE, evaluation(a=2.0, b=5.0)),  # mean change 2
        (BEFORE, evaluation(a=11.0, b=0.0)),  # 10 and -2: mean 4
        (BEFORE, evaluation(a=-8.0, b=20.0)),  # -9 and 18: mean 4.5
    ]
    # Mean 3.5; squares 2.25 + 0.25 + 1 = 3.5, variance 1.75, error sqrt(1.75 / 3).
    found = change_of(pairs)["total"]
    assert (found.mean, found.over, found.count) == (3.5, "seeds", 3)
    assert found.standard_error == pytest.approx((1.75 / 3) ** 0.5)


def test_a_column_that_one_seed_lacks_is_over_the_others():
    """No valid rig, so no distance: the other seed's, over its meshes."""
    before = evaluation(a={"total": 1.0, "unirig_j2j_valid": 0.1}, b={"total": 1.0, "unirig_j2j_valid": 0.3})
    with_one = evaluation(a={"total": 0.0}, b={"total": 0.0})
    with_both = evaluation(
        a={"total": 2.0, "unirig_j2j_valid": 0.2}, b={"total": 2.0, "unirig_j2j_valid": 0.2}
    )
    found = change_of([(before, with_one), (before, with_both)])
    assert found["total"].over == "seeds"
    # +0.1 and -0.1: squares 0.01 + 0.01, variance 0.02, error sqrt(0.02 / 2) = 0.1.
    distance = found["unirig_j2j_valid"]
    assert (distance.over, distance.count) == ("meshes", 2)
    assert (distance.mean, distance.standard_error) == (pytest.approx(0.0), pytest.approx(0.1))


def test_no_pairs_change_nothing():
    assert change_of([]) == {}


def test_a_variant_is_compared_with_the_base_of_the_same_seed():
    after = {1: evaluation(a=4.0, b=4.0), 2: evaluation(a=6.0, b=6.0), 3: evaluation(a=0.0, b=0.0)}
    base = {1: evaluation(a=3.0, b=3.0), 2: evaluation(a=3.0, b=1.0)}
    result = variant_result("v", ["train.beta=0"], dict.fromkeys(after, BEFORE), after, base)
    # 1 with the first seed; 3 and 5, so 4, with the second: mean 2.5, variance 4.5, error 1.5. No base for 3.
    assert result.from_base["total"] == Change(2.5, pytest.approx(1.5), "seeds", 2)
    # Changes 2.5, 4.5 and -1.5; means of 4, 6 and 0 after training.
    assert result.change["total"].mean == pytest.approx(5.5 / 3)
    assert result.after["total"] == pytest.approx(10 / 3)
    assert result.seeds == [1, 2, 3]


def results(**seeds: int) -> AblationResults:
    """Variants by name with so many seeds; the base gains 1 on each mesh, the others 2, 3, … ."""
    variants, base = [], {}
    for gain, (name, count) in enumerate(seeds.items(), start=1):
        after = {seed: evaluation(a=1.0 + gain, b=2.0 + gain + seed) for seed in range(count)}
        changes = [] if name == "base" else ["train.beta=0"]
        variants.append(variant_result(name, changes, dict.fromkeys(after, BEFORE), after, base))
        base = base or after
    return AblationResults(BEFORE, variants, {})


def cells(text: str, section: str, name: str) -> list[str]:
    """The first row of that name in a section of the page."""
    lines = text.partition(f"## {section}")[2].splitlines()
    line = next(line for line in lines if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_the_page_has_changes_and_differences_from_the_base():
    text = markdown(results(base=2, no_kl=2))
    # Before training, totals 1 and 2.
    assert cells(text, "Change by training", "before training") == ["", "1.500", "0.300"]
    # Seed 0: gains 1 and 1. Seed 1: 1 and 2, mean 1.5. Mean 1.25, variance 0.125, error 0.25.
    assert cells(text, "Change by training", "base") == ["2", "+1.250 ± 0.250", "+0.250 ± 0.050"]
    assert cells(text, "Change by training", "no_kl") == ["2", "+2.250 ± 0.250", "+0.450 ± 0.050"]
    assert cells(text, "Difference from the base", "no_kl") == ["2", "+1.000 ± 0.000", "+0.200 ± 0.000"]
    assert "± standard error over seeds." in text
    assert "**no_kl**: `train.beta=0`" in text
    assert "Runs without a result" not in text


def test_the_page_says_what_errors_are_over():
    assert "± standard error over meshes, since there is one seed." in markdown(results(base=1, no_kl=1))
    text = markdown(results(base=2, no_kl=1))
    assert "over seeds, and over meshes in rows of one seed (*)" in text
    assert cells(text, "Change by training", "no_kl")[0] == "1*"
    assert cells(text, "Change by training", "base")[0] == "2"


def test_the_page_without_the_base_has_no_differences():
    assert "Difference from the base" not in markdown(results(no_kl=1, cool=1))


def test_failed_runs_are_named_with_their_reason():
    failed = replace(results(base=1), missing={"no_kl seed 1": "train: the disk is full"})
    assert "## Runs without a result\n\n* no_kl seed 1: train: the disk is full\n" in markdown(failed)


def test_the_file_has_every_column(tmp_path):
    write_tables(results(base=2, no_kl=2), tmp_path)
    data = json.loads((tmp_path / "table.json").read_text())
    base, no_kl = data["variants"]
    assert base["change"]["total"] == {
        "mean": 1.25,
        "standard_error": pytest.approx(0.25),
        "over": "seeds",
        "count": 2,
    }
    assert base["from_base"] == {}
    assert no_kl["from_base"]["total"]["mean"] == 1.0
    assert no_kl["overrides"] == ["train.beta=0"]
    assert data["before"]["mean"]["total"] == 1.5
    assert set(no_kl["change"]) == {"coverage", "total", "valid", "joints"}
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["table.json", "table.md"]


def test_columns_of_the_tables():
    row = {"coverage": 1.0, "mine": 1.0, "total": 1.0, "valid": 1.0, "joints": 9.0, "skin_iou_valid": 0.5}
    assert shown_columns(evaluation(a={**row, "skin_l1_valid": 0.1, "exact_j2j_valid": 0.1})) == (
        ["total", "coverage", "mine"],
        ["valid", "joints", "skin_iou_valid"],
    )
