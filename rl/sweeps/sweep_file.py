"""Reads a sweep file of W&B for `python -m rl.sweep`; refuses what only W&B's server can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from data.typed_recipe import RecipeError, build, reason_of, shown
from rl.sweeps.parameters import Parameter, grid_values, read_parameters

# Where a trial's held-out results are: `eval/<measure>` in metrics.jsonl, `after/<measure>` in after.json.
DURING, AFTER = "eval/", "after/"


@dataclass(frozen=True)
class MetricRecipe:
    """What makes a trial a good one."""

    name: str
    """A held-out measure of a trial: `eval/<measure>` of its last evaluation during training (needs
    `eval.every`), or `after/<measure>` of the one after it (needs `eval.before_and_after`). Source: W&B."""

    goal: Literal["minimize", "maximize"] = "minimize"
    """Which values are better; must fit the measure. Source: W&B."""

    target: float | None = None
    """Begin no more trials once one has reached this value; null for never. Source: W&B."""

    impute: Literal["latest", "best", "worst"] = "worst"
    """The value that `bayes` takes for a failed trial. Source: W&B."""

    @property
    def measure(self) -> str:
        """The measure without its place."""
        return self.name.partition("/")[2]

    def reaches_target(self, value: float) -> bool:
        """Whether a trial with this value ends the sweep; there is a target."""
        assert self.target is not None
        return value >= self.target if self.goal == "maximize" else value <= self.target

    def __post_init__(self) -> None:
        if not self.name.startswith((DURING, AFTER)):
            raise RecipeError(
                f"'metric.name' {self.name} is not measured on held-out meshes; use {DURING}<measure> or "
                f"{AFTER}<measure>, such as {DURING}unirig_j2j"
            )


@dataclass(frozen=True)
class SweepRecipe:
    """A sweep file of W&B (docs/sweeps.md); `jobs`, `seed` and `overrides` come from the command line."""

    method: Literal["grid", "random", "bayes"]
    """`grid`: all combinations, in the file's order, the last parameter changing fastest. `random`: drawn
    with `seed`, never the same trial twice. `bayes`: proposed by W&B's package `sweeps`. Source: W&B."""

    parameters: dict[str, Any]
    """Keys of the recipe, each with `value`, `values`, `min` and `max`, or a `distribution`. Source: W&B."""

    metric: MetricRecipe
    """What makes a trial a good one. Source: W&B."""

    program: str
    """The training program, `rl/train_grpo.py`, which `${program}` in `command` stands for. Source: W&B."""

    command: list[str]
    """How a trial is trained: `${env}`, `${interpreter}`, `${program}` (or `-m`, `rl.launch` and its
    options), the recipe, overrides, among them an `output_dir` with `$WANDB_RUN_ID`, and
    `${args_no_hyphens}` or `${args}`. Source: W&B."""

    run_cap: int | None = None
    """How many trials there are; above 0. null: all of a grid; the other methods need it. Source: W&B."""

    name: str | None = None
    """The sweep's name; null for the file's. Source: W&B."""

    description: str | None = None
    """For people. Source: W&B."""

    project: str | None = None
    """W&B project of trials that report to W&B; null for WANDB_PROJECT. Source: W&B."""

    entity: str | None = None
    """W&B team of trials that report to W&B; null for WANDB_ENTITY. Source: W&B."""

    early_terminate: dict[str, Any] | None = None
    """W&B only: must be null here. Source: W&B."""

    jobs: int = 1
    """Trials at once; above 0. If more than one, each gets its share of the cores as OMP_NUM_THREADS, unless
    that is set. Source: this project."""

    seed: int = 0
    """Seed of `random` and `bayes`; at least 0. Source: this project."""

    overrides: list[str] = field(default_factory=list)
    """Overrides of the recipe for every trial. Trials report nowhere unless one of these sets
    `train.report_to`. Source: this project."""

    def __post_init__(self) -> None:
        for name in ("run_cap", "jobs"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise RecipeError(f"'{name}' must be above 0, not {number}")
        if self.seed < 0:
            raise RecipeError(f"'seed' must not be negative, not {self.seed}")
        if self.early_terminate is not None:
            raise RecipeError(
                "'early_terminate' needs W&B's server; remove it, or use wandb sweep and wandb agent"
            )
        if self.method != "grid" and self.run_cap is None:
            raise RecipeError(f"'run_cap' is missing, and method {self.method} has no end; add run_cap=20")
        found = self.read_parameters()
        if self.method == "grid":
            for parameter in found:
                grid_values(parameter)
        for parameter in found:
            if parameter.key in ("output_dir", "resume"):
                raise RecipeError(
                    f"'parameters.{parameter.key}': every trial has its own directory and resumes; remove it"
                )
            for override in self.overrides:
                if override.partition("=")[0].strip() == parameter.key:
                    raise RecipeError(
                        f"override '{override}': '{parameter.key}' is a parameter of the sweep; remove one"
                    )

    def read_parameters(self) -> list[Parameter]:
        """`parameters`, nested ones flattened."""
        return read_parameters(self.parameters)


def load_recipe(path: str, overrides: Sequence[str] = ()) -> SweepRecipe:
    """Read a sweep file; overrides whose first key is none of its own go to every trial. RecipeError."""
    values = _read(Path(path))
    for name in ("jobs", "seed", "overrides"):
        if name in values:
            raise RecipeError(f"{path}: '{name}' is not part of W&B's format; pass it on the command line")
    own = {each.name for each in fields(SweepRecipe)} - {"parameters", "overrides"}
    extra = []
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise RecipeError(f"override '{override}' must have the form key=value, such as run_cap=4")
        section, _, rest = key.strip().partition(".")
        if section not in own:
            extra.append(override)
            continue
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise RecipeError(f"override '{override}' is not valid YAML; put the text in quotes") from error
        if not rest:
            values[section] = value
        elif isinstance(values.get(section, {}), dict):
            values[section] = {**values.get(section, {}), rest: value}
        else:
            raise RecipeError(
                f"override '{override}': '{section}' is {shown(values[section])}, not a section"
            )
    recipe = build(SweepRecipe, {**values, "overrides": extra})
    return recipe if recipe.name else replace(recipe, name=Path(path).stem)


def _read(path: Path) -> dict[str, Any]:
    """The file as plain values; not by OmegaConf, to which `${args}` is an interpolation."""
    if not path.is_file():
        raise RecipeError(f"sweep '{path}' does not exist; pass the path of a YAML file")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not a readable YAML file ({reason_of(error)}); fix it") from error
    if not isinstance(values, dict) or "parameters" not in values:
        raise RecipeError(f"{path} has no 'parameters', so it is no sweep; see recipes/sweeps/")
    return {str(key): value for key, value in values.items()}
