"""`python -m policy.input_benchmark RECIPE`: training examples per second of one loading process, by part."""

from __future__ import annotations

import cProfile
import pstats
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from data.command_line import run_command
from data.typed_recipe import read_recipe
from policy import pretrain_skin_vae, pretrain_tokenrig
from policy.pretrain_skin_vae import BoneExamples, SkinVAERecipe
from policy.pretrain_tokenrig import TokenizedMeshes, TokenRigRecipe
from policy.tokens.vocabulary import Vocabulary

EXAMPLES = 200
# Parts of an example by the function that makes them; those that call another part include it.
PARTS = {
    "make_creature": "procedural creature",
    "read_rig_npz": "prepared rig from its file",
    "augmented": "augmentations",
    "make_example": "points and weights",
    "skeleton_example": "points of a skeleton's example",
    "weld_surface": "  of these: welding",
    "skin_points": "points of each bone",
    "near_bones": "  of these: those near it",
    "tokenize_skeleton": "skeleton tokens",
}


@dataclass(frozen=True)
class InputSpeed:
    """Examples per second of processor time, and milliseconds per example of each of PARTS that took part.

    The parts are measured under a profiler, which makes them slower.
    """

    name: str
    per_second: float
    parts: dict[str, float]


def load_recipe(path: str, overrides: Sequence[str]) -> SkinVAERecipe | TokenRigRecipe:
    """A recipe of either stage, told apart by `language_model`; raises RecipeError."""
    if "language_model" in read_recipe(path, overrides):
        return pretrain_tokenrig.load_recipe(path, overrides)
    return pretrain_skin_vae.load_recipe(path, overrides)


def speed_of(name: str, examples: Dataset[Any], count: int) -> InputSpeed:
    """Measure `count` examples, after ten that compile kernels and fill caches."""
    for index in range(10):
        examples[index]
    start = time.process_time()
    for index in range(10, 10 + count):
        examples[index]
    seconds = time.process_time() - start
    with cProfile.Profile(time.process_time) as profile:
        for index in range(10, 10 + count):
            examples[index]
    spent: dict[str, float] = {}
    stats: dict[Any, Any] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    for (_, _, function), (_, _, _, cumulative, _) in stats.items():
        if function in PARTS:
            spent[function] = spent.get(function, 0.0) + cumulative / count * 1000
    return InputSpeed(name, count / seconds, {name: spent[name] for name in PARTS if name in spent})


def measure(recipe: SkinVAERecipe | TokenRigRecipe, count: int = EXAMPLES) -> list[InputSpeed]:
    """Speeds of a recipe's examples; in stage 2 of skeletons alone, if it has such steps, and whole rigs."""
    torch.set_num_threads(1)
    if isinstance(recipe, SkinVAERecipe):
        return [speed_of("bones", BoneExamples(recipe), count)]
    whole = speed_of("whole rigs", TokenizedMeshes(recipe, Vocabulary()), count)
    if not recipe.skeleton_only_steps:
        return [whole]
    skeletons = TokenizedMeshes(recipe, Vocabulary(), skeletons=sys.maxsize)
    return [speed_of("skeletons alone", skeletons, count), whole]


def report(recipe: SkinVAERecipe | TokenRigRecipe) -> None:
    """Print the speeds and their parts."""
    for speed in measure(recipe):
        step = recipe.loop.batch_size * recipe.loop.gradient_accumulation_steps
        print(
            f"{speed.name}: {speed.per_second:.0f} examples/s per loading process "
            f"({1000 / speed.per_second:.1f} ms each; a step takes {step})"
        )
        for name, milliseconds in speed.parts.items():
            print(f"  {milliseconds:5.1f} ms  {PARTS[name]}")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: `python -m policy.input_benchmark recipes/tokenrig_small.yaml`."""
    return run_command(__doc__ or "", load_recipe, report, argv, "python -m policy.input_benchmark")


if __name__ == "__main__":
    sys.exit(main())
