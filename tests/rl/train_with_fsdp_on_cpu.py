"""Runs the training command with FSDP on CPU processes, which accelerate offers for GPUs only."""

import sys
from pathlib import Path

sys.path[:] = [str(Path(__file__).resolve().parents[2]), *sys.path[1:]]

from accelerate import PartialState  # noqa: E402
from accelerate.utils import DistributedType  # noqa: E402

from rl import train_grpo  # noqa: E402

if __name__ == "__main__":
    state = PartialState(cpu=True)  # gloo
    # Only this type lets accelerate look for FSDP; the device stays the CPU.
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    sys.exit(train_grpo.main(sys.argv[1:]))
