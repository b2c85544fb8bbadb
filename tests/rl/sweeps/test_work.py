"""Running a sweep, with stand-ins for its trainings: table, resume, failures, signals, refusals."""

import json
import os
import signal
from pathlib import Path

import pytest
import yaml

from data.typed_recipe import write_recipe
from rl import sweep
from rl.sweeps import trials
from rl.sweeps.sweep_file import load_recipe
from tests.rl import tiny
from tests.rl.sweeps import stand_in

ROOT = Path(__file__).parents[3]
BETAS = (0.1, 0.25, 0.5)
EXPAND = trials.expand


class Sweeping:
    """A grid of three values of `train.beta` in `folder`, and what its children were asked for."""

    def __init__(self, folder: Path, policy: Path) -> None:
        self.folder, self.output, self.file = folder, folder / "out", folder / "beta.yaml"
        tiny.write_recipe_file(folder / "base.yaml", policy, folder / "own", {"eval.every": 1})
        self.write()
        self.endings()

    def write(self, **changes: object) -> None:
        whole = {
            "program": "rl/train_grpo.py",
            "method": "grid",
            "metric": {"name": "eval/unirig_j2j", "goal": "minimize"},
            "parameters": {"train.beta": {"values": list(BETAS)}},
            "command": [
                *("${env}", "${interpreter}", "${program}", str(self.folder / "base.yaml")),
                *(f"output_dir={self.output}/$WANDB_RUN_ID", "train.report_to=wandb", "${args_no_hyphens}"),
            ],
        }
        self.file.write_text(yaml.safe_dump({**whole, **changes}, sort_keys=False))

    def endings(self, **how: str) -> None:
        """How the next trainings end: `endings(b05="killed")` for beta 0.5."""
        named = {f"0.{name[2:]}": end for name, end in how.items()}
        (self.folder / "endings.json").write_text(json.dumps(named))

    def calls(self) -> list[list[str]]:
        """Of each child: beta, its folder's name, WANDB_RUN_ID, `train.report_to`. Forgets them."""
        path = self.folder / "calls.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [line.split() for line in lines]

    def betas(self) -> list[float]:
        return [float(call[0]) for call in self.calls()]

    def run(self, *overrides: str) -> int:
        return sweep.main([str(self.file), *overrides])

    def trial(self, beta: float, *overrides: str) -> trials.Trial:
        return trials.make_trial(load_recipe(str(self.file), overrides), {("train.beta",): beta})

    @property
    def page(self) -> str:
        return (self.output / "table.md").read_text()


@pytest.fixture
def sweeping(policy_path, tmp_path, monkeypatch, stop_signal_handlers) -> Sweeping:
    monkeypatch.setattr(trials, "expand", lambda *given: [stand_in.__name__, *EXPAND(*given)[1:]])
    monkeypatch.setattr("rl.child_runs.work.POLL_SECONDS", 0.01)
    monkeypatch.setenv(stand_in.ENDINGS, str(tmp_path / "endings.json"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))))
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_ID"):
        monkeypatch.delenv(name, raising=False)
    return Sweeping(tmp_path, policy_path)


def test_a_sweep_from_start_to_finish(sweeping, capsys):
    assert sweeping.run() == 0
    calls = sweeping.calls()
    assert [float(call[0]) for call in calls] == list(BETAS)
    ids = [call[1] for call in calls]
    assert ids == [call[2] for call in calls] == [sweeping.trial(beta).id for beta in BETAS]
    assert {call[3] for call in calls} == {"none"}
    shown = capsys.readouterr()
    assert f"sweep 3/3 {ids[2]}: training train.beta=0.5, log in {sweeping.output / ids[2]}" in shown.err
    assert f"sweep 3/3 {ids[2]}: eval/unirig_j2j 20.00 ± 1.00" in shown.err
    best = sweeping.output / ids[1] / "policy"
    assert f"best: train.beta=0.25, policy in {best}\ntable: {sweeping.output}/table.md\n" in shown.out
    # Distances 0.2, 0.05 and 0.2 of the box, in per cent; the first of equals comes first.
    assert sweeping.page.startswith(
        "# Sweep beta\n\n3 trials (grid), by `eval/unirig_j2j` on held-out meshes"
    )
    assert sweeping.page.endswith(
        "|  | trial | J2J unirig, % of box ↓ | train.beta |\n| --- | --- | ---: | ---: |\n"
        f"| 1 | {ids[1]} | 5.00 ± 1.00 | 0.25 |\n"
        f"| 2 | {ids[0]} | 20.00 ± 1.00 | 0.1 |\n"
        f"| 3 | {ids[2]} | 20.00 ± 1.00 | 0.5 |\n"
    )
    data = json.loads((sweeping.output / "table.json").read_text())
    assert data["trials"][0] == {
        "id": ids[1],
        "parameters": {"train.beta": 0.25},
        "output_dir": str(sweeping.output / ids[1]),
        "value": pytest.approx(0.05),
        "standard_error": 0.01,
    }
    assert data["missing"] == []


