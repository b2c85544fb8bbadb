"""What a run that children train has reached, told from its folder; whether it is still the same run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.atomic import write_atomic
from data.typed_recipe import RecipeError, build, read_recipe, to_mapping
from rl.first_evaluation import policy_digest
from rl.recipe import Recipe, check_recipe
from rl.run_directory import MAY_CHANGE, first_difference
from rl.run_files import METRICS_FILE, POLICY_FOLDER, RECIPE_FILE

_END_OF_METRICS = 1 << 16


def read_noted(path: Path, advice: str) -> dict[str, Any]:
    """The mapping in a JSON file of this command, empty if there is none; RecipeError if it is damaged."""
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{path} is damaged; {advice}") from error


class TrainingRecord:
    """The training run of `recipe` in its output directory.

    A file `mark` there says what it started from (`policy`, a digest) and how many steps the last command
    that ended well had finished (`steps`).
    """

    def __init__(self, recipe: Recipe, mark: str) -> None:
        self.recipe, self.folder = recipe, Path(recipe.output_dir)
        self._mark = self.folder / mark

    @property
    def wanted(self) -> int:
        """The steps of the whole run."""
        return int(self.recipe.train["max_steps"])

    def steps_done(self) -> int:
        """The last training step in metrics.jsonl, 0 if there is none."""
        path = self.folder / METRICS_FILE
        if not path.is_file():
            return 0
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - _END_OF_METRICS))
            lines = stream.read().splitlines(keepends=True)
        for line in reversed(lines):
            if line.endswith(b"\n"):
                try:
                    return int(json.loads(line)["step"])
                except (ValueError, KeyError):
                    continue
        return 0

    def begin(self) -> None:
        """Note what the run starts from, and that it is not finished."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write(0)

    def end(self) -> str | None:
        """Note that its command has ended well; why it is not finished all the same, None if it is."""
        if self.steps_done() < self.wanted or not (self.folder / POLICY_FOLDER).is_dir():
            return (
                f"it ended after {self.steps_done()} of {self.wanted} steps (train_guard.stop_after_minutes)"
            )
        self._write(self.wanted)
        return None

    def is_finished(self) -> bool:
        """Whether a command has finished all its steps."""
        return self._read().get("steps") == self.wanted

    def changed_key(self, may_change: Sequence[str] = MAY_CHANGE) -> str | None:
        """The first key whose value differs from that of the run in the folder, None if it is the same run.

        Keys and sections in `may_change` count not; fewer steps than are done count.
        """
        written = self.folder / RECIPE_FILE
        if not written.is_file():
            return None
        before = to_mapping(check_recipe(build(Recipe, read_recipe(written))))
        key = first_difference(before, to_mapping(self.recipe), may_change)
        return "train.max_steps" if key is None and self.steps_done() > self.wanted else key

    def has_other_start(self, digest: str) -> bool:
        """Whether the run in the folder started from other weights than those with this digest."""
        return self._read().get("policy", digest) != digest

    def _read(self) -> dict[str, object]:
        return read_noted(self._mark, "delete it, and the run goes on from its last checkpoint")

    def _write(self, steps: int) -> None:
        mark = {"policy": policy_digest(self.recipe.policy), "steps": steps}
        write_atomic(self._mark, json.dumps(mark).encode())
