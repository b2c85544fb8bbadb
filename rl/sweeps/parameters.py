"""Parameters of a W&B sweep file: their distributions, a random value of each, and the values of a grid."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.typed_recipe import RecipeError, shown

_NAME = re.compile(r"[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*)*")
_RANGE, _BELL, _BETA = ("min", "max"), {"mu": 0.0, "sigma": 1.0}, {"a": 1.0, "b": 1.0}
_STEP = {"q": 1.0}
# By distribution: the keys it must have, and the others with their defaults.
_DISTRIBUTIONS: dict[str, tuple[Sequence[str], Mapping[str, float]]] = {
    "constant": (("value",), {}),
    "categorical": (("values",), {}),
    "categorical_w_probabilities": (("values", "probabilities"), {}),
    "int_uniform": (_RANGE, {}),
    "uniform": (_RANGE, {}),
    "q_uniform": (_RANGE, _STEP),
    "log_uniform": (_RANGE, {}),
    "log_uniform_values": (_RANGE, {}),
    "q_log_uniform": (_RANGE, _STEP),
    "q_log_uniform_values": (_RANGE, _STEP),
    "inv_log_uniform": (_RANGE, {}),
    "inv_log_uniform_values": (_RANGE, {}),
    "normal": ((), _BELL),
    "q_normal": ((), _BELL | _STEP),
    "log_normal": ((), _BELL),
    "q_log_normal": ((), _BELL | _STEP),
    "beta": ((), _BETA),
    "q_beta": ((), _BETA | _STEP),
}


@dataclass(frozen=True)
class Parameter:
    """A parameter: its name, one part per level of nesting, and its distribution with all settings."""

    path: tuple[str, ...]
    distribution: str
    settings: Mapping[str, Any]

    @property
    def key(self) -> str:
        """The dotted key of the recipe."""
        return ".".join(self.path)

    @property
    def choices(self) -> Sequence[Any] | None:
        """All values that can be drawn, None if there are too many to list."""
        if self.distribution == "constant":
            return [self.settings["value"]]
        if self.distribution == "categorical":
            return list(self.settings["values"])
        if self.distribution == "categorical_w_probabilities":
            pairs = zip(self.settings["values"], self.settings["probabilities"], strict=True)
            return [value for value, probability in pairs if probability]
        if self.distribution == "int_uniform":
            return range(self.settings["min"], self.settings["max"] + 1)
        return None


def read_parameters(values: Mapping[str, Any]) -> list[Parameter]:
    """The section `parameters` of a sweep file, nested ones flattened; raises RecipeError."""
    found = list(_read(values, ()))
    keys = [parameter.key for parameter in found]
    for key in keys:
        if keys.count(key) > 1:
            raise RecipeError(f"'parameters' has '{key}' twice, nested and dotted; remove one")
    if all(parameter.distribution == "constant" for parameter in found):
        raise RecipeError("'parameters' has constants only; give one of them several values")
    return found


def nested(values: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """Values by path as W&B's agent gets them: nested parameters are mappings."""
    result: dict[str, Any] = {}
    for path, value in values.items():
        place = result
        for part in path[:-1]:
            place = place.setdefault(part, {})
        place[path[-1]] = value
    return result


def draw(parameter: Parameter, generator: np.random.Generator) -> Any:
    """A random value, as a plain Python object.

    With U uniform between min and max: `log_uniform` is exp(U), `inv_log_uniform` exp(−U), and the forms
    with `_values` take min and max of the result. `q_…` rounds to a multiple of q, to an integer if q is one.
    """
    kind, own = parameter.distribution, parameter.settings
    choices = parameter.choices
    if kind == "categorical_w_probabilities":
        return own["values"][int(generator.choice(len(own["values"]), p=own["probabilities"]))]
    if choices is not None:
        return choices[int(generator.integers(len(choices)))]
    plain = kind.removeprefix("q_")
    if plain == "uniform":
        value = generator.uniform(own["min"], own["max"])
    elif plain == "log_uniform":
        value = math.exp(generator.uniform(own["min"], own["max"]))
    elif plain == "inv_log_uniform":
        value = math.exp(-generator.uniform(own["min"], own["max"]))
    elif plain == "log_uniform_values":
        value = math.exp(generator.uniform(math.log(own["min"]), math.log(own["max"])))
    elif plain == "inv_log_uniform_values":
        value = math.exp(-generator.uniform(-math.log(own["max"]), -math.log(own["min"])))
    elif plain == "beta":
        value = generator.beta(own["a"], own["b"])
    else:
        value = generator.normal(own["mu"], own["sigma"])
        value = math.exp(value) if plain == "log_normal" else value
    if plain.endswith("_values"):  # exp and log are not exact
        value = min(max(value, own["min"]), own["max"])
    return _stepped(value, own["q"]) if kind.startswith("q_") else float(value)


