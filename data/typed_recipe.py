"""Typed recipes: YAML files with overlays and dotted overrides, checked against dataclasses."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data.atomic import write_atomic
from data.file_content import stand_in_at

T = TypeVar("T")

# The type of a recipe field that holds a path: `build` expands `~` and environment variables in it.
PathText = Annotated[str, "path"]

# Plain scalars that YAML 1.1 reads as numbers of another base.
_OCTAL = re.compile(r"[-+]?0[0-7_]*[0-7]")
_BASE_60 = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")


class RecipeError(ValueError):
    """A recipe or override that cannot be used; the message names the key and the fix."""


def require_positive(section: str, owner: object, *names: str) -> None:
    """Raise RecipeError for the first of the fields `names` of `owner` that is not above 0."""
    for name in names:
        if not getattr(owner, name) > 0:
            raise RecipeError(f"'{section}.{name}' must be above 0, not {getattr(owner, name)}")


def require_not_negative(section: str, owner: object, *names: str) -> None:
    """Raise RecipeError for the first of the fields `names` of `owner` that is below 0."""
    for name in names:
        if not getattr(owner, name) >= 0:
            raise RecipeError(f"'{section}.{name}' must not be negative, not {getattr(owner, name)}")


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a recipe with its overlays and dotted overrides into one plain mapping.

    A recipe may start with `defaults: [base.yaml, …]`, paths relative to the recipe. Later entries override
    earlier ones, the recipe overrides its defaults, and `overrides` (`key.sub=value`) override the recipe.
    Mappings are merged; lists and other values are replaced. An override's value is parsed as YAML, or taken
    as text if it is not valid YAML (`**/*.glb`). `None`, as Python programs write it, is null.

    Raises:
        RecipeError: the file is missing or not YAML, its defaults form a cycle, or an override is malformed.
    """
    merged = _read_file(Path(path), ())
    try:
        for override in overrides:
            merged = OmegaConf.merge(merged, _read_override(override))
        plain = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise RecipeError(f"{path}: {reason_of(error)}") from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _read_file(path: Path, trail: tuple[Path, ...]) -> DictConfig:
    """The file merged over its defaults; `trail` is the chain of files that led here."""
    place = f", listed in the defaults of '{trail[-1]}'," if trail else ""
    if path.resolve() in [file.resolve() for file in trail]:
        raise RecipeError(f"{trail[-1]}: its 'defaults' form a cycle through '{path}'; remove one of them")
    if not path.is_file():
        raise RecipeError(f"recipe '{path}'{place} does not exist; pass the path of a YAML file")
    try:
        if (found := stand_in_at(path)) is not None:
            raise RecipeError(found)
        config = OmegaConf.load(path)
        _refuse_other_bases(path.read_text(encoding="utf-8"), str(path))
    except (OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise RecipeError(f"{path}: not a readable YAML file ({reason_of(error)}); fix it") from error
    if not isinstance(config, DictConfig):
        raise RecipeError(
            f"{path}: a recipe must be a mapping of sections, such as 'train:' with keys below it"
        )
    merged = OmegaConf.create({})
    try:
        for base in _bases(config.pop("defaults", []), path):
            merged = OmegaConf.merge(merged, _read_file(path.parent / base, (*trail, path)))
        result = OmegaConf.merge(merged, config)
    except OmegaConfBaseException as error:
        raise RecipeError(f"{path}: {reason_of(error)}") from error
    assert isinstance(result, DictConfig)
    return result


def _bases(value: Any, path: Path) -> list[str]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, (list, ListConfig)) or not all(isinstance(name, str) for name in names):
        raise RecipeError(f"{path}: 'defaults' must be a list of recipe files, such as [base.yaml]")
    return list(names)


def _read_override(override: str) -> DictConfig:
    key, separator, value = override.partition("=")
    if not separator or not all(part.strip() for part in key.split(".")):
        raise RecipeError(
            f"override '{override}' must have the form key.sub=value, such as train.max_steps=10"
        )
    if value.strip() == "None":
        override = f"{key}=null"
    try:
        config = OmegaConf.from_dotlist([override])
        _refuse_other_bases(value, f"override '{override}'")
        return config
    except yaml.YAMLError:
        # Such as a glob pattern: '*' starts an alias in YAML. `build` refuses text in the wrong place.
        config = OmegaConf.create({})
        OmegaConf.update(config, key, value)
        return config


