"""The `command` of a sweep file: what W&B's agent makes of it for a trial, and the recipe in it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from data.typed_recipe import RecipeError
from rl.sweeps.sweep_file import SweepRecipe

TRAIN, LAUNCH = "rl.train_grpo", "rl.launch"
_PROGRAMS = {"rl/train_grpo.py": TRAIN, "rl/launch.py": LAUNCH}
_INTERPRETERS = ("${interpreter}", "python", "python3")


def expand(sweep: SweepRecipe, values: Mapping[str, Any]) -> list[str]:
    """The arguments of `python -m` for a trial with these values, as W&B's agent expands the command.

    Then come the overrides for all trials, and before them `train.report_to=none`: no account is needed.

    Raises RecipeError for a command that rl.sweep cannot run.
    """
    flags = [f"{name}={value}" for name, value in values.items()]
    macros = {
        "${program}": [sweep.program],
        "${args}": [f"--{flag}" for flag in flags],
        "${args_no_hyphens}": flags,
    }
    tokens = [_variables(token) for token in sweep.command]
    if tokens[:1] == ["${env}"]:
        tokens = tokens[1:]
    if tokens[:1] and tokens[0] in _INTERPRETERS:
        tokens = tokens[1:]
    else:
        raise RecipeError("'command' must begin with ${env} and ${interpreter}, as recipes/sweeps/ has it")
    if not {"${args}", "${args_no_hyphens}"} & set(tokens):
        raise RecipeError("'command' does not pass the parameters; add ${args_no_hyphens} at its end")
    words: list[str] = []
    for token in tokens:
        if token.startswith("${") and token.endswith("}") and token not in macros:
            raise RecipeError(
                f"'command' has {token}, which the training command cannot read; use ${{args_no_hyphens}}"
            )
        words += macros.get(token, [token])
    if words[0] == "-m":
        module, words = words[1] if len(words) > 1 else "", words[2:]
    else:
        module, words = _PROGRAMS.get(os.path.normpath(words[0]), ""), words[1:]
    if module not in (TRAIN, LAUNCH):
        raise RecipeError(
            "'command' runs another program than rl/train_grpo.py or -m rl.launch; use one of them"
        )
    return [module, *words, "train.report_to=none", *sweep.overrides]


def _variables(token: str) -> str:
    """A word of the command with `${envvar:NAME}` replaced: by the name if it is not set, as W&B does."""
    before, found, rest = token.partition("${envvar:")
    if not found or "}" not in rest:
        return token
    name, _, after = rest.partition("}")
    return f"{before}{os.environ.get(name, name)}{_variables(after)}"


def recipe_of(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The recipe and its overrides among the arguments of `python -m`; raises RecipeError."""
    module, *words = arguments
    if module == LAUNCH:
        from rl.launch import parse_options  # takes seconds

        options = parse_options(words)
        if options.module:
            raise RecipeError("'command' launches another program than GRPO; remove -m after rl.launch")
        words = options.training_script_args
    options_given = [word for word in words if word.startswith("-") and "=" not in word]
    if options_given:
        raise RecipeError(
            f"'command' has the option {options_given[0]}, with which nothing is trained; remove it"
        )
    plain = [word.removeprefix("--") for word in words]
    recipes = [word for word in plain if "=" not in word]
    if len(recipes) != 1:
        raise RecipeError(
            "'command' must name one recipe, before the parameters, such as recipes/quickstart.yaml"
        )
    return recipes[0], [word for word in plain if "=" in word]
