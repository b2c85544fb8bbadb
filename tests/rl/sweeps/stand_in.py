"""Stands in for the training of a trial: quick, and ends as a test asks.

Its arguments are the recipe and overrides. It finds |beta − 0.3| as the held-out distance of its last step.
"""

import json
import os
import signal
import sys
from pathlib import Path

import yaml

# {"0.5": "killed"}: how the next training of the trial with that beta ends.
ENDINGS = "STAND_IN_ENDINGS"
STEPS = 2


def main(recipe_file: str, *overrides: str) -> int:
    own = dict(override.split("=", 1) for override in overrides)
    steps = int(own.get("train.max_steps", STEPS))
    beta = float(own["train.beta"])
    output = Path(os.path.expandvars(own["output_dir"]))
    assert yaml.safe_load(Path(recipe_file).read_text())["train"]["max_steps"] == STEPS
    with Path(os.environ[ENDINGS]).with_name("calls.txt").open("a") as calls:
        calls.write(f"{beta} {output.name} {os.environ['WANDB_RUN_ID']} {own['train.report_to']}\n")
    ending = json.loads(Path(os.environ[ENDINGS]).read_text()).get(str(beta), "done")
    if ending == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if ending == "refused":
        print("error: 'data.meshes': no file matches", file=sys.stderr)
        return 2
    if ending == "stopped":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        os.kill(os.getppid(), signal.SIGTERM)
        signal.sigwait({signal.SIGTERM})
        return 128 + signal.SIGTERM
    line = {"step": steps, "eval/unirig_j2j": abs(beta - 0.3), "eval/se/unirig_j2j": 0.01}
    if ending == "unmeasured":
        del line["eval/unirig_j2j"]
    with (output / "metrics.jsonl").open("a") as log:
        log.write(json.dumps({"step": steps, "loss": 0.0}) + "\n" + json.dumps(line) + "\n")
    (output / "policy").mkdir(exist_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
