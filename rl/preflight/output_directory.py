"""Checks that `output_dir` can be written, and what an earlier run left there."""

from __future__ import annotations

import os
from pathlib import Path

from data.typed_recipe import RecipeError, read_recipe, to_mapping
from policy.policy_folder import PolicyError, check_replaceable
from rl.checkpoints import CHECKPOINTS_FOLDER, find_checkpoints
from rl.preflight.disk import existing_parent
from rl.preflight.finding import Finding, ok, problem
from rl.recipe import Recipe
from rl.run_directory import POLICY_FOLDER, RECIPE_FILE, first_difference


def output_finding(recipe: Recipe) -> Finding:
    """Whether the run can start, or resume, in its directory; writes nothing."""
    output = Path(recipe.output_dir)
    parent = existing_parent(output)
    if not parent.is_dir():
        return problem("output_dir", f"'output_dir' {output}: {parent} is a file; choose another directory")
    if not os.access(parent, os.W_OK | os.X_OK):
        return problem("output_dir", f"'output_dir' {output}: {parent} cannot be written; choose another")
    try:
        check_replaceable(output / POLICY_FOLDER)
    except PolicyError as error:
        return problem("output_dir", f"'output_dir': {error}")
    checkpoints = find_checkpoints(output / CHECKPOINTS_FOLDER)
    if not checkpoints:
        return ok("output_dir", f"{output}, a new run")
    if not recipe.resume:
        return ok("output_dir", f"{output}, whose earlier run is moved to previous-N/ (resume=false)")
    try:
        written = output / RECIPE_FILE
        key = first_difference(read_recipe(written), to_mapping(recipe)) if written.is_file() else None
    except RecipeError as error:
        return problem("output_dir", str(error))
    if key is not None:
        return problem(
            "output_dir",
            f"'output_dir' {output} holds a run with a different '{key}'; choose another directory, or start "
            "over with resume=false (the earlier checkpoints are kept in previous-N/)",
        )
    return ok("output_dir", f"{output}, where the run resumes from {checkpoints[-1].name}")
