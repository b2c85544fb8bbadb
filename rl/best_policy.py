"""The best policy of a run so far: chosen by a measure of the held-out meshes, kept in `policy_best/`."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.atomic import write_atomic
from data.typed_recipe import to_mapping
from policy.bundle import RigPolicy
from rl.evaluation_results import Evaluation, measure_of, read_evaluation
from rl.recipe import Recipe
from rl.run_files import BEST_FOLDER, CARD_FILE, START_FILE

BEST_FILE = "best.json"
# Keys of `eval` that do not change the numbers of an evaluation during training.
_NO_EFFECT = ("samples", "compare", "before_and_after", "every", "best_by", "sheets")


@dataclass(frozen=True)
class BestPolicy:
    """`best.json` in `policy_best/`: why this policy is there.

    step: steps that were done when it was evaluated, 0 for the policy that the run started from. by: the
    measure, `eval.best_by`; value: its mean; higher_is_better: how values compare. mean: all measures of that
    evaluation. settings: of the evaluation; values with others do not compare.
    """

    step: int
    by: str
    value: float
    higher_is_better: bool
    mean: dict[str, float]
    settings: dict[str, Any]

    def is_better_than(self, other: BestPolicy | None) -> bool:
        """Whether this policy replaces `other`; among equals the earlier one stays."""
        if other is None:
            return True
        return self.value > other.value if self.higher_is_better else self.value < other.value


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """The settings that values of `best_by` depend on, and that a resumed run may change."""
    values = to_mapping(recipe)["eval"]
    return {key: value for key, value in values.items() if key not in _NO_EFFECT}


def candidate(evaluation: Evaluation, step: int, recipe: Recipe) -> BestPolicy | None:
    """What `best.json` would say of an evaluated policy; None if its measure has no value."""
    by = recipe.eval.best_by
    value = evaluation.mean.get(by, math.nan)
    if math.isnan(value):
        return None
    return BestPolicy(step, by, value, not measure_of(by).lower, dict(evaluation.mean), settings_of(recipe))


def load_best(output: Path) -> BestPolicy | None:
    """The record of the policy in `policy_best/`; None if there is none, or, with a note, a damaged one."""
    path = output / BEST_FOLDER / BEST_FILE
    if not path.is_file():
        return None
    try:
        return BestPolicy(**json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        print(f"note: {path} cannot be read ({error}), so the best policy is not known", file=sys.stderr)
        return None


def read_best(output: Path, recipe: Recipe) -> BestPolicy | None:
    """The record of the policy in `policy_best/`; None if there is none, or none that compares.

    A record of other evaluation settings or another measure, as after a resume that changed them, is reported
    on standard error: the next evaluation then replaces the policy.
    """
    best = load_best(output)
    if best is None or (best.by == recipe.eval.best_by and best.settings == settings_of(recipe)):
        return best
    print(
        f"{output / BEST_FOLDER} was chosen by '{best.by}' under other evaluation settings; the next "
        "evaluation replaces it",
        file=sys.stderr,
    )
    return None


def write_best(output: Path, best: BestPolicy, policy: RigPolicy, card: str) -> None:
    """Replace `policy_best/` as a whole with the policy, its record and its model card.

    Raises what `RigPolicy.save` does.
    """
    text = json.dumps(asdict(best), indent=2) + "\n"
    policy.save(output / BEST_FOLDER, also={BEST_FILE: text.encode(), CARD_FILE: card.encode()})


def write_start(output: Path, evaluation: Evaluation, recipe: Recipe) -> None:
    """Write `start.json`: the evaluation of the policy that the run started from, with its settings."""
    values = {**asdict(evaluation), "settings": settings_of(recipe)}
    write_atomic(output / START_FILE, (json.dumps(values, indent=2) + "\n").encode())


def read_start(output: Path, recipe: Recipe) -> Evaluation | None:
    """What `write_start` wrote; None if there is nothing, or if it has other settings than the recipe's."""
    path = output / START_FILE
    if not path.is_file():
        return None
    found = read_evaluation(path)
    same = found is not None and json.loads(path.read_bytes()).get("settings") == settings_of(recipe)
    return found if same else None