def grid_values(parameter: Parameter) -> Sequence[Any]:
    """The values of a parameter in a grid, as W&B's: those of q_uniform end before `max`.

    Raises RecipeError for a distribution that has no values to list.
    """
    own, choices = parameter.settings, parameter.choices
    if parameter.distribution == "q_uniform":
        count = math.ceil((own["max"] - own["min"]) / own["q"] - 1e-9)
        whole = isinstance(own["q"], int) and isinstance(own["min"], int)
        values = [own["min"] + i * own["q"] for i in range(count)]
        return values if whole else [_rounded(value) for value in values]
    if choices is None or parameter.distribution == "categorical_w_probabilities":
        raise RecipeError(
            f"'parameters.{parameter.key}' is {parameter.distribution}, which has no grid; list its "
            "'values', or set method: random"
        )
    return choices


def _read(values: Mapping[str, Any], outer: tuple[str, ...]) -> list[Parameter]:
    if not values:
        raise RecipeError(f"'{'.'.join(('parameters', *outer))}' is empty; name a key of the recipe in it")
    found = []
    for name, own in values.items():
        path = (*outer, str(name))
        place = ".".join(("parameters", *path))
        if _NAME.fullmatch(str(name)) is None:
            raise RecipeError(f"'{place}' is no key of a recipe; write it as train.learning_rate")
        if not isinstance(own, Mapping):
            raise RecipeError(f"'{place}' must be a section such as {{values: [1, 2]}}, not {shown(own)}")
        if set(own) == {"parameters"} and isinstance(own["parameters"], Mapping):
            found += _read(own["parameters"], path)
        else:
            found.append(_parameter(path, place, own))
    return found


def _parameter(path: tuple[str, ...], place: str, own: Mapping[str, Any]) -> Parameter:
    kind = own.get("distribution") or _inferred(place, own)
    if kind not in _DISTRIBUTIONS:
        raise RecipeError(f"'{place}.distribution' must be one of {', '.join(_DISTRIBUTIONS)}, not {kind}")
    required, optional = _DISTRIBUTIONS[kind]
    for key in own:
        if key not in ("distribution", *required, *optional):
            raise RecipeError(f"'{place}.{key}' does not belong to {kind}; remove it")
    for key in required:
        if key not in own:
            raise RecipeError(f"'{place}' is {kind} and needs '{key}'; add it")
    settings = {
        key: own.get(key, default) for key, default in {**dict.fromkeys(required), **optional}.items()
    }
    _check(place, kind, settings)
    return Parameter(path, kind, settings)


def _inferred(place: str, own: Mapping[str, Any]) -> str:
    """The distribution that W&B takes if none is named."""
    if "value" in own:
        return "constant"
    if "values" in own:
        return "categorical_w_probabilities" if "probabilities" in own else "categorical"
    if not {"min", "max"} <= set(own):
        raise RecipeError(f"'{place}' needs 'value', 'values', 'min' and 'max', or 'distribution'")
    whole = [isinstance(own[key], int) for key in _RANGE]
    if all(whole):
        return "int_uniform"
    if any(whole):
        raise RecipeError(
            f"'{place}' has an integer and a number with a point as 'min' and 'max'; write both alike, or "
            "name the distribution"
        )
    return "uniform"


def _check(place: str, kind: str, own: Mapping[str, Any]) -> None:
    """Raise RecipeError for settings that the distribution cannot have."""
    if "values" in own and (not isinstance(own["values"], list) or not own["values"]):
        raise RecipeError(f"'{place}.values' must be a list with at least one value")
    if "probabilities" in own:
        _check_probabilities(place, own["probabilities"], len(own["values"]))
    for key in (name for name in ("min", "max", "mu", "sigma", "a", "b", "q") if name in own):
        number = own[key]
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            hint = "; YAML reads 1e-5 as text: write 1.0e-5" if isinstance(number, str) else ""
            raise RecipeError(f"'{place}.{key}' must be a number, not {shown(number)}{hint}")
        if kind == "int_uniform" and not isinstance(number, int):
            raise RecipeError(f"'{place}.{key}' must be an integer for int_uniform, not {number}")
        if (key in ("a", "b", "q") or (key == "min" and kind.endswith("_values"))) and number <= 0:
            raise RecipeError(f"'{place}.{key}' must be above 0 for {kind}, not {number}")
        if key == "sigma" and number < 0:
            raise RecipeError(f"'{place}.sigma' must not be negative, not {number}")
    if "min" in own and own["min"] >= own["max"]:
        raise RecipeError(f"'{place}.min' {own['min']} must be below 'max' {own['max']}")


def _check_probabilities(place: str, given: Any, count: int) -> None:
    numbers = isinstance(given, list) and all(
        isinstance(item, (int, float)) and not isinstance(item, bool) and item >= 0 for item in given
    )
    if not numbers or len(given) != count or not math.isclose(sum(given), 1, abs_tol=1e-8):
        raise RecipeError(
            f"'{place}.probabilities' must be {count} numbers with the sum 1, not {shown(given)}"
        )


def _stepped(value: float, step: float) -> float:
    multiple = round(value / step)
    return multiple * step if isinstance(step, int) else _rounded(multiple * step)


def _rounded(value: float) -> float:
    """Without the last digits, so that 3 · 0.1 is 0.3."""
    return float(f"{value:.12g}")
