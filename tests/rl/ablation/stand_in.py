"""Stands in for the training and the evaluation of a matrix: quick, and ends as a test asks.

A run "trains" by writing its step and a policy whose weight is 10 per seed, plus 1 if coverage counts. An
evaluation finds the policy's weight as the total of each mesh, 0 before training.
"""

import json
import os
import signal
import sys
from pathlib import Path

import yaml

from rl.evaluation_results import Evaluation, summarise, write_evaluation

# {"cool/seed-1": "killed"}: how that run's next training ends; of an evaluation, "cool/seed-1/evaluation".
ENDINGS = "STAND_IN_ENDINGS"


def main(*options: str, recipe_file: str) -> int:
    if "--out" in options:  # the page of runs
        Path(recipe_file).write_text(json.dumps(options[:-1]))
        return 0
    recipe = yaml.safe_load(Path(recipe_file).read_text())
    output = Path(recipe["output_dir"])
    with Path(os.environ[ENDINGS]).with_name("calls.txt").open("a") as calls:
        calls.write(f"{'/'.join(output.parts[-2:])}\n")
    endings = json.loads(Path(os.environ[ENDINGS]).read_text())
    ending = next((how for name, how in endings.items() if str(output).endswith(name)), "done")
    if recipe["eval"]["before_and_after"]:  # only the runs' own evaluation is switched off
        return evaluate(recipe, output, ending)
    return train(recipe, output, ending)


def train(recipe: dict, output: Path, ending: str) -> int:
    steps = recipe["train"]["max_steps"]
    with (output / "metrics.jsonl").open("a") as log:
        log.write(json.dumps({"step": 1, "loss": 0.0, "reward": 1.0}) + "\n")
    if ending == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if ending == "refused":
        print("skipped: something else\nerror: 'data.meshes': no file matches", file=sys.stderr)
        return 2
    if ending == "usage":
        print("python -m rl.launch: error: unrecognized arguments: --bogus", file=sys.stderr)
        return 2
    if ending == "bug":
        raise AssertionError("a bug")
    if ending == "early":
        return 0
    if ending in ("stopped", "orphaned"):
        page = output.parents[1] / "table.md"
        if page.exists():
            Path(os.environ[ENDINGS]).with_name("page_while_training.md").write_text(page.read_text())
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        os.kill(os.getppid(), signal.SIGTERM if ending == "stopped" else signal.SIGKILL)
        signal.sigwait({signal.SIGTERM})
        Path(os.environ[ENDINGS]).with_name("saved").write_text("after SIGTERM")
        return 128 + signal.SIGTERM
    with (output / "metrics.jsonl").open("a") as log:
        log.write(json.dumps({"step": steps, "loss": 0.0, "reward": 2.0}) + "\n")
    policy = output / "policy"
    policy.mkdir(exist_ok=True)
    weight = 10 * recipe["train"]["seed"] + (recipe["rewards"]["coverage"]["weight"] > 0)
    (policy / "config.json").write_text(json.dumps({"model_type": "tokenrig", "weight": weight}))
    return 0


def evaluate(recipe: dict, output: Path, ending: str) -> int:
    if ending == "refused":
        print("error: 'policy.path': no such directory", file=sys.stderr)
        return 2
    policy = json.loads((Path(recipe["policy"]["path"]) / "config.json").read_text())
    row = {"coverage": 0.5, "total": float(policy.get("weight", 0)), "valid": 1.0, "joints": 9.0}
    per_mesh = {"a": row, "b": row}
    mean, error = summarise(per_mesh, list(row))
    write_evaluation(Evaluation("p", 1, 0, per_mesh, mean, error, {}), output / "evaluation.json")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:-1], recipe_file=sys.argv[-1]))
