"""Typed recipes: YAML files with overlays and dotted overrides, checked against dataclasses."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

T = TypeVar("T")


class RecipeError(ValueError):
    """A recipe or override that cannot be used; the message names the key and the fix."""


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a recipe with its overlays and dotted overrides into one plain mapping.

    A recipe may begin with `defaults: [base.yaml, …]` (paths beside the recipe); later entries,
    then the recipe itself, then `overrides` (`key.sub=value`, the value read as YAML) win.

    Raises:
        RecipeError: the file is missing, is not YAML, has a cycle of defaults, or an override is malformed.
    """
    config = _read_file(Path(path), ())
    for override in overrides:
        key, separator, _ = override.partition("=")
        if not separator or not key.strip():
            raise RecipeError(f"override '{override}' is not of the form key.sub=value")
    try:
        merged = OmegaConf.merge(config, OmegaConf.from_dotlist(list(overrides)))
        plain = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{path}: {_first_line(error)}") from error
    if not isinstance(plain, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of sections, not a {type(plain).__name__}")
    return {str(key): value for key, value in plain.items()}


def _read_file(path: Path, seen: tuple[Path, ...]) -> DictConfig:
    if path.resolve() in seen:
        raise RecipeError(f"{path}: its 'defaults' lead back to itself; remove one of them")
    if not path.is_file():
        raise RecipeError(f"recipe '{path}' does not exist; give the path of a YAML file such as recipes/")
    try:
        config = OmegaConf.load(path)
    except (OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not a readable YAML file ({_first_line(error)})") from error
    if not isinstance(config, DictConfig):
        raise RecipeError(f"{path}: a recipe is a mapping of sections, such as 'train:' with keys below it")
    bases = config.pop("defaults", [])
    merged = OmegaConf.create({})
    for base in [bases] if isinstance(bases, str) else bases:
        merged = OmegaConf.merge(merged, _read_file(path.parent / str(base), (*seen, path.resolve())))
    result = OmegaConf.merge(merged, config)
    assert isinstance(result, DictConfig)
    return result


def build(schema: type[T], values: Mapping[str, Any], path: str = "") -> T:
    """Make a dataclass from a mapping, strictly: every key known, every value of the field's type.

    Integers are accepted for floats; nothing else is converted. Nested dataclasses are built from
    nested mappings. `path` is the dotted place of `values` in the recipe, for messages.

    Raises:
        RecipeError: an unknown key (with the nearest valid one), a wrong type, a missing required key.
    """
    check_keys(schema, values, path)
    hints = typing.get_type_hints(schema)
    arguments = {}
    for field in dataclasses.fields(schema):  # type: ignore[arg-type]
        place = f"{path}.{field.name}" if path else field.name
        if field.name in values:
            arguments[field.name] = _convert(hints[field.name], values[field.name], place)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise RecipeError(f"'{place}' is missing; add it to the recipe ({_type_name(hints[field.name])})")
    try:
        return schema(**arguments)
    except RecipeError:
        raise
    except ValueError as error:
        raise RecipeError(f"'{path or schema.__name__}': {_first_line(error)}") from error


def check_keys(schema: type, values: Mapping[str, Any], path: str = "") -> None:
    """Refuse keys of `values` that are no field of the dataclass `schema`, naming the nearest one."""
    known = [field.name for field in dataclasses.fields(schema) if field.init]
    for key in values:
        if key not in known:
            place = f"{path}.{key}" if path else str(key)
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
            prefix = f"{path}." if path else ""
            raise RecipeError(f"unknown key '{place}'; the nearest valid key is '{prefix}{near[0]}'")


def check_types(schema: type, values: Mapping[str, Any], path: str) -> None:
    """Check `values` against the dataclass `schema` without building it (for foreign dataclasses)."""
    check_keys(schema, values, path)
    hints = typing.get_type_hints(schema)
    for key, value in values.items():
        _convert(hints[key], value, f"{path}.{key}")


def to_mapping(recipe: Any) -> dict[str, Any]:
    """The plain nested mapping of a recipe dataclass; `build` takes it back."""
    plain = dataclasses.asdict(recipe)
    return _plain(plain)


def write_recipe(recipe: Any, path: str | Path) -> None:
    """Write a resolved recipe as YAML; reading it gives the same recipe again."""
    Path(path).write_text(to_yaml(recipe))


def to_yaml(recipe: Any) -> str:
    """YAML text of a recipe with every default filled in."""
    return yaml.safe_dump(to_mapping(recipe), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _convert(hint: Any, value: Any, place: str) -> Any:
    """Return `value` as the type `hint` asks for, or raise RecipeError naming `place`."""
    for option in _options(hint):
        accepted, converted = _try(option, value, place)
        if accepted:
            return converted
    shown = repr(value) if not isinstance(value, Mapping) else "a section of keys"
    raise RecipeError(f"'{place}' must be {_type_name(hint)}, not {shown}")


def _options(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(option for part in typing.get_args(hint) for option in _options(part))
    return (hint,)


def _try(hint: Any, value: Any, place: str) -> tuple[bool, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True, value
    if hint is type(None):
        return value is None, None
    if origin is typing.Literal:
        return value in arguments and not isinstance(value, float), value
    if dataclasses.is_dataclass(hint):
        return (
            (True, build(typing.cast(type, hint), value, place))
            if isinstance(value, Mapping)
            else (False, None)
        )
    if origin in (tuple, list) or hint in (tuple, list):
        if not isinstance(value, (list, tuple)):
            return False, None
        item = arguments[0] if arguments else Any
        items = [_convert(item, entry, f"{place}[{i}]") for i, entry in enumerate(value)]
        return True, tuple(items) if (origin or hint) is tuple else items
    if origin is dict or hint is dict:
        return isinstance(value, Mapping), dict(value) if isinstance(value, Mapping) else None
    if hint is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number, float(value) if number else None
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    if isinstance(hint, type):
        # Enums of a foreign schema are written by value; the schema itself refuses unknown ones.
        is_enum = issubclass(hint, str) and isinstance(value, str)
        return is_enum or isinstance(value, hint), value
    return False, None


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(hint))
    names = []
    for option in _options(hint):
        origin = typing.get_origin(option)
        if option is type(None):
            names.append("null")
        elif origin is typing.Literal:
            names.append(_type_name(option))
        elif dataclasses.is_dataclass(option):
            names.append("a section of keys")
        elif origin in (list, tuple):
            names.append("a list")
        else:
            names.append(getattr(origin or option, "__name__", str(option)))
    return " or ".join(dict.fromkeys(names))


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
