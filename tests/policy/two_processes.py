"""What each of two processes does in test_pretrain_distributed: python two_processes.py FOLDER OPTIMIZER."""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from policy import pretrain_skin_vae, pretrain_tokenrig
from policy.pretraining.loop import run_training
from tests.policy.pretraining.test_loop import recipe, run
from tests.policy.pretraining.test_validation import scripted, trained, validation

# The same rate throughout, so that a run does not depend on where it will end.
CONSTANT = {"warmup_steps": 0, "min_learning_rate_ratio": 1.0, "max_steps": 6, "save_steps": 3}


def main(folder: Path, optimizer: str) -> None:
    """Train both stages by their command lines, and a small network whole, in two parts, and accumulated."""

    def keep(model: nn.Module, name: str) -> None:
        rank = torch.distributed.get_rank()
        torch.save(model.state_dict(), folder / f"{name}-{rank}.pt")

    def kept(*arguments: Any) -> nn.Module:
        model = run_training(*arguments)
        keep(model, type(model).__name__)
        return model

    for stage in (pretrain_skin_vae, pretrain_tokenrig):
        stage.run_training = kept  # type: ignore[attr-defined]
        code = stage.main([str(folder / f"{stage.__name__.rpartition('.')[2]}.yaml")])
        if code:
            sys.exit(code)
    options = {**CONSTANT, "optimizer": optimizer}
    keep(run(recipe(folder / "whole", **options)), "whole")
    run(recipe(folder / "parts", **{**options, "max_steps": 3}))
    keep(run(recipe(folder / "parts", **options)), "parts")
    keep(run(recipe(folder / "accumulated", **options, gradient_accumulation_steps=2)), "accumulated")
    keep(trained(folder / "best", validation(losses=scripted([3.0, 2, 4])), **options), "best")
    ended = validation(losses=scripted([3.0, 4, 2]), patience=1)
    keep(trained(folder / "ended", ended, **options), "ended")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
