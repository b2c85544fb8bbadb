"""What a finished GRPO run leaves (policies, evaluations, an example rig), and how the command prints it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from rl.best_policy import BestPolicy
from rl.evaluation_results import Evaluation
from rl.evaluation_tables import make_console, print_means
from rl.run_files import BEST_FOLDER, POLICY_FOLDER


@dataclass(frozen=True)
class TrainedRun:
    """A run that has been trained to its last step.

    Attributes:
        output: its directory, `output_dir`.
        before, after: evaluations of the policies before and after training; None without
            `eval.before_and_after`, and in other processes than the main one.
        best: what `policy_best/` holds, None without `eval.every`, and in other processes.
        rig: GLB of a held-out mesh with the best of a few rigs of the refined policy; None if none of them
            was complete, for the reason `no_rig`, and in other processes.
    """

    output: Path
    before: Evaluation | None = None
    after: Evaluation | None = None
    best: BestPolicy | None = None
    rig: Path | None = None
    no_rig: str = ""

    @property
    def policy(self) -> Path:
        """Directory of the refined policy."""
        return self.output / POLICY_FOLDER

    @property
    def best_policy(self) -> Path | None:
        """Directory of the best policy of the evaluations during training, if there were any."""
        return self.output / BEST_FOLDER if self.best is not None else None


def print_trained(run: TrainedRun) -> None:
    """Print the table of the evaluations, and where the policies and the example rig are."""
    if run.before is not None and run.after is not None:
        print_means([run.before, run.after], ["before", "after"], make_console())
    print(f"refined policy: {run.policy}")
    if run.best is not None:
        print(f"best policy: {run.best_policy} (step {run.best.step}, {run.best.by} {run.best.value:.4g})")
    if run.rig is not None:
        print(f"example rig: {run.rig}, {run.rig.with_suffix('.png')}")
    else:  # an early policy may complete no rig: the run succeeded all the same
        print(f"no example rig: {run.no_rig}", file=sys.stderr)
