"""Prints a resolved recipe as YAML with each key's explanation as a comment above it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import yaml

from data.field_docs import dotted_docs
from data.typed_recipe import to_yaml

WIDTH = 100


def to_commented_yaml(recipe: Any) -> str:
    """YAML text of a recipe dataclass with its defaults and its fields' sentences (`data.field_docs`).

    Reads back as the same recipe as `to_yaml`, to which it adds only comments and, between top-level keys,
    empty lines.
    """
    schema: type = type(recipe)
    text, docs = to_yaml(recipe), dict(dotted_docs(schema))
    parts, end = [], 0
    for line_start, column, key in _keys(yaml.compose(text), ""):
        parts.append(text[end:line_start])
        end = line_start
        if line_start and "." not in key:
            parts.append("\n")
        if key in docs:  # popped: once explained, a key is clear in later entries of a list
            parts += [f"{line}\n" for line in _comment(docs.pop(key), column)]
    return "".join([*parts, text[end:]])


def _comment(sentence: str, column: int) -> list[str]:
    mark = " " * column + "# "
    return textwrap.wrap(
        sentence,
        max(WIDTH, column + WIDTH // 2),
        initial_indent=mark,
        subsequent_indent=mark,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _keys(node: yaml.Node | None, prefix: str) -> Iterator[tuple[int, int, str]]:
    """(offset of its line, column, dotted key) of each key in block style, from top to bottom."""
    if isinstance(node, yaml.MappingNode) and not node.flow_style:
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            yield key.start_mark.index - key.start_mark.column, key.start_mark.column, name
            yield from _keys(value, f"{name}.")
    elif isinstance(node, yaml.SequenceNode) and not node.flow_style:
        for entry in node.value:
            yield from _keys(entry, f"{prefix.removesuffix('.')}[].")
