"""The directory of an ablation or a sweep: the names of its files, and whether it is free for one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from data.typed_recipe import RecipeError
from rl.run_files import RECIPE_FILE

# What the children print, and what came out, for people and for programs.
LOG_FILE = "log.txt"
TABLE_FILE, DATA_FILE = "table.md", "table.json"
# The key of DATA_FILE with the results.
_RESULTS = {"ablation": "variants", "sweep": "trials"}


def open_folder(folder: Path, kind: Literal["ablation", "sweep"]) -> None:
    """Create the directory of an ablation or a sweep; RecipeError if that fails or it holds another thing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"'output_dir' {folder} cannot be created ({error}); choose another") from error
    if (folder / RECIPE_FILE).exists():
        raise RecipeError(f"'output_dir' {folder} holds a run; choose another directory for the {kind}")
    table = folder / (DATA_FILE if (folder / DATA_FILE).exists() else TABLE_FILE)
    if table.exists() and not _is_of(table, kind):
        raise RecipeError(f"'output_dir' {folder} has a {table.name} that no {kind} wrote; choose another")


def _is_of(table: Path, kind: str) -> bool:
    try:
        return _RESULTS[kind] in json.loads(table.read_bytes())
    except (ValueError, TypeError):
        return False