def test_finished_trials_are_not_run_again_and_new_ones_join(sweeping, capsys):
    assert sweeping.run("run_cap=2") == 0
    assert sweeping.betas() == [0.1, 0.25]
    assert sweeping.run() == 0
    assert sweeping.betas() == [0.5]
    sweeping.write(parameters={"train.beta": {"values": [0.4, 0.1]}})
    capsys.readouterr()
    assert sweeping.run() == 0
    assert sweeping.betas() == [0.4]
    assert "finished earlier, eval/unirig_j2j 20.00 ± 1.00" in capsys.readouterr().err
    assert sweeping.page.index("| 0.4 |") < sweeping.page.index("| 0.1 |")


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        ("killed", "it was ended by SIGKILL; the machine may have run out of memory"),
        ("refused", "'data.meshes': no file matches"),
        ("unmeasured", "it left no value of eval/unirig_j2j"),
    ],
)
def test_a_failed_trial_does_not_end_the_others_and_is_tried_again(sweeping, capsys, ending, reason):
    sweeping.endings(b025=ending)
    assert sweeping.run() == 1
    assert sweeping.betas() == list(BETAS)
    name = sweeping.trial(0.25).id
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"failed: 1 of 3 trials ({name}); {sweeping.output / 'table.md'} has the reasons, and the same "
        "command tries them again"
    )
    end = f"## Trials without a result\n\n* {name} (train.beta=0.25): training train.beta=0.25: {reason}\n"
    assert sweeping.page.endswith(end)
    (missing,) = json.loads((sweeping.output / "table.json").read_text())["missing"]
    assert (missing["id"], missing["parameters"]) == (name, {"train.beta": 0.25})
    sweeping.endings()
    assert sweeping.run() == 0
    assert sweeping.betas() == [0.25]
    assert "without a result" not in sweeping.page


def test_a_signal_stops_after_the_step_and_the_command_resumes(sweeping):
    sweeping.endings(b025="stopped")
    assert sweeping.run() == 128 + signal.SIGTERM
    assert sweeping.betas() == [0.1, 0.25]
    assert "(train.beta=0.25): not finished\n" in sweeping.page
    sweeping.endings()
    assert sweeping.run() == 0
    assert sweeping.betas() == [0.25, 0.5]


def test_no_trial_begins_after_one_that_reaches_the_target(sweeping):
    metric = {"name": "eval/unirig_j2j", "goal": "minimize", "target": 0.06}
    sweeping.write(metric=metric)
    assert sweeping.run() == 0
    assert sweeping.betas() == [0.1, 0.25]
    assert "(train.beta=0.5): not finished" in sweeping.page


def test_two_at_once(sweeping):
    assert sweeping.run("jobs=2") == 0
    assert sorted(sweeping.betas()) == list(BETAS)


def test_more_steps_continue_the_trials(sweeping):
    assert sweeping.run() == 0
    sweeping.calls()
    sweeping.endings(b05="killed")
    assert sweeping.run("train.max_steps=4") == 1
    assert sweeping.betas() == list(BETAS)
    assert "(train.beta=0.5): training train.beta=0.5: it was ended" in sweeping.page


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["train.learning_rate=0.5"], "train.learning_rate"),
        (["eval.every_samples=3"], "eval.every_samples"),
        (["train.max_steps=1"], "train.max_steps"),
    ],
)
def test_a_directory_with_another_run_is_refused(sweeping, capsys, overrides, key):
    assert sweeping.run("run_cap=1") == 0
    trial = sweeping.trial(0.1)
    write_recipe(trial.recipe, trial.folder / "recipe.yaml")  # as a training does
    sweeping.calls()
    assert sweeping.run("run_cap=1") == 0
    assert sweeping.run(*overrides) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: {trial.folder} holds a run with a different '{key}'; delete the folder, or choose another "
        "'output_dir' in 'command'"
    )
    assert sweeping.calls() == []


def test_other_weights_to_start_from_are_refused(sweeping, policy_path, tmp_path, capsys):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "config.json").write_text((policy_path / "config.json").read_text())
    assert sweeping.run(f"policy.path={mine}", "run_cap=1") == 0
    (mine / "config.json").write_text("{}")
    assert sweeping.run(f"policy.path={mine}", "run_cap=1") == 2
    assert f"was trained from other weights than {mine} now has" in capsys.readouterr().err