def _refuse_other_bases(text: str, place: str) -> None:
    """Raise RecipeError for a plain scalar such as 010 (8 to YAML) or 12:30 (750 to YAML)."""
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if not isinstance(event, yaml.ScalarEvent) or event.style is not None or not event.implicit[0]:
            continue
        octal = _OCTAL.fullmatch(event.value) is not None
        if octal or _BASE_60.fullmatch(event.value):
            number = yaml.safe_load(event.value)
            raise RecipeError(
                f"{place}: YAML reads {event.value} as {number} ({'octal' if octal else 'base 60'}); "
                f"write {number}, or put {event.value} in quotes if it is text"
            )


def build(schema: type[T], values: Mapping[str, Any], path: str = "") -> T:
    """Build a dataclass from a mapping, strictly: every key is known, every value has the field's type.

    Integers are accepted for floats, and `~` and environment variables are expanded in `PathText`; nothing
    else is converted. Nested mappings become nested dataclasses. `path` is the dotted key of `values` in the
    recipe, for error messages.

    Raises:
        RecipeError: an unknown key (the message suggests the nearest one), a wrong type, a number that is not
            finite, a missing key.
    """
    check_keys(schema, values, path)
    hints = typing.get_type_hints(schema, include_extras=True)
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
    except (ValueError, ArithmeticError) as error:
        raise RecipeError(f"'{path or schema.__name__}': {reason_of(error)}") from error


def check_keys(schema: type, values: Mapping[str, Any], path: str = "") -> None:
    """Raise RecipeError, suggesting the nearest key, for a key that the dataclass `schema` lacks."""
    known = [field.name for field in dataclasses.fields(schema) if field.init]
    prefix = f"{path}." if path else ""
    for key in values:
        if key not in known:
            near = nearest_key(schema, str(key))
            hint = f"the nearest valid key is '{prefix}{near}'" if near else "this section takes no keys"
            raise RecipeError(f"unknown key '{prefix}{key}'; {hint}")


def nearest_key(schema: type, key: str) -> str:
    """The dotted key of `schema` whose last part is most like `key`; ties go to the outermost, first one.

    Nested sections are searched too: `max_steps` finds `loop.max_steps`. Empty if the schema has no keys.
    """
    matcher = difflib.SequenceMatcher(b=key.lower())
    best, best_ratio = "", -1.0
    for candidate in _dotted_keys(schema):
        matcher.set_seq1(candidate.rpartition(".")[2].lower())
        ratio = matcher.ratio() - 1e-6 * candidate.count(".")
        if ratio > best_ratio:
            best, best_ratio = candidate, ratio
    return best


def _dotted_keys(schema: type) -> list[str]:
    hints = typing.get_type_hints(schema)
    keys = []
    for field in dataclasses.fields(schema):
        if field.init:
            keys.append(field.name)
            for option in options(hints[field.name]):
                if dataclasses.is_dataclass(option):
                    keys += [f"{field.name}.{key}" for key in _dotted_keys(typing.cast(type, option))]
    return keys


def check_types(schema: type, values: Mapping[str, Any], path: str) -> None:
    """Check `values` against another library's dataclass without building it; errors as in `build`."""
    check_keys(schema, values, path)
    hints = typing.get_type_hints(schema)
    for key, value in values.items():
        _convert(hints[key], value, f"{path}.{key}")


def to_mapping(recipe: Any) -> dict[str, Any]:
    """The recipe dataclass as a plain nested mapping; `build` is the inverse."""
    return _plain(dataclasses.asdict(recipe))


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, by dotted key; one without keys is a value."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def write_recipe(recipe: Any, path: str | Path) -> None:
    """Write the resolved recipe as YAML; reading it back gives the same recipe."""
    write_atomic(path, to_yaml(recipe).encode())


def to_yaml(recipe: Any) -> str:
    """YAML text of a recipe with every default filled in."""
    # OmegaConf's writer quotes text that only its own reader parses as a number, such as '1e-6'.
    return OmegaConf.to_yaml(OmegaConf.create(_escaped(to_mapping(recipe))))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _escaped(value: Any) -> Any:
    """`value` with '${' escaped in all strings, so that reading does not interpolate."""
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", value)
    return value


def _convert(hint: Any, value: Any, place: str) -> Any:
    """`value` converted to the type `hint`; raises RecipeError naming `place`."""
    for option in options(hint):
        accepted, converted = _try(option, value, place)
        if accepted:
            return converted
    raise RecipeError(
        f"'{place}' must be {_type_name(hint)}, not {shown(value)}{quoting_hint(place, hint, value)}"
    )


def shown(value: Any) -> str:
    """A recipe's value for an error message, as YAML writes it: null, true, .nan, 'text', [1, 2]."""
    if isinstance(value, Mapping):
        return "a section of keys"
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else f"{'-' if value < 0 else ''}.inf"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), repr(value))


