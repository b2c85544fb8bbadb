"""Fixtures: an ablation of two variants whose children are stand-ins."""

import json
import os
from pathlib import Path

import pytest
import yaml

from rl import ablate
from rl.ablation import work
from tests.rl import tiny
from tests.rl.ablation import stand_in

ROOT = Path(__file__).parents[3]


class Matrix:
    """An ablation in `folder`: its recipe, how its children end, and what they were asked for."""

    def __init__(self, folder: Path, policy: Path) -> None:
        self.folder, self.output, self.recipe = folder, folder / "out", folder / "ablation.yaml"
        tiny.write_recipe_file(folder / "base.yaml", policy, folder / "own", {})
        self.write()
        self.endings()

    def write(self, **values: object) -> None:
        """Write the recipe: base and `no_coverage`, one seed, without a page, unless `values` differ."""
        whole = {
            "recipe": "base.yaml",
            "variants": {"no_coverage": ["rewards.coverage.weight=0"]},
            "seeds": [1],
            "output_dir": str(self.output),
            "report": "none",
        }
        self.recipe.write_text(yaml.safe_dump({**whole, **values}, sort_keys=False))

    def endings(self, **how: str) -> None:
        """How the next children end, by the end of their output directory; `__` stands for `/`."""
        named = {name.replace("__", "/").replace("seed_", "seed-"): end for name, end in how.items()}
        (self.folder / "endings.json").write_text(json.dumps(named))

    def calls(self) -> list[str]:
        """The output directories that children were started for, and forget them."""
        path = self.folder / "calls.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def run(self, *overrides: str) -> int:
        """The command in this process."""
        return ablate.main([str(self.recipe), *overrides])

    def total(self, run: str) -> float:
        """The total reward that a run reached."""
        return json.loads((self.output / run / "after.json").read_text())["mean"]["total"]


@pytest.fixture
def matrix(
    policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_signal_handlers: None
) -> Matrix:
    """An ablation whose trainings and evaluations are stand-ins."""
    for name in ("TRAIN", "LAUNCH", "EVALUATE", "REPORT"):
        monkeypatch.setattr(work, name, stand_in.__name__)
    monkeypatch.setattr("rl.child_runs.work.POLL_SECONDS", 0.01)
    monkeypatch.setattr("rl.ablation.command.write_plots", lambda *arguments: None)  # half of the time
    monkeypatch.setenv(stand_in.ENDINGS, str(tmp_path / "endings.json"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))))
    return Matrix(tmp_path, policy_path)
