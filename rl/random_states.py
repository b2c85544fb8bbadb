"""Keeps the random states of a run as they are around work that only looks at it, such as an evaluation."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def same_random_states() -> Iterator[None]:
    """Restore the global random states of Python, NumPy and torch (CPU, all GPUs) after the block.

    Training draws from them: TRL shuffles each batch of rollouts with torch's.
    """
    python, cpu = random.getstate(), torch.get_rng_state()
    numpy = np.random.get_state()  # noqa: NPY002 (libraries may use it)
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
