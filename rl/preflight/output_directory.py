"""Checks that `output_dir` can be written and is free, and what an earlier run left there."""

from __future__ import annotations

import os
from pathlib import Path

from data.run_lock import refuse_live_owner
from data.typed_recipe import RecipeError
from rl.preflight.disk import existing_parent
from rl.preflight.finding import Finding, ok, problem, warning
from rl.recipe import Recipe
from rl.run_directory import plan_run


def output_finding(recipe: Recipe) -> Finding:
    """Whether the run can start, or resume, in its directory; writes nothing."""
    output = Path(recipe.output_dir)
    parent = existing_parent(output)
    if not os.access(parent, os.W_OK | os.X_OK):
        return problem("output_dir", f"'output_dir' {output}: {parent} cannot be written; choose another")
    try:
        refuse_live_owner(output)
        plan = plan_run(recipe)
    except RecipeError as error:
        return problem("output_dir", str(error))
    if plan.starts_over:
        return ok("output_dir", f"{output}, whose earlier run is moved to previous-N/ (resume=false)")
    if plan.checkpoint is None:
        return ok("output_dir", f"{output}, a new run")
    resumes = f"{output}, where the run resumes from {plan.checkpoint.name}"
    if plan.problems:
        return warning("output_dir", f"{resumes}; newer ones are damaged ({'; '.join(plan.problems)})")
    return ok("output_dir", resumes)
