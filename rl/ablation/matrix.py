"""Reads an ablation's recipe and expands it into runs: every variant of a GRPO recipe with every seed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from data.run_lock import RUN_LOCK
from data.typed_recipe import PathText, RecipeError, build, read_recipe
from rl.child_runs.folder import DATA_FILE, LOG_FILE, TABLE_FILE
from rl.recipe import Recipe, check_recipe
from rl.recipe import load_recipe as load_grpo_recipe
from rl.run_files import RECIPE_FILE

BASE = "base"
UNTRAINED = "untrained"
PLOTS_FOLDER, PAGE_FILE = "plots", "report.html"
# What lies in the output directory besides the variants' folders.
_TAKEN = (UNTRAINED, PLOTS_FOLDER, PAGE_FILE, TABLE_FILE, DATA_FILE, LOG_FILE, RECIPE_FILE, RUN_LOCK)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# Keys that the ablation sets for each run, and what to set instead.
_SET_HERE = {
    "output_dir": "'output_dir' of the ablation",
    "train.seed": "'seeds'",
    "resume": "nothing, since runs always resume",
    "eval.before_and_after": "nothing, since the ablation evaluates the runs",
    "eval.compare": "nothing, since the ablation compares the runs",
}


@dataclass(frozen=True)
class AblationRecipe:
    """Variants of one GRPO recipe, trained with the same seeds and evaluated alike (docs/ablations.md)."""

    recipe: str
    """GRPO recipe that the variants change, relative to this file. Source: this project."""

    variants: dict[str, list[str]]
    """Overrides of the recipe by name of the variant, such as `no_coverage: [rewards.coverage.weight=0]`; at
    least one. `base`, without overrides, is always there and comes first. Names become folders: letters,
    digits, `_`, `-` and `.`. Source: this project."""

    overrides: list[str] = field(default_factory=list)
    """Overrides of the recipe for all variants and for the evaluation. Source: this project."""

    seeds: list[int] = field(default_factory=lambda: [42])
    """Values of `train.seed`; every variant is trained with each of them. Source: this project."""

    only: list[str] = field(default_factory=list)
    """Variants to train, besides `base`; empty for all. The tables show every variant that has a finished
    run. Source: this project."""

    jobs: int = 1
    """Runs at once; above 0. If more than one, each gets its share of the cores as OMP_NUM_THREADS, unless
    that is set. Source: this project."""

    launch: list[str] = field(default_factory=list)
    """Options of `python -m rl.launch` for each training run, such as
    `[--config_file, recipes/accelerate/two_cores.yaml]`; empty for one process. Source: this project."""

    report: Literal["one", "all", "none"] = "one"
    """The page `report.html`, written when the runs are finished: with the first finished seed of each
    variant, with all runs, or no page. Source: this project."""

    output_dir: PathText = "outputs/ablation"
    """Directory for the tables, the plots and the runs, each in `VARIANT/seed-N`. Source: this project."""

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise RecipeError(f"'jobs' must be above 0, not {self.jobs}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise RecipeError(f"'seeds' must be different numbers, at least one, not {self.seeds}")
        if min(self.seeds) < 0:
            raise RecipeError(f"'seeds' must not be negative, not {min(self.seeds)}")
        names = [name for name in self.variants if name != BASE]
        if not names:
            raise RecipeError("'variants' names no variant besides base; add one, with its overrides")
        if self.variants.get(BASE):
            raise RecipeError(
                "'variants.base' must have no overrides: it is the recipe itself; put them into 'overrides'"
            )
        folded = {BASE: BASE}
        for name in names:
            if _NAME.fullmatch(name) is None or name.lower() in _TAKEN:
                raise RecipeError(
                    f"'variants.{name}' cannot be a folder of the output directory, or is taken there; "
                    "choose another name, of letters, digits, '_', '-' and '.'"
                )
            if (other := folded.setdefault(name.lower(), name)) != name:
                raise RecipeError(
                    f"'variants' has '{other}' and '{name}', which differ in case only; rename one"
                )
        for name in self.only:
            if name not in (BASE, *names):
                raise RecipeError(f"'only' names '{name}', but the variants are {', '.join((BASE, *names))}")


@dataclass(frozen=True, eq=False)
class Subject:
    """A policy to evaluate: `recipe` evaluates it, and `folder` gets the result."""

    recipe: Recipe
    folder: Path


@dataclass(frozen=True, eq=False)
class Run:
    """One training run: its place in the matrix, its recipe, and the policies before and after it."""

    variant: str
    seed: int
    recipe: Recipe
    before: Subject
    after: Subject
    wanted: bool

    @property
    def folder(self) -> Path:
        """The run's output directory."""
        return Path(self.recipe.output_dir)

    @property
    def name(self) -> str:
        """Variant and seed."""
        return f"{self.variant} seed {self.seed}"


