"""The training command with a loss of NaN in some steps: `bad_loss.py 3,5 RECIPE …`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main() -> int:
    """Run `rl/train_grpo.py`; the losses of the given steps, counted from 1, are NaN."""
    from rl import train_grpo
    from rl.trainer import RigGRPOTrainer

    bad = {int(step) for step in sys.argv[1].split(",")}
    compute = RigGRPOTrainer.compute_loss

    def spoilt(trainer, *arguments, **options):
        loss = compute(trainer, *arguments, **options)
        return loss * float("nan") if trainer.state.global_step + 1 in bad else loss

    RigGRPOTrainer.compute_loss = spoilt
    return train_grpo.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
