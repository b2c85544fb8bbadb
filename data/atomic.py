"""Atomic file writes: a file appears complete or not at all."""

import os
from pathlib import Path


def write_atomic(path: str | Path, content: bytes) -> None:
    """Write `content` to a temporary file next to `path`, then rename it. Raises OSError if that fails."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
