"""Checks the recipe's meshes: how many were found, can be read, and are skipped."""

from __future__ import annotations

from data.formats.load import find_meshes
from data.mesh import MeshError
from data.sets.prepared import is_prepared
from policy.bundle import RigPolicy
from rl.given_skeleton import SkeletonRoom
from rl.meshes import RunMeshes, load_meshes, with_given_skeletons
from rl.preflight.finding import Finding, ok, problem, warning
from rl.recipe import Recipe


def check_meshes(recipe: Recipe, policy: RigPolicy | None) -> tuple[Finding, RunMeshes | None]:
    """Read all meshes as the run does, which reports skipped ones on stderr; the meshes, if any remain."""
    try:
        meshes = load_meshes(recipe)
        if policy is not None:
            meshes = with_given_skeletons(meshes, recipe, [SkeletonRoom.of(policy, recipe)])
    except MeshError as error:
        return problem("meshes", str(error)), None
    return mesh_finding(recipe, meshes, _found(recipe)), meshes


def mesh_finding(recipe: Recipe, meshes: RunMeshes, found: int | None) -> Finding:
    """One line on meshes; `found`: files that the patterns match, None where they are not files alone."""
    used = len(set(meshes.train) | set(meshes.held_out))
    text = f"{len(meshes.train)} to train on, {len(meshes.held_out)} held out"
    if found is None:
        return ok("meshes", text if recipe.data.meshes else f"{text} (procedural creatures)")
    if used < found:
        return warning("meshes", f"{text}, {found - used} of {found} files skipped (see above)")
    return ok("meshes", f"{text}, all {found} files readable")


def _found(recipe: Recipe) -> int | None:
    """Number of files if every mesh comes from a file of its own."""
    data = recipe.data
    if data.meshes is None:
        return None
    names: list[str] = []
    for entry in (data.meshes, data.eval_meshes):
        names += [entry] if isinstance(entry, str) else entry or []
    return None if any(map(is_prepared, names)) else len(find_meshes(names))