def load_recipe(path: str, overrides: Sequence[str] = ()) -> AblationRecipe:
    """Read and check an ablation's recipe and those of all its runs; raises RecipeError."""
    values = read_recipe(path, overrides)
    if "variants" not in values:
        raise RecipeError(f"{path} has no 'variants', so it is no ablation; see recipes/ablations/")
    recipe = build(AblationRecipe, values)
    recipe = replace(recipe, recipe=str(Path(path).parent / recipe.recipe))
    expand(recipe)
    return recipe


def expand(ablation: AblationRecipe) -> list[Run]:
    """The runs, seed by seed, so that an interrupted ablation has compared all variants with some seeds.

    All policies are evaluated as the base recipe says: with its rewards, meshes and decoding. Runs whose
    variants start from the same policy share the evaluation before training.

    Raises:
        RecipeError: an override cannot be used, or a variant changes nothing.
    """
    base = _load(ablation, ())
    variants = {BASE: base}
    for name, changes in ablation.variants.items():
        if name == BASE:
            continue
        _check_overrides(f"variants.{name}", changes, variant=True)
        try:
            variants[name] = _load(ablation, changes)
        except RecipeError as error:
            raise RecipeError(f"'variants.{name}': {error}") from error
        same = next((other for other, found in variants.items() if found == variants[name]), name)
        if same != name:
            raise RecipeError(f"'variants.{name}' is the same recipe as '{same}'; change or remove it")
    output = Path(ablation.output_dir)
    starts: dict[tuple[str, str | None], Subject] = {}
    for name, recipe in variants.items():
        start = recipe.policy
        folder = output / UNTRAINED if name == BASE else output / name / UNTRAINED
        starts.setdefault((start.path, start.skin_vae), _subject(base, start.path, start.skin_vae, folder))
    runs = []
    for seed in ablation.seeds:
        for name, recipe in variants.items():
            folder = output / name / f"seed-{seed}"
            runs.append(
                Run(
                    name,
                    seed,
                    _run_recipe(recipe, f"{name}-seed-{seed}", seed, folder),
                    starts[recipe.policy.path, recipe.policy.skin_vae],
                    _subject(base, str(folder / "policy"), None, folder / "evaluation"),
                    name == BASE or not ablation.only or name in ablation.only,
                )
            )
    return runs


def starts_of(runs: Sequence[Run]) -> Iterator[Subject]:
    """The policies before training that the wanted runs start from, each once."""
    seen: list[Subject] = []
    for run in runs:
        if run.wanted and run.before not in seen:
            seen.append(run.before)
            yield run.before


def _load(ablation: AblationRecipe, changes: Sequence[str]) -> Recipe:
    _check_overrides("overrides", ablation.overrides, variant=False)
    return load_grpo_recipe(ablation.recipe, [*ablation.overrides, *changes])


def _check_overrides(place: str, overrides: Sequence[str], variant: bool) -> None:
    """Refuse keys that the ablation sets itself and, in a variant, keys of the evaluation."""
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key in _SET_HERE:
            raise RecipeError(f"'{place}' sets '{key}'; use {_SET_HERE[key]}")
        if variant and key.partition(".")[0] == "eval":
            raise RecipeError(
                f"'{place}' sets '{key}', but all policies are evaluated alike; set it in 'overrides'"
            )


def _run_recipe(recipe: Recipe, name: str, seed: int, folder: Path) -> Recipe:
    train: dict[str, Any] = {**recipe.train, "seed": seed}
    if train.get("run_name") is None:
        train["run_name"] = name
    quiet = replace(recipe.eval, before_and_after=False, compare=())
    return check_recipe(replace(recipe, train=train, eval=quiet, output_dir=str(folder), resume=True))


def _subject(base: Recipe, policy: str, skin_vae: str | None, folder: Path) -> Subject:
    own = replace(base.policy, path=policy, skin_vae=skin_vae)
    plain = replace(base.eval, compare=())
    return Subject(replace(base, policy=own, eval=plain, output_dir=str(folder)), folder)
