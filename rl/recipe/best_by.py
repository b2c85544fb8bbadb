"""Checks the measure by which a run keeps its best policy, `eval.best_by`, or a sweep ranks its trials."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from data.typed_recipe import RecipeError
from rl.evaluation_results import MEASURES, VALID_ONLY, measure_of
from rl.recipe.sections import Recipe


def check_best_by(recipe: Recipe) -> None:
    """Raise RecipeError if `eval.best_by` is no measure of an evaluation, or has no better direction."""
    check_measure(recipe.eval.best_by, recipe, "eval.best_by")


def check_measure(name: str, recipe: Recipe, place: str) -> None:
    """Raise RecipeError, naming `place`, for a name that is no measure, or one without a better direction."""
    known = [*recipe.rewards.weights, *(key for key in MEASURES if key not in recipe.rewards.weights)]
    directed = [key for key in known if measure_of(key).lower is not None]
    allowed = [*directed, *(f"{key}{VALID_ONLY}" for key in directed if key != "valid")]
    if name in allowed:
        return
    if name.removesuffix(VALID_ONLY) in known and name.removesuffix(VALID_ONLY) not in directed:
        raise RecipeError(
            f"'{place}' is {name}, of which neither more nor less is better; choose another measure, "
            "such as total"
        )
    near = difflib.get_close_matches(name, allowed, 1, 0.0)[0]
    raise RecipeError(f"'{place}': no measure is named '{name}'; the nearest is '{near}'")


def check_measured(recipe: Recipe, rigged: Sequence[bool]) -> None:
    """Raise RecipeError if `eval.best_by` needs ground truth and the held-out meshes offer none of it.

    rigged: of each held-out mesh, whether it has a rig.
    """
    name, own = recipe.eval.best_by, recipe.eval
    if name.removesuffix(VALID_ONLY) in {*recipe.rewards.weights, "total", "valid"}:
        return
    reason = None
    if not own.metrics:
        reason = "'eval.metrics' is false; set it to true"
    elif own.skeleton == "given" and not name.startswith(("skin_", "motion_")):
        reason = "with 'eval.skeleton' given all skeletons are the ground truth's; choose a skin measure"
    elif not any(rigged):
        reason = "no held-out mesh has a rig to compare with; hold out rigged meshes, or choose a reward"
    if reason is not None:
        raise RecipeError(f"'eval.best_by' is {name}, but {reason}")
