"""The training command on a disk that is full from its second checkpoint on: `full_disk.py RECIPE …`."""

import errno
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch


def main() -> int:
    """Run `rl/train_grpo.py`; the second optimiser state cannot be written."""
    from rl import train_grpo

    save, saved = torch.save, []

    def full(content, file, *arguments, **options):
        if Path(str(file)).name == "optimizer.pt":
            saved.append(file)
            if len(saved) > 1:
                raise OSError(errno.ENOSPC, "No space left on device", str(file))
        return save(content, file, *arguments, **options)

    torch.save = full
    return train_grpo.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
