"""Reading a sweep file: overrides, defaults, refusals in one sentence, and --print-recipe."""

import re
from pathlib import Path

import pytest
import yaml

from data.typed_recipe import RecipeError
from rl import sweep
from rl.sweeps.sweep_file import load_recipe

WHOLE = {
    "program": "rl/train_grpo.py",
    "method": "random",
    "run_cap": 3,
    "metric": {"name": "eval/unirig_j2j", "goal": "minimize"},
    "parameters": {"train.beta": {"values": [0, 0.1]}},
    "command": ["${env}", "${interpreter}", "${program}", "a.yaml", "${args}"],
}


def write(folder: Path, **changes: object) -> str:
    path = folder / "mine.yaml"
    path.write_text(
        yaml.safe_dump({key: value for key, value in {**WHOLE, **changes}.items() if value != "-"})
    )
    return str(path)


def test_overrides_are_of_the_file_or_of_all_trials(tmp_path):
    path = write(tmp_path)
    found = load_recipe(path, ["run_cap=7", "jobs=2", "metric.target=0.1", "train.max_steps=3", "seed=4"])
    assert (found.run_cap, found.jobs, found.seed, found.metric.target) == (7, 2, 4, 0.1)
    assert found.overrides == ["train.max_steps=3"]
    assert found.name == "mine"
    assert load_recipe(write(tmp_path, name="other")).name == "other"


def test_what_is_printed_is_the_file(tmp_path, capsys):
    path = write(tmp_path, description="ä")
    assert sweep.main([path, "--jobs=2", "--train.max_steps=3", "--print-recipe"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["command"] == WHOLE["command"]
    assert shown["overrides"] == ["train.max_steps=3"]
    assert shown["jobs"] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "annealing"}, "'method' must be one of 'grid', 'random', 'bayes', not 'annealing'"),
        ({"run_cap": "-"}, "'run_cap' is missing, and method random has no end; add run_cap=20"),
        ({"run_cap": 0}, "'run_cap' must be above 0, not 0"),
        ({"metric": "-"}, "'metric' is missing"),
        ({"command": "-"}, "'command' is missing"),
        ({"paramters": {}}, "unknown key 'paramters'; the nearest valid key is 'parameters'"),
        ({"jobs": 2}, "'jobs' is not part of W&B's format; pass it on the command line"),
        (
            {"early_terminate": {"type": "hyperband", "min_iter": 3}},
            "'early_terminate' needs W&B's server; remove it, or use wandb sweep and wandb agent",
        ),
        (
            {"metric": {"name": "train/reward"}},
            "'metric.name' train/reward is not measured on held-out meshes",
        ),
        (
            {"method": "grid", "parameters": {"a": {"min": 0.0, "max": 1.0}}},
            "'parameters.a' is uniform, which",
        ),
        (
            {"parameters": {"output_dir": {"values": ["a", "b"]}}},
            "'parameters.output_dir': every trial has its own directory",
        ),
    ],
)
def test_refusals(tmp_path, changes, message):
    with pytest.raises(RecipeError, match=re.escape(message)):
        load_recipe(write(tmp_path, **changes))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.beta=1"], "override 'train.beta=1': 'train.beta' is a parameter of the sweep"),
        (["run_cap"], "override 'run_cap' must have the form key=value, such as run_cap=4"),
        (["run_cap=many"], "'run_cap' must be an integer or null, not 'many'"),
        (["seed=-1"], "'seed' must not be negative, not -1"),
        (["seed=[1"], "override 'seed=[1' is not valid YAML; put the text in quotes"),
        (["method.x=1"], "override 'method.x=1': 'method' is 'random', not a section"),
    ],
)
def test_refused_overrides(tmp_path, overrides, message):
    with pytest.raises(RecipeError, match=re.escape(message)):
        load_recipe(write(tmp_path), overrides)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist; pass the path of a YAML file"),
        ("- a\n", "has no 'parameters', so it is no sweep; see recipes/sweeps/"),
        ("a: [", "not a readable YAML file (expected the node content, but found '<stream end>' in line 1)"),
        ("output_dir: a\n", "has no 'parameters', so it is no sweep"),
    ],
)
def test_files_that_are_no_sweeps(tmp_path, capsys, content, message):
    path = tmp_path / "sweep.yaml"
    if content is not None:
        path.write_text(content)
    assert sweep.main([str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
