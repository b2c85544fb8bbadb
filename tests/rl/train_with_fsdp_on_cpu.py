"""Runs the training command with FSDP on CPU processes, which accelerate offers for GPUs only."""

import sys
from pathlib import Path
from typing import Any

sys.path[:] = [str(Path(__file__).resolve().parents[2]), *sys.path[1:]]

from accelerate import PartialState  # noqa: E402
from accelerate.state import AcceleratorState  # noqa: E402
from accelerate.utils import DistributedType  # noqa: E402

from rl import train_grpo  # noqa: E402

_init = AcceleratorState.__init__


def _with_fsdp(self: AcceleratorState, *arguments: Any, **options: Any) -> None:
    # accelerate looks for FSDP only if the processes seem to have GPUs; the device stays the CPU.
    shared = PartialState._shared_state
    if shared.get("distributed_type") == DistributedType.MULTI_CPU:
        shared["distributed_type"] = DistributedType.MULTI_GPU
    _init(self, *arguments, **options)


if __name__ == "__main__":
    AcceleratorState.__init__ = _with_fsdp
    sys.exit(train_grpo.main(sys.argv[1:]))
