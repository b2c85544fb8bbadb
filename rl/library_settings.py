"""Imports large libraries faster, and quiets TRL, transformers and DeepSpeed before they are imported."""

from __future__ import annotations

import gc
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """For a block that imports large libraries: no garbage collection in it, a fifth less time.

    What was imported stays until the process ends, so later collections skip it.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


def quiet_libraries() -> None:
    """Set the environment variables and filters that those libraries read on import."""
    import torch
    from transformers.utils import logging as transformers_logging

    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # otherwise DeepSpeed warns that it found no GPU
    # TRL calls deprecated functions of transformers, which only TRL can fix.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    # Its bars for loading a few small files would hide ours.
    transformers_logging.disable_progress_bar()
    logging.getLogger("trl.trainer.grpo_trainer").addFilter(_names_no_unscored_row)


def _names_no_unscored_row(record: logging.LogRecord) -> bool:
    """False for TRL's warning with a whole row of a batch; rl/reward_functions.py counts unscored rigs."""
    return "All reward functions returned None" not in record.getMessage()  # accelerate puts the rank first
