"""The shipped sweep file with real trainings: two trials by rl.sweep, and one as W&B's agent starts it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rl import sweep
from tests.rl import tiny
from tests.rl.commands import BIN, ROOT, TIMEOUT, metrics
from tests.wandb_files import offline_runs

SHIPPED = "recipes/sweeps/reward_weights.yaml"


def tiny_overrides(policy: Path, output: Path) -> list[str]:
    """What turns the quickstart into a run of two steps with the tiny policy."""
    values = tiny.recipe_values(policy, output, {"eval.every_samples": 1})
    return [
        f"output_dir={output}/$WANDB_RUN_ID",
        *(
            f"{section}.{key}={value}"
            for section, own in values.items()
            if isinstance(own, dict)
            for key, value in own.items()
        ),
    ]


def test_two_trials_of_the_shipped_file(policy_path, tmp_path, monkeypatch, capsys, stop_signal_handlers):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    arguments = [SHIPPED, "run_cap=2", "jobs=2", *tiny_overrides(policy_path, tmp_path)]
    assert sweep.main(arguments) == 0
    table = json.loads((tmp_path / "table.json").read_text())
    values = [trial["value"] for trial in table["trials"]]
    assert len(values) == 2
    assert values == sorted(values)
    for trial in table["trials"]:
        folder = tmp_path / trial["id"]
        assert trial["output_dir"] == str(folder)
        measured = {line["step"]: line["eval/unirig_j2j"] for line in metrics(folder) if "eval/total" in line}
        assert list(measured) == [0, 2]
        assert measured[2] == trial["value"]
        weights = yaml.safe_load((folder / "recipe.yaml").read_text())["rewards"]
        for name in ("containment", "sparsity", "smoothness", "bone_influence"):
            assert weights[name]["weight"] == trial["parameters"][f"rewards.{name}.weight"]
        assert not (folder / "wandb").exists()
    best = table["trials"][0]["id"]
    assert f"policy in {tmp_path / best / 'policy'}" in capsys.readouterr().out
    assert (tmp_path / best / "policy" / "config.json").exists()


def test_a_trial_that_an_agent_starts(policy_path, tmp_path, monkeypatch):
    """W&B's own agent code builds the command and starts it, offline; the run has the sweep's metric."""
    agents = pytest.importorskip("wandb.wandb_agent")
    monkeypatch.chdir(ROOT)
    for name, value in {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_SWEEP_ID": "s1",
        "WANDB_RUN_ID": "",
        "WANDB_SWEEP_PARAM_PATH": "",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    command = yaml.safe_load((ROOT / SHIPPED).read_text())["command"]
    agent = agents.Agent.__new__(agents.Agent)
    agent._sweep_command = [*command, *tiny_overrides(policy_path, tmp_path / "trials")]
    agent._function, agent._in_jupyter, agent._forward_signals, agent._run_processes = None, False, False, {}
    point = {"rewards.containment.weight": 0.5, "rewards.bone_influence.weight": 1}
    agent._command_run(
        {
            "run_id": "trial7",
            "program": "rl/train_grpo.py",
            "args": {name: {"value": value} for name, value in point.items()},
        }
    )
    assert agent._run_processes["trial7"].wait(timeout=TIMEOUT) == 0
    folder = tmp_path / "trials" / "trial7"
    (run,) = offline_runs(tmp_path)
    assert (run.id, run.sweep, run.exit_code) == ("trial7", "s1", 0)
    assert (folder / "wandb_id.txt").read_text() == "trial7\n"
    assert run.config["rewards.containment.weight"] == 0.5
    assert run.config["recipe"]["rewards"]["containment"]["weight"] == 0.5
    measured = {line["step"]: line["eval/unirig_j2j"] for line in metrics(folder) if "eval/total" in line}
    assert run.values("eval/unirig_j2j") == measured
    assert list(measured) == [0, 2]


def test_help_takes_no_time_for_libraries():
    script = (
        "import sys; from rl import sweep\n"
        "try: sweep.main(['--help'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "run_cap" in done.stdout
    assert done.stdout.endswith("False\n")
