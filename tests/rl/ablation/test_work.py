"""Running a matrix, with stand-ins for its children: order, resume, failures, signals, refusals."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.rl.ablation import stand_in
from tests.rl.ablation.conftest import ROOT

UNTRAINED = "out/untrained"
BASE, NO_COVERAGE = "base/seed-1", "no_coverage/seed-1"


def evaluation(run: str) -> str:
    return f"{run.rpartition('/')[2]}/evaluation"


def page(matrix) -> str:
    return (matrix.output / "table.md").read_text()


def test_a_matrix_from_start_to_finish(matrix, capsys):
    assert matrix.run() == 0
    assert matrix.calls() == [UNTRAINED, BASE, evaluation(BASE), NO_COVERAGE, evaluation(NO_COVERAGE)]
    shown = capsys.readouterr()
    assert "ablation 1/2 base seed 1: training" in shown.err
    assert "ablation 2/2 no_coverage seed 1: total +10.000 ± 0.000" in shown.err
    assert str(matrix.output / "table.md") in shown.out
    # Weights 11 and 10, from 0; the second is 1 below the first.
    assert "| base | 1 | +11.000 ± 0.000 |" in page(matrix)
    assert page(matrix).count("| no_coverage | 1 | +10.000 ± 0.000 |") == 1
    assert page(matrix).count("| no_coverage | 1 | -1.000 ± 0.000 |") == 1


def test_a_run_gets_the_evaluations_before_and_after_it(matrix):
    assert matrix.run() == 0
    for run, total in ((BASE, 11), (NO_COVERAGE, 10)):
        assert json.loads((matrix.output / run / "before.json").read_text())["mean"]["total"] == 0
        assert matrix.total(run) == total
        assert not yaml.safe_load((matrix.output / run / "recipe.yaml").read_text())["eval"][
            "before_and_after"
        ]


def test_finished_runs_are_not_run_again(matrix, capsys):
    assert matrix.run() == 0
    matrix.calls()
    (matrix.output / "table.md").unlink()
    assert matrix.run() == 0
    assert matrix.calls() == []
    assert "ablation 2/2 no_coverage seed 1: finished earlier" in capsys.readouterr().err
    assert "| no_coverage | 1 |" in page(matrix)


def test_a_new_seed_and_variant_join_a_finished_matrix(matrix):
    assert matrix.run() == 0
    matrix.calls()
    matrix.write(
        variants={"no_coverage": ["rewards.coverage.weight=0"], "no_kl": ["train.beta=0"]}, seeds=[1, 2]
    )
    assert matrix.run() == 0
    started = [call for call in matrix.calls() if "evaluation" not in call]
    assert started == ["no_kl/seed-1", "base/seed-2", "no_coverage/seed-2", "no_kl/seed-2"]
    # 11 and 21: mean 16, squares 25 + 25, variance 50, error sqrt(50 / 2).
    assert "| base | 2 | +16.000 ± 5.000 |" in page(matrix)


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        ("killed", "training: it was ended by SIGKILL; the machine may have run out of memory"),
        ("refused", "training: 'data.meshes': no file matches"),
        ("bug", "training: AssertionError: a bug"),
        ("usage", "training: unrecognized arguments: --bogus"),
        ("early", "training: it ended after 1 of 2 steps (train_guard.stop_after_minutes)"),
    ],
)
def test_a_failed_run_does_not_end_the_others_and_is_tried_again(matrix, capsys, ending, reason):
    matrix.endings(base__seed_1=ending)
    assert matrix.run() == 1
    assert matrix.calls() == [UNTRAINED, BASE, NO_COVERAGE, evaluation(NO_COVERAGE)]
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("failed: 1 of 2 runs (base seed 1); ")
    assert f"## Runs without a result\n\n* base seed 1: {reason}\n" in page(matrix)
    assert "| no_coverage | 1 |" in page(matrix)

    matrix.endings()
    assert matrix.run() == 0
    assert matrix.calls() == [BASE, evaluation(BASE)]
    assert "Runs without a result" not in page(matrix)


def test_the_table_names_a_failed_run_while_others_go_on(matrix):
    matrix.endings(base__seed_1="killed", no_coverage__seed_1="stopped")
    assert matrix.run() == 128 + signal.SIGTERM
    noticed = (matrix.folder / "page_while_training.md").read_text()
    assert "* base seed 1: training: it was ended by SIGKILL" in noticed
    assert "* no_coverage seed 1: not finished" in noticed


def test_a_failed_evaluation_is_repeated_without_training(matrix):
    matrix.endings(base__seed_1__evaluation="refused")
    assert matrix.run() == 1
    assert "* base seed 1: evaluation: 'policy.path': no such directory" in page(matrix)
    matrix.calls()
    matrix.endings()
    assert matrix.run() == 0
    assert matrix.calls() == [evaluation(BASE)]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("recipe.yaml", "{}", "holds a run; choose another directory for the ablation"),
        ("table.json", '{"trials": []}', "has a table.json that no ablation wrote; choose another"),
        ("table.md", "# Mine", "has a table.md that no ablation wrote; choose another"),
    ],
)
def test_a_directory_of_something_else_is_refused(matrix, capsys, file, text, message):
    matrix.output.mkdir()
    (matrix.output / file).write_text(text)
    assert matrix.run() == 2
    assert capsys.readouterr().err == f"error: 'output_dir' {matrix.output} {message}\n"
    assert [path.name for path in matrix.output.iterdir()] == [file]


def test_damaged_files_are_named(matrix, capsys):
    assert matrix.run() == 0
    for file, advice in (
        ("ablation.json", "delete it, and the run goes on from its last checkpoint"),
        ("evaluation/ablation.json", "delete it, and the same command evaluates again"),
        ("evaluation/evaluation.json", "delete it, and the same command evaluates again"),
    ):
        path = matrix.output / BASE / file
        whole = path.read_text()
        path.write_text(whole[:9])
        assert matrix.run() == 2
        assert capsys.readouterr().err.splitlines()[-1] == f"error: {path} is damaged; {advice}"
        path.write_text(whole)


def test_no_run_begins_if_the_policy_cannot_be_evaluated(matrix, policy_path, capsys):
    matrix.endings(out__untrained="refused")
    assert matrix.run() == 2
    assert matrix.calls() == [UNTRAINED]
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"error: {policy_path} cannot be evaluated: 'policy.path': no such directory"
    assert not (matrix.output / "table.md").exists()


def test_a_signal_stops_after_the_step_and_the_command_resumes(matrix, capsys):
    matrix.endings(no_coverage__seed_1="stopped")
    assert matrix.run() == 128 + signal.SIGTERM
    assert (matrix.folder / "saved").read_text() == "after SIGTERM"
    assert matrix.calls()[-1] == NO_COVERAGE
    assert "run the same command again to resume" in capsys.readouterr().err
    assert "| base | 1 |" in page(matrix)
    assert "* no_coverage seed 1: not finished" in page(matrix)

    matrix.endings()
    assert matrix.run() == 0
    assert matrix.calls() == [NO_COVERAGE, evaluation(NO_COVERAGE)]


def test_a_signal_ends_two_runs_at_once(matrix):
    matrix.write(jobs=2)
    matrix.endings(base__seed_1="stopped", no_coverage__seed_1="stopped")
    assert matrix.run() == 128 + signal.SIGTERM
    matrix.endings()
    matrix.calls()
    assert matrix.run() == 0
    assert {BASE, NO_COVERAGE} < set(matrix.calls())


def test_runs_end_if_the_command_is_killed(matrix):
    """A killed command leaves no training behind: the run saves its step and ends."""
    matrix.endings(base__seed_1="orphaned")
    saved = matrix.folder / "saved"
    os.mkfifo(saved)
    program = (
        "import sys; from rl import ablate; from rl.ablation import work; "
        f"work.TRAIN = work.EVALUATE = {stand_in.__name__!r}; sys.exit(ablate.main(sys.argv[1:]))"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(matrix.recipe)], cwd=ROOT) as command:
        assert saved.read_text() == "after SIGTERM"  # waits for the run
        assert command.wait() == -signal.SIGKILL
    saved.unlink()
    matrix.endings()
    matrix.calls()
    assert matrix.run() == 0
    assert matrix.calls() == [BASE, evaluation(BASE), NO_COVERAGE, evaluation(NO_COVERAGE)]


def test_two_at_once_share_the_cores(matrix, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("rl.child_runs.work.usable_cores", lambda: 8)
    matrix.write(jobs=2)
    seen = []
    started = subprocess.Popen

    def popen(command, **options):
        seen.append(options["env"].get("OMP_NUM_THREADS"))
        return started(command, **options)

    monkeypatch.setattr("rl.child_runs.child.subprocess.Popen", popen)
    assert matrix.run() == 0
    assert set(seen) == {"4"}
    calls = matrix.calls()
    assert calls[0] == UNTRAINED
    assert sorted(calls[1:3]) == [BASE, NO_COVERAGE]


def test_runs_of_several_processes_are_launched_with_their_options(matrix):
    matrix.write(launch=["--cpu", "--num_processes", "2"])
    assert matrix.run() == 0
    log = (matrix.output / BASE / "log.txt").read_text().splitlines()
    assert f"--cpu --num_processes 2 {matrix.output / BASE / 'recipe.yaml'}" in log[0]
    assert "--cpu" not in next(line for line in log[1:] if line.startswith("$ "))  # the evaluation


# ------------------------------------------------------------------ changed recipes


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"variants": {"no_coverage": ["rewards.coverage.weight=1"]}}, "rewards.coverage.weight"),
        ({"overrides": ["train.learning_rate=0.5"]}, "train.learning_rate"),
        ({"overrides": ["train.max_steps=1"]}, "train.max_steps"),
    ],
)
def test_a_changed_variant_is_refused(matrix, capsys, values, key):
    assert matrix.run() == 0
    matrix.calls()
    before = page(matrix)
    matrix.write(**values)
    assert matrix.run() == 2
    name = "no_coverage" if "variants" in values else "base"
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: 'variants.{name}': {matrix.output / name / 'seed-1'} holds a run with a different '{key}'; "
        "delete the folder, or choose another name or 'output_dir'"
    )
    assert matrix.calls() == []
    assert page(matrix) == before


def test_other_weights_to_start_from_are_refused(matrix, policy_path, tmp_path, capsys):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "config.json").write_text((policy_path / "config.json").read_text())
    matrix.write(overrides=[f"policy.path={mine}"])
    assert matrix.run() == 0
    (mine / "config.json").write_text(json.dumps({"weight": 3}))
    assert matrix.run() == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"seed-1 was trained from other weights than {mine} now has" in error


def test_other_settings_of_the_evaluation_evaluate_again(matrix):
    assert matrix.run() == 0
    matrix.calls()
    matrix.write(overrides=["eval.samples=3"])
    assert matrix.run() == 0
    assert matrix.calls() == [UNTRAINED, evaluation(BASE), evaluation(NO_COVERAGE)]


def test_more_steps_continue_the_runs(matrix):
    assert matrix.run() == 0
    matrix.calls()
    matrix.write(overrides=["train.max_steps=4"])
    matrix.endings(base__seed_1="killed")
    assert matrix.run() == 1
    assert matrix.calls() == [BASE, NO_COVERAGE]  # the stand-in's policy is the same, and evaluated
    assert "* base seed 1: training" in page(matrix)
    assert not (matrix.output / BASE / "after.json").exists()


def test_a_second_command_in_the_same_directory_is_refused(matrix, capsys):
    from data.run_lock import run_lock

    matrix.output.mkdir()
    with run_lock(matrix.output):
        assert matrix.run() == 2
    assert f"'output_dir' {matrix.output} is in use by process {os.getpid()}" in capsys.readouterr().err


@pytest.mark.parametrize(("report", "seeds"), [("one", [1]), ("all", [1, 2])])
def test_the_page_has_the_finished_runs(matrix, report, seeds):
    matrix.write(report=report, seeds=[1, 2])
    matrix.endings(base__seed_1="killed")
    assert matrix.run() == 1
    runs = json.loads((matrix.output / "report.html").read_text())
    finished = {"base": [2], "no_coverage": seeds}
    assert runs == [
        str(matrix.output / name / f"seed-{seed}") for name in finished for seed in finished[name]
    ]


def test_the_log_of_a_run_has_its_commands(matrix):
    assert matrix.run() == 0
    log = (matrix.output / BASE / "log.txt").read_text().splitlines()
    recipes = [matrix.output / BASE / "recipe.yaml", matrix.output / BASE / "evaluation" / "recipe.yaml"]
    assert [Path(line.split()[-1]) for line in log if line.startswith("$ ")] == recipes
