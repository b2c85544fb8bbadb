"""The training command of a trial: as W&B's own agent builds it, what the program reads, and refusals."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from data.typed_recipe import RecipeError
from rl import train_grpo
from rl.sweeps.sweep_file import SweepRecipe, load_recipe
from rl.sweeps.training_command import expand, recipe_of

ROOT = Path(__file__).parents[3]
SHIPPED = ROOT / "recipes/sweeps/reward_weights.yaml"
VALUES = {
    "rewards.coverage.weight": 0.5,
    "train.learning_rate": 1e-05,
    "train.scale_rewards": "none",
    "policy.train_mesh_encoder": True,
    "data.kinds": ["quadruped", "biped"],
    "data.eval_meshes": None,
    "train": {"max_steps": 3, "top_entropy_quantile": 0.5},
}


def sweep(*command: str, overrides: tuple[str, ...] = ()) -> SweepRecipe:
    recipe = load_recipe(str(SHIPPED))
    return replace(recipe, command=list(command) or recipe.command, overrides=list(overrides))


def of_the_agent(command: list[str], program: str, values: dict, monkeypatch, tmp_path) -> list[str]:
    """What W&B's agent starts for a trial with these values."""
    agents = pytest.importorskip("wandb.wandb_agent")
    started = []
    monkeypatch.setattr(agents, "AgentProcess", lambda **options: started.append(options) or Started())
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    monkeypatch.setenv("WANDB_RUN_ID", "")  # restored after the agent has set it
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", "")
    agent = agents.Agent.__new__(agents.Agent)
    agent._sweep_command, agent._function, agent._in_jupyter = list(command), None, False
    agent._run_processes, agent._forward_signals = {}, False
    arguments = {name: {"value": value} for name, value in values.items()}
    agent._command_run({"run_id": "trial7", "program": program, "args": arguments})
    (options,) = started
    assert options["env"]["WANDB_RUN_ID"] == "trial7"
    return options["command"]


class Started:
    """Stands in for the process that an agent has started."""


@pytest.mark.parametrize("arguments", ["${args_no_hyphens}", "${args}"])
@pytest.mark.parametrize(
    "program",
    [["${program}"], ["-m", "rl.launch", "--config_file", "${envvar:SWEEP_LAUNCH}"], ["-m", "rl.train_grpo"]],
)
def test_the_command_is_that_of_an_agent(arguments, program, monkeypatch, tmp_path):
    monkeypatch.setenv("SWEEP_LAUNCH", "recipes/accelerate/two_cores.yaml")
    command = ["${env}", "${interpreter}", *program, "recipes/quickstart.yaml", "eval.every=5", arguments]
    theirs = of_the_agent(command, "rl/train_grpo.py", VALUES, monkeypatch, tmp_path)
    assert theirs[:2] == ["/usr/bin/env", "python"]
    own = expand(sweep(*command, overrides=("train.beta=0",)), VALUES)
    assert own[-2:] == ["train.report_to=none", "train.beta=0"]
    as_theirs = ["rl/train_grpo.py", *own[1:-2]] if program == ["${program}"] else ["-m", *own[:-2]]
    assert as_theirs == theirs[2:]


@pytest.mark.parametrize("arguments", ["${args_no_hyphens}", "${args}"])
def test_the_program_reads_what_an_agent_passes(arguments, monkeypatch, tmp_path, capsys):
    command = ["${env}", "${interpreter}", "${program}", "recipes/quickstart.yaml", arguments]
    theirs = of_the_agent(command, "rl/train_grpo.py", VALUES, monkeypatch, tmp_path)
    monkeypatch.chdir(ROOT)
    assert train_grpo.main([*theirs[3:], "--print-recipe"]) == 0
    read = yaml.safe_load(capsys.readouterr().out)
    assert read["rewards"]["coverage"]["weight"] == 0.5
    assert float(read["train"]["learning_rate"]) == 1e-5
    assert read["train"]["scale_rewards"] == "none"
    assert read["train"]["max_steps"] == 3
    assert read["train"]["top_entropy_quantile"] == 0.5
    assert read["policy"]["train_mesh_encoder"] is True
    assert read["data"]["kinds"] == ["quadruped", "biped"]
    assert read["data"]["eval_meshes"] is None


def test_the_shipped_file_passes_the_rules_of_wandb():
    """W&B's own client and its package of search methods accept it."""
    sweeps = pytest.importorskip("wandb.apis.public.sweeps")
    values = yaml.safe_load(SHIPPED.read_text())
    assert sweeps._validate_config_and_fill_distribution(dict(values))["parameters"] == values["parameters"]
    engine = pytest.importorskip("sweeps")
    values.pop("run_cap")  # newer than the package's schema
    engine.SweepConfig(values)


@pytest.mark.parametrize("launcher", [[], ["--config_file", "recipes/accelerate/two_cores.yaml"]])
def test_the_recipe_of_a_command(launcher):
    module = "rl.launch" if launcher else "rl.train_grpo"
    found = recipe_of([module, *launcher, "a.yaml", "--b.c=1", "d=--e=f"])
    assert found == ("a.yaml", ["b.c=1", "d=--e=f"])


COMMAND = ["${env}", "${interpreter}", "${program}", "a.yaml", "${args}"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (COMMAND[2:], "'command' must begin with ${env} and ${interpreter}"),
        (COMMAND[:-1], "'command' does not pass the parameters; add ${args_no_hyphens} at its end"),
        (
            [*COMMAND, "${args_json_file}"],
            "'command' has ${args_json_file}, which the training command cannot",
        ),
        ([*COMMAND[:2], "train.py", *COMMAND[3:]], "runs another program than rl/train_grpo.py"),
        ([*COMMAND[:2], "-m", "rl.evaluate", *COMMAND[3:]], "runs another program than rl/train_grpo.py"),
        ([*COMMAND[:2], "-m", *COMMAND[4:]], "runs another program than rl/train_grpo.py"),
    ],
)
def test_refused_commands(command, message):
    with pytest.raises(RecipeError) as refused:
        expand(sweep(*command), {"train.beta": 1})
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.yaml", "--dry-run"], "'command' has the option --dry-run, with which nothing is trained"),
        (["b=1"], "'command' must name one recipe"),
        (["a.yaml", "b.yaml"], "'command' must name one recipe"),
    ],
)
def test_refused_arguments(words, message):
    with pytest.raises(RecipeError) as refused:
        recipe_of(["rl.train_grpo", *words])
    assert message in str(refused.value)


def test_a_variable_that_is_not_set_is_its_name(monkeypatch):
    monkeypatch.delenv("SWEEP_A", raising=False)
    monkeypatch.setitem(os.environ, "SWEEP_B", "b")
    command = [*COMMAND[:4], "x=${envvar:SWEEP_A}-${envvar:SWEEP_B}", "${args}"]
    assert "x=SWEEP_A-b" in expand(sweep(*command), {})
