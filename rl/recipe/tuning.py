"""The recipe's section for tuning to one mesh, and what `rig.tune_steps` and `eval.tune_steps` refuse."""

from __future__ import annotations

from dataclasses import dataclass

from data.typed_recipe import RecipeError, require_positive


@dataclass(frozen=True)
class TuningRecipe:
    """Tuning the policy to one mesh, for `rig.tune_steps` and `eval.tune_steps`."""

    learning_rate: float = 3.0e-4
    """AdamW's learning rate; above 0. Source: this project, on the small policy."""

    imitated: int = 8
    """Each step raises the probability of this many rigs, the best found on the mesh so far; above 0. Source:
    this project."""

    def __post_init__(self) -> None:
        require_positive("tuning", self, "learning_rate", "imitated")


def check_tune_steps(section: str, steps: int, rigs_key: str, rigs: int, temperature: float) -> None:
    """Refuse (RecipeError) tuning steps without several different rigs to choose from."""
    if steps and rigs == 1:
        raise RecipeError(
            f"'{section}.tune_steps' is {steps}, but a step with a single rig has none to prefer; set "
            f"{section}.{rigs_key}=16, or {section}.tune_steps=0"
        )
    if steps and temperature == 0:
        raise RecipeError(
            f"'{section}.tune_steps' is {steps}, but every rig of a step would be the same; set an "
            f"'{section}.temperature' above 0, or {section}.tune_steps=0"
        )
