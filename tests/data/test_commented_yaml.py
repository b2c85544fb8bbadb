"""Printed recipes: sentences above their keys, and the same recipe when read back."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from data.commented_yaml import WIDTH, to_commented_yaml
from data.field_docs import KEY_DOCS
from data.typed_recipe import build, read_recipe, to_yaml
from tests.data.test_typed_recipe import numbers, plain, texts


@dataclass(frozen=True)
class Adapter:
    rank: int = 16
    """Rank; above 0."""

    modules: tuple[str, ...] = ("q_proj",)
    """Layers: a sentence that is long enough to be wrapped at about one hundred columns, which takes rather
    more words than one would like to read in a comment. Source: this project."""


@dataclass(frozen=True)
class Source:
    files: str | None = None
    """Files # with a mark, 'quotes' and a colon: here."""

    weight: float = 1.0
    """Weight."""


@dataclass(frozen=True)
class Recipe:
    name: str = "run"
    """Name of the run."""

    adapter: Adapter | None = None
    """Adapters, or null."""

    required: Adapter = field(default_factory=Adapter)
    """Adapters that are always there."""

    sources: tuple[Source, ...] = ()
    """Sources."""

    lines: list[str] | None = None
    """Lines of text."""

    undocumented: str | None = None
    train: dict[str, Any] = field(default_factory=dict, metadata={KEY_DOCS: lambda: {"aa": "Key a."}})
    """Foreign keys."""


adapters = st.builds(Adapter, rank=st.integers(), modules=st.lists(texts, max_size=3).map(tuple))
longer = st.lists(texts, max_size=12).map("\n".join) | st.lists(texts, max_size=12).map(" ".join)
recipes = st.builds(
    Recipe,
    name=longer,
    adapter=st.none() | adapters,
    required=adapters,
    sources=st.lists(st.builds(Source, files=st.none() | longer, weight=numbers), max_size=3).map(tuple),
    lines=st.none() | st.lists(longer, max_size=3),
    undocumented=st.none() | longer,
    train=st.dictionaries(st.text("ab", min_size=1), plain, max_size=3),
)


def read_back(path: Path, text: str) -> Recipe:
    path.write_text(text, encoding="utf-8")
    return build(Recipe, read_recipe(path))


@settings(deadline=None)
@given(recipes)
def test_a_commented_recipe_reads_back_equal(tmp_path_factory, recipe):
    text = to_commented_yaml(recipe)
    assert read_back(tmp_path_factory.getbasetemp() / "commented.yaml", text) == recipe
    # Only comments and empty lines are added.
    added = text.count("\n") - to_yaml(recipe).count("\n")
    assert added >= 8
    assert text.endswith("\n")


def test_sentences_stand_above_their_keys_and_once_in_a_list():
    recipe = Recipe(
        name="two\nlines # and no comment",
        sources=(Source("a.glb", 2.0), Source()),
        train={"aa": 1, "bb": {"aa": 2}},
    )
    assert to_commented_yaml(recipe) == (
        "# Name of the run.\n"
        "name: 'two\n\n"
        "  lines # and no comment'\n\n"
        "# Adapters, or null.\n"
        "adapter: null\n\n"
        "# Adapters that are always there.\n"
        "required:\n"
        "  # Rank; above 0.\n"
        "  rank: 16\n"
        "  # Layers: a sentence that is long enough to be wrapped at about one hundred columns, which takes\n"
        "  # rather more words than one would like to read in a comment. Source: this project.\n"
        "  modules:\n"
        "  - q_proj\n\n"
        "# Sources.\n"
        "sources:\n"
        "  # Files # with a mark, 'quotes' and a colon: here.\n"
        "- files: a.glb\n"
        "  # Weight.\n"
        "  weight: 2.0\n"
        "- files: null\n"
        "  weight: 1.0\n\n"
        "# Lines of text.\n"
        "lines: null\n\n"
        "undocumented: null\n\n"
        "# Foreign keys.\n"
        "train:\n"
        "  # Key a.\n"
        "  aa: 1\n"
        "  bb:\n"
        "    aa: 2\n"
    )


def test_comments_are_wrapped():
    lines = to_commented_yaml(Recipe()).splitlines()
    assert max(map(len, lines)) <= WIDTH
