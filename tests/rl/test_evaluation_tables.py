"""Tables: the numbers in their units, readable in 112 columns."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from rl import ground_truth
from rl.evaluation_results import Evaluation, summarise
from rl.evaluation_tables import WIDTH, make_console, print_means, print_meshes

REWARDS = ("coverage", "containment", "sparsity", "smoothness", "total")
METRICS = {**dict.fromkeys(ground_truth.METRICS, 0.25), "unirig_j2j": 0.0312, "rignet_j2j": 3.12}


def evaluation(valid: float = 1.0, metrics: bool = True, shift: float = 0.0, **names: float) -> Evaluation:
    per_mesh = {}
    for name, value in names.items():
        row = dict.fromkeys(REWARDS, value) | {"valid": valid, "joints": 14.0}
        row |= {f"{reward}_valid": value for reward in REWARDS}
        if metrics:
            row |= {"true_joints": 21.0} | {key: number + shift for key, number in METRICS.items()}
            row |= {f"{key}_valid": number + shift for key, number in METRICS.items()}
        per_mesh[name] = row
    mean, error = summarise(per_mesh, list(next(iter(per_mesh.values()))))
    return Evaluation("p", 2, 7, per_mesh, mean, error, {})


def shown(table, evaluations: list[Evaluation], labels: str) -> list[str]:
    text = io.StringIO()
    table(evaluations, list(labels), Console(file=text, width=WIDTH))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert not [line for line in lines if "…" in line]  # nothing is squeezed
    return lines


def row(lines: list[str], label: str) -> list[str]:
    """The cells of the first row of that label."""
    line = next(line for line in lines if line.startswith((f"│ {label} ", f" {label} ")))
    return [cell.strip() for cell in line.strip("│").split("│")][1:] if "│" in line else line.split()[1:]


def test_means_of_one_policy():
    # Totals 1 and 2: mean 1.5, variance 0.5, error sqrt(0.5 / 2) = 0.5.
    lines = shown(print_means, [evaluation(a=1.0, b=2.0)], "A")
    assert lines[0] == "2 held-out meshes, 2 rigs each, sampled, seed 7; s.e. over meshes"
    assert row(lines, "total ↑") == ["1.500", "0.500"]
    assert row(lines, "valid ↑") == ["100.0 %", "0.0"]
    assert row(lines, "joints") == ["14.0", "0.0"]
    assert row(lines, "J2J unirig, % of box ↓") == ["3.12", "0.00"]
    assert row(lines, "J2J rignet, × 100 ↓") == ["3.120", "0.000"]  # in the unit of published tables
    assert row(lines, "skin L1 ↓") == ["0.250", "0.000"]
    assert row(lines, "skin L1 per entry ↓") == ["0.2500", "0.0000"]
    assert row(lines, "motion, squared ↓") == ["0.25000", "0.00000"]
    assert row(lines, "skin IoU ↑") == ["25.0 %", "0.0"]
    assert any("valid rigs, 2 ground truths" in line for line in lines)
    # Nothing failed: both means are the same, and there is one.
    assert not any("failed" in line for line in lines)


def test_exact_distances_are_in_the_files_only():
    lines = shown(print_means, [evaluation(a=1.0)], "A")
    assert "exact_j2j_valid" in evaluation(a=1.0).mean
    assert not any("exact" in line for line in lines)


def test_the_skin_convention_is_shown_unless_plain():
    lines = shown(print_means, [replace(evaluation(a=1.0), skin_convention="puppeteer")], "A")
    assert lines[0] == "1 held-out meshes, 2 rigs each, sampled, seed 7, skin as puppeteer; s.e. over meshes"
    limited = replace(evaluation(a=1.0), skin_convention="puppeteer", metric_vertices=256)
    assert "seed 7, skin as puppeteer at up to 256 vertices;" in shown(print_means, [limited], "A")[0]


def test_failures_bring_the_second_mean():
    lines = shown(print_means, [evaluation(valid=0.5, a=1.0)], "A")
    assert any("including failed rigs" in line for line in lines)
    assert len([line for line in lines if "J2J unirig" in line]) == 2


def test_rewards_alone_where_no_rig_is_known():
    lines = shown(print_means, [evaluation(metrics=False, a=1.0)], "A")
    assert not any("ground truth" in line or "J2J" in line for line in lines)
    assert row(lines, "coverage ↑") == ["1.000", "–"]


def test_a_single_mesh_has_no_standard_error():
    one = evaluation(a=1.0)
    assert row(shown(print_means, [one], "A"), "total ↑") == ["1.000", "–"]
    lines = shown(print_means, [one, evaluation(a=1.5)], "AB")
    assert row(lines, "total ↑") == ["1.000", "1.500", "+0.500 ± –", "–"]


def test_policies_side_by_side_with_their_differences():
    first = evaluation(a=1.0, b=101.0)
    others = [evaluation(a=2.0, b=104.0, shift=0.01), evaluation(a=1.0, b=101.0)]
    lines = shown(print_means, [first, *others], "ABC")
    # +1 and +3: 2 ± 1. C is A.
    assert row(lines, "total ↑") == ["51.000", "53.000", "+2.000 ± 1.000", "51.000", "+0.000 ± 0.000"]
    assert row(lines, "J2J unirig, % of box ↓")[:3] == ["3.12", "4.12", "+1.00 ± 0.00"]
    # Of two there is room for the difference in standard errors: 2 / 1.
    lines = shown(print_means, [first, others[0]], "AB")
    assert row(lines, "total ↑") == ["51.000", "53.000", "+2.000 ± 1.000", "+2.0"]
    assert row(lines, "joints") == ["14.0", "14.0", "+0.0 ± 0.0", "–"]


@pytest.mark.parametrize(("count", "tables"), [(1, 1), (2, 1), (3, 1), (4, 2), (6, 3)])
def test_many_policies_take_several_tables(count, tables):
    each = [evaluation(a=1000.0, b=2000.0) for _ in range(count)]
    lines = shown(print_means, each, "ABCDEF"[:count])
    assert len([line for line in lines if line.startswith("│ total")]) == tables
    assert all(row([line], "total ↑")[0] == "1500.000" for line in lines if line.startswith("│ total"))
    lines = shown(print_meshes, each, "ABCDEF"[:count])
    assert len([line for line in lines if line.startswith(" a ")]) == -(-count // 3)


def test_a_row_per_mesh():
    lines = shown(print_meshes, [evaluation(a=1.0, b=2.0)], "A")
    heading = "mesh cov cont spars smooth total joints true J2J % B2B % L1 IoU mot %"
    assert " ".join(lines[1].split()) == heading
    assert row(lines, "a") == [*["1.000"] * 5, "14.0", "21.0", "3.12", "25.00", "0.250", "25.0", "25.00"]
    # Validity is shown where some rig failed.
    lines = shown(print_meshes, [evaluation(valid=0.5, many_limbed_1000000005=10.0)], "A")
    assert "valid" in lines[1]
    assert row(lines, "many_limbed_1000000005")[5] == "50.0"


def test_what_a_mesh_lacks_is_a_dash():
    mixed = evaluation(a=1.0, b=2.0)
    del mixed.per_mesh["b"]["unirig_j2j_valid"]
    lines = shown(print_meshes, [mixed, mixed], "AB")
    assert row(lines, "b") == ["2.000", "2.000", "–", "–", "25.0", "25.0"]


def test_long_names_are_shortened():
    text = io.StringIO()
    name = "a_very_long_name_of_a_mesh_indeed"
    print_meshes([evaluation(**{name: 1.0})], ["A"], Console(file=text, width=WIDTH))
    assert "a_very_long_name_of_a…" in text.getvalue()


def test_where_there_is_no_terminal_the_tables_have_room(capsys):
    assert make_console().width == WIDTH
