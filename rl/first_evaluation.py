"""Keeps the evaluation before training with a fingerprint of all it depends on, and reuses it on resume."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from data.manifest import file_hash
from data.sets.dataset import MeshSample
from data.typed_recipe import to_mapping
from policy.policy_folder import adapter_base
from rl.evaluation_results import Evaluation, read_evaluation, write_evaluation
from rl.recipe import PolicyRecipe, Recipe
from rl.run_files import BEFORE_FILE

FINGERPRINT_FILE = "before.fingerprint"
# Sections and keys of the recipe that decide the result, besides the policy's and the meshes' content.
_SECTIONS = ("eval", "rewards", "deformation", "rollout")
_DURING_TRAINING = ("every", "every_samples", "every_meshes", "best_by")  # keys of `eval` that do not
_PICTURES = ("sheets",)  # and those that change no number


def first_evaluation(
    recipe: Recipe, samples: Sequence[MeshSample], evaluate: Callable[[], Evaluation]
) -> Evaluation:
    """`before.json` in `output_dir` if it is of this policy and these meshes, otherwise a new one.

    `samples` are the held-out meshes. It is not reused with `resume` false.
    """
    output = Path(recipe.output_dir)
    path, mark = output / BEFORE_FILE, output / FINGERPRINT_FILE
    now = fingerprint(recipe, samples)
    if recipe.resume and path.is_file():
        if mark.is_file() and mark.read_text() == now and (found := read_evaluation(path)) is not None:
            print(f"reusing {path}: same policy, meshes and evaluation", file=sys.stderr)
            return found
        print(f"evaluating again: {path} is of another policy, other meshes or settings", file=sys.stderr)
    mark.unlink(missing_ok=True)  # so that it never describes another file
    evaluation = evaluate()
    write_evaluation(evaluation, path)
    mark.write_text(now)
    return evaluation


def fingerprint(recipe: Recipe, samples: Sequence[MeshSample]) -> str:
    """SHA-256 over everything the evaluation depends on: files of the policy, meshes, recipe, version."""
    total = hashlib.sha256()
    total.update(json.dumps(decisive_settings(recipe), sort_keys=True, default=str).encode())
    for line in _policy_files(recipe.policy):
        total.update(line.encode())
    for sample in samples:
        total.update(sample.name.encode())
        rig = sample.rig
        truth = () if rig is None else (rig.joints, rig.parents, rig.weights)
        for array in (sample.mesh.vertices, sample.mesh.faces, sample.points, sample.normals, *truth):
            total.update(array.tobytes())
    return total.hexdigest()


def decisive_settings(recipe: Recipe) -> dict[str, Any]:
    """What an evaluation depends on besides the policy and the meshes: keys of the recipe, and code."""
    values = to_mapping(recipe)
    for key in (*_DURING_TRAINING, *_PICTURES):
        del values["eval"][key]
    known: dict[str, Any] = {
        **{name: values[name] for name in _SECTIONS},
        "grammar": recipe.policy.grammar,
        "class": recipe.data.class_name,
        "length": recipe.train["max_completion_length"],
        "decoder": recipe.workers.decoder_dtype,
        "version": _version(),
    }
    if recipe.rewards.custom_weights:
        from rewards.custom import source_file

        known["code"] = [file_hash(source_file(place)) for place in recipe.rewards.custom_weights]
    return known


def policy_digest(policy: PolicyRecipe) -> str:
    """SHA-256 over the files of a policy, of its adapter's base and of a skin VAE of the recipe's."""
    return hashlib.sha256("".join(_policy_files(policy)).encode()).hexdigest()


def _policy_files(recipe: PolicyRecipe) -> Iterator[str]:
    """Name and digest of each file that belongs to the policy."""
    policy = Path(recipe.path)
    base = adapter_base(policy)
    vae = recipe.skin_vae
    for folder in [policy, *([base] if base is not None else []), *([Path(vae)] if vae is not None else [])]:
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".json", ".safetensors") and path.is_file():
                yield f"{path.relative_to(folder)} {file_hash(path)}"


def _version() -> str | None:
    try:
        return version("tokenrig-rl")
    except PackageNotFoundError:
        return None