def test_a_bayesian_sweep_resumes_with_what_it_proposed(sweeping, capsys):
    pytest.importorskip("sweeps")
    bayes = {"method": "bayes", "parameters": {"train.beta": {"min": 0.0, "max": 1.0}}}
    sweeping.write(**bayes, run_cap=3)
    assert sweeping.run() == 0
    first = sweeping.betas()
    assert len(set(first)) == 3
    sweeping.write(**bayes, run_cap=4)
    assert sweeping.run() == 0
    (fourth,) = sweeping.betas()
    assert fourth not in first
    sweeping.write(method="bayes", parameters={"train.beta": {"min": 0.0, "max": 2.0}}, run_cap=4)
    assert sweeping.run() == 2
    proposals = sweeping.output / "proposals.json"
    assert f"error: {proposals} is of a sweep with other 'parameters'" in capsys.readouterr().err
    # In one go it proposes the same.
    sweeping.write(**bayes, run_cap=4)
    for path in sorted(sweeping.output.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert sweeping.run() == 0
    assert sweeping.betas() == [*first, fourth]


def test_damaged_files_are_named(sweeping, capsys):
    assert sweeping.run("run_cap=1") == 0
    trial = sweeping.trial(0.1)
    for path, text, message in (
        (trial.folder / "trial.json", "{", f"{trial.folder}/trial.json is damaged; delete it, and"),
        (trial.folder / "metrics.jsonl", "[\n", "is a finished trial without eval/unirig_j2j; delete it"),
    ):
        whole = path.read_text()
        path.write_text(text)
        assert sweeping.run("run_cap=1") == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
        path.write_text(whole)


def test_the_directory_of_an_ablation_is_refused(sweeping, capsys):
    sweeping.output.mkdir()
    (sweeping.output / "table.json").write_text('{"variants": []}')
    message = f"'output_dir' {sweeping.output} has a table.json that no sweep wrote; choose another"
    assert refused(sweeping, capsys) == message


# ------------------------------------------------------------------ sweeps that are refused


def refused(sweeping, capsys, *overrides: str) -> str:
    assert sweeping.run(*overrides) == 2
    assert sweeping.calls() == []
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("error: ")


def test_trials_must_have_directories_of_their_own(sweeping, capsys):
    assert refused(sweeping, capsys, "output_dir=outputs/x") == (
        "'command': 'output_dir' outputs/x would be that of every trial; put "
        "'output_dir=outputs/x/$WANDB_RUN_ID' into it"
    )


def test_trials_must_resume(sweeping, capsys):
    assert "'resume' must be true" in refused(sweeping, capsys, "resume=false")


@pytest.mark.parametrize(
    ("metric", "overrides", "message"),
    [
        (
            "eval/unirig_j2j",
            ["eval.every=0"],
            "but trials do not evaluate while they train; put eval.every=10",
        ),
        ("after/unirig_j2j", ["eval.before_and_after=false"], "but 'eval.before_and_after' is false"),
        ("eval/unirig_j2j", ["eval.metrics=false"], "but 'eval.metrics' is false; set it to true"),
        ("eval/unirig_jj", [], "'metric.name': no measure is named 'unirig_jj'; the nearest is"),
        ("eval/joints", [], "'metric.name' is joints, of which neither more nor less is better"),
    ],
)
def test_trials_must_have_the_metric(sweeping, capsys, metric, overrides, message):
    sweeping.write(metric={"name": metric})
    assert message in refused(sweeping, capsys, *overrides)


@pytest.mark.parametrize(
    ("metric", "goal", "right"),
    [
        ("eval/total", "minimize", "maximize"),
        ("eval/skin_iou_valid", "minimize", "maximize"),
        ("after/unirig_j2j_valid", "maximize", "minimize"),
    ],
)
def test_the_goal_must_fit_the_measure(sweeping, capsys, metric, goal, right):
    sweeping.write(metric={"name": metric, "goal": goal})
    measure = metric.partition("/")[2]
    assert refused(sweeping, capsys) == f"'metric.goal' is {goal}, but {right} fits {measure}; set it"


@pytest.mark.parametrize(
    ("key", "metric", "message"),
    [
        ("rewards.coverage.weight", "eval/total", "the total is weighted by 'rewards.coverage.weight'"),
        ("rewards.coverage.weight", "eval/coverage", None),
        ("rewards.coverage.weight", "after/skin_iou_valid", None),
        ("rewards.coverage.alpha", "eval/coverage", "eval/coverage depends on 'rewards.coverage.alpha'"),
        ("rewards.coverage.alpha", "eval/valid", None),
        ("deformation.poses", "eval/total", "eval/total depends on 'deformation.poses'"),
        ("eval.samples", "after/valid", "trials differ in 'eval.samples', which changes the evaluation"),
        ("data.eval_count", "after/valid", "trials differ in 'data.eval_count'"),
        ("data.train_count", "eval/total", None),
        ("train.num_generations", "eval/total", None),
        ("train.max_completion_length", "eval/total", "trials differ in 'train.max_completion_length'"),
    ],
)
def test_trials_must_compare(sweeping, capsys, key, metric, message):
    sweeping.write(parameters={key: {"values": [2, 4]}}, metric={"name": metric, "goal": "maximize"})
    recipe = load_recipe(str(sweeping.file))
    if message is not None:
        assert message in refused(sweeping, capsys)
        return
    first, second = (trials.make_trial(recipe, {(key,): value}) for value in (2, 4))
    trials.check_comparable(first, second, recipe)


def test_a_bad_value_names_the_trial(sweeping, capsys):
    sweeping.write(parameters={"train.num_generations": {"values": [4, 3]}})
    line = refused(sweeping, capsys)
    assert line.startswith("trial train.num_generations=3: 'train.num_generations' 3 does not divide the 8")
