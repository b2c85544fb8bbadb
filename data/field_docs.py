"""Reads the attribute docstring of each dataclass field: the sentence that explains a recipe key."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import typing
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from types import MappingProxyType

from data.typed_recipe import options

# Field metadata under this name is a function that returns {key: sentence} for a section without a schema
# of its own, such as one that another library defines.
KEY_DOCS = "key_docs"


@cache
def field_docs(schema: type) -> Mapping[str, str]:
    """The sentence of each documented field of the dataclass `schema`, inherited ones included.

    A field's sentence is the string literal that follows it in the source, as in PEP 257's attribute
    docstrings; line breaks become spaces. Fields without one, and all fields of a class whose source is not
    available, are absent.
    """
    docs: dict[str, str] = {}
    for owner in reversed(schema.__mro__):
        if dataclasses.is_dataclass(owner):
            docs.update(_own_docs(owner))
    names = {field.name for field in dataclasses.fields(schema)}
    return MappingProxyType({name: text for name, text in docs.items() if name in names})


@cache
def dotted_docs(schema: type) -> Mapping[str, str]:
    """The sentences of a whole recipe by dotted key, such as 'policy.lora.rank'.

    Optional sections are included; keys of a section in a list stand behind '[]' ('data.sources[].weight').
    """
    docs: dict[str, str] = {}
    own, hints = field_docs(schema), typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        if field.name in own:
            docs[field.name] = own[field.name]
        nested = {f"{field.name}.": field.metadata[KEY_DOCS]()} if KEY_DOCS in field.metadata else {}
        for suffix, section in sections(hints[field.name]):
            nested[f"{field.name}{suffix}."] = dotted_docs(section)
        for prefix, more in nested.items():
            docs.update({f"{prefix}{key}": text for key, text in more.items()})
    return MappingProxyType(docs)


def sections(hint: object) -> list[tuple[str, type]]:
    """(suffix of the key, dataclass) of each section a field of type `hint` can hold; '[]' marks a list."""
    found: list[tuple[str, type]] = []
    for option in options(hint):
        if dataclasses.is_dataclass(option):
            found.append(("", typing.cast(type, option)))
        elif typing.get_origin(option) in (list, tuple):
            inner = [pair for item in typing.get_args(option) for pair in sections(item)]
            found += [(f"[]{suffix}", section) for suffix, section in inner]
    return found


def _own_docs(schema: type) -> dict[str, str]:
    """Sentences of the fields that the body of `schema` itself defines."""
    try:
        source = inspect.getsource(schema)
    except (OSError, TypeError):
        return {}
    # A class inside a function is indented. Its strings may not be, which rules out `textwrap.dedent`.
    tree: ast.AST = ast.parse(f"if True:\n{source}" if source[0].isspace() else source)
    body = next(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)).body
    docs: dict[str, str] = {}
    for field, below in pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            docs[field.target.id] = " ".join(below.value.value.split())
    return docs
