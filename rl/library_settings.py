"""Quiets TRL, transformers and DeepSpeed; must run before the trainer and its libraries are imported."""

from __future__ import annotations

import os
import warnings

import torch
from transformers.utils import logging as transformers_logging


def quiet_libraries() -> None:
    """Set the environment variables and filters that those libraries read on import."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # otherwise DeepSpeed warns that it found no GPU
    # TRL calls deprecated functions of transformers, which only TRL can fix.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    # Its bars for loading a few small files would hide ours.
    transformers_logging.disable_progress_bar()
