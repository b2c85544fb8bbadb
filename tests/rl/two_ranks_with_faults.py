"""What each of two processes runs in test_faults_on_one_rank: training with faults on rank 1 alone.

python two_ranks_with_faults.py RECIPE FOLDER writes to FOLDER/rank-R.json which steps changed the weights, a
digest of them, and the learning rates.
"""

import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from rewards.service import InlineRewardService
from rewards.worker import UNSCORED, GroupScore
from rl import train_grpo
from rl.trainer import RigGRPOTrainer

BAD_LOSS, BAD_GRADIENT, UNSCORED_STEP = 2, 4, 6


class Digests(TrainerCallback):
    """Digest of the weights and learning rate after each step."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.digests: list[str] = []
        self.rates: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        digest = hashlib.sha256()
        for _, tensor in sorted(parts["model"].named_parameters()):
            digest.update(tensor.detach().numpy().tobytes())
        self.digests.append(digest.hexdigest())
        self.rates.append(parts["lr_scheduler"].get_last_lr()[0])
        self.path.write_text(json.dumps({"digests": self.digests, "rates": self.rates}))


def main(recipe: str, folder: Path) -> int:
    """Patch the trainer and the reward service of this process, and train."""
    loss_of, train, score = RigGRPOTrainer._compute_loss, RigGRPOTrainer.train, InlineRewardService.submit
    now = {"step": 0}

    def compute(self: RigGRPOTrainer, model: Any, inputs: Any) -> torch.Tensor:
        step, loss = self.state.global_step + 1, loss_of(self, model, inputs)
        if self.accelerator.process_index == 1 and step == BAD_LOSS:
            loss = loss * math.nan
        if self.accelerator.process_index == 1 and step == BAD_GRADIENT:
            loss.register_hook(lambda gradient: gradient * math.inf)
        return loss

    def observed(self: RigGRPOTrainer, *arguments: Any, **options: Any) -> Any:
        self.add_callback(Digests(folder / f"rank-{self.accelerator.process_index}.json"))

        class Now(TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
                now["step"] = state.global_step + 1

        self.add_callback(Now())
        return train(self, *arguments, **options)

    class Failed:
        def __init__(self, rigs: Any) -> None:
            self.rigs = rigs

        def result(self) -> GroupScore:
            scores = [UNSCORED for _ in self.rigs]
            return GroupScore(scores, 0.1, 0.1, failure="the worker died")

    def submit(self: Any, mesh: int, rigs: Any, seed: int) -> Any:
        return Failed(rigs) if now["step"] == UNSCORED_STEP else score(self, mesh, rigs, seed)

    RigGRPOTrainer._compute_loss = compute  # type: ignore[method-assign]
    RigGRPOTrainer.train = observed  # type: ignore[method-assign]
    InlineRewardService.submit = submit  # type: ignore[method-assign, assignment]
    return train_grpo.main([recipe])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