def quoting_hint(place: str, hint: Any, value: Any) -> str:
    """Advice for an unquoted word that YAML read as true or false where text belongs; otherwise empty."""
    if not isinstance(value, bool) or not any(_is_text(option) for option in options(hint)):
        return ""
    words, word = ("yes or on", "yes") if value else ("no or off", "no")
    return (
        f'; YAML reads an unquoted {words} as {shown(value)}: put the word in quotes, such as "{word}" (on '
        f"a command line {place}='\"{word}\"')"
    )


def _is_text(hint: Any) -> bool:
    """Whether a single type accepts text."""
    if typing.get_origin(hint) is typing.Literal:
        return any(isinstance(choice, str) for choice in typing.get_args(hint))
    plain = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
    return isinstance(plain, type) and issubclass(plain, str)


def options(hint: Any) -> tuple[Any, ...]:
    """The members of a union type, nested unions flattened; any other type alone."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(option for part in typing.get_args(hint) for option in options(part))
    return (hint,)


def _try(hint: Any, value: Any, place: str) -> tuple[bool, Any]:
    """(whether `value` has the single type `hint`, the converted value)."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    kind = origin or hint
    if hint is Any:
        _check_finite(value, place)
        return True, value
    if origin is Annotated:
        accepted, converted = _try(arguments[0], value, place)
        return accepted, _expand(converted, place) if accepted else None
    if hint is type(None):
        return value is None, None
    if origin is typing.Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments), value
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            return False, None
        return True, build(typing.cast(type, hint), value, place)
    if kind in (tuple, list):
        return _try_sequence(kind, arguments, value, place)
    if kind is dict:
        if not isinstance(value, Mapping):
            return False, None
        item = arguments[1] if arguments else Any
        return True, {key: _convert(item, entry, f"{place}.{key}") for key, entry in value.items()}
    if hint is float:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return False, None
        _check_finite(value, place)
        return True, float(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    if isinstance(hint, type):
        # String enums of another library are written by value; the library refuses unknown ones.
        is_enum = issubclass(hint, str) and isinstance(value, str)
        return is_enum or isinstance(value, hint), value
    return False, None


def _check_finite(value: Any, place: str) -> None:
    """Raise RecipeError for NaN, infinity and integers beyond float64, also inside lists and mappings."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_finite(item, f"{place}.{key}")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            _check_finite(item, f"{place}[{i}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise RecipeError(f"'{place}' must be a finite number, not {shown(value)}")
    elif isinstance(value, int) and abs(value) >= 2**1024:
        raise RecipeError(
            f"'{place}' must be a number that fits into 64 bits, not one of {len(str(value))} digits"
        )


def _expand(path: str, place: str) -> str:
    """`path` with `~` and environment variables expanded; RecipeError for an unknown user or variable."""
    expanded = os.path.expanduser(os.path.expandvars(path))
    unset = re.search(r"\$(\w+|\{\w+\})", expanded)
    if unset:
        name = unset[1].strip("{}")
        raise RecipeError(f"'{place}': the environment variable {name} in '{path}' is not set; set it")
    if expanded.startswith("~"):
        raise RecipeError(f"'{place}': '{path}' names no home directory of this machine; write the full path")
    return expanded


def _try_sequence(kind: type, arguments: tuple[Any, ...], value: Any, place: str) -> tuple[bool, Any]:
    if not isinstance(value, (list, tuple)):
        return False, None
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
        items = list(arguments)
        if len(items) != len(value):
            raise RecipeError(f"'{place}' must have {len(items)} entries, not {len(value)}")
    else:
        items = [arguments[0] if arguments else Any] * len(value)
    converted = [
        _convert(item, entry, f"{place}[{i}]")
        for i, (item, entry) in enumerate(zip(items, value, strict=True))
    ]
    return True, tuple(converted) if kind is tuple else converted


_TYPE_NAMES = {
    str: "text",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    list: "a list",
    tuple: "a list",
    dict: "a section of keys",
    type(None): "null",
}


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(hint))
    names = []
    for option in options(hint):
        origin = typing.get_origin(option)
        plain = typing.get_args(option)[0] if origin is Annotated else origin or option
        if origin is typing.Literal:
            names.append(_type_name(option))
        elif dataclasses.is_dataclass(option):
            names.append("a section of keys")
        elif isinstance(plain, type) and issubclass(plain, str):
            names.append("text")
        else:
            names.append(_TYPE_NAMES.get(plain, getattr(plain, "__name__", str(plain))))
    return " or ".join(dict.fromkeys(names))


def reason_of(error: BaseException) -> str:
    """The part of a library's error message that says what is wrong and where."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        return f"{error.problem} in line {error.problem_mark.line + 1}"
    lines = str(error).strip().splitlines()
    key = getattr(error, "full_key", None)
    return (f"'{key}': " if key else "") + (lines[0] if lines else type(error).__name__)
