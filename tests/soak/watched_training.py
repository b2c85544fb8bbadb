"""The training command, sampling all its processes: `watched_training.py OUT EVERY RECIPE …`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import psutil

from tests.soak import usage


def main() -> int:
    """Run `rl/train_grpo.py` on the remaining arguments; one line of samples every EVERY steps in OUT."""
    out, every, *arguments = sys.argv[1:]
    from transformers import TrainerCallback

    from rl import train_grpo, training

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step % int(every) == 0:
                line = {"step": state.global_step, "processes": usage.sample(psutil.Process())}
                usage.append(Path(out), {**line, "object_store": usage.object_store_bytes()})

    build = training.build_trainer

    def watched(*parts):
        trainer = build(*parts)
        trainer.add_callback(Watch())
        return trainer

    training.build_trainer = watched
    return train_grpo.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
