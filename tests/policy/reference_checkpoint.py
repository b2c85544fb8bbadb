"""The tiny reference checkpoint pair, and edited copies of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

REFERENCE = Path(__file__).parent / "reference"
RIG, VAE = REFERENCE / "tiny_a.ckpt", REFERENCE / "tiny_a_vae.ckpt"


def edited(path: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    """Write a copy of the TokenRig checkpoint to `path`, its content changed in place by `edit`."""
    content = torch.load(RIG, weights_only=True)
    edit(content)
    torch.save(content, path)
    return path
