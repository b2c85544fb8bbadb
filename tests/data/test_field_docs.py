"""Sentences below fields: what counts as one, inheritance, nested sections, and sources that are missing."""

from dataclasses import dataclass, field
from typing import Any

from data.field_docs import KEY_DOCS, dotted_docs, field_docs, sections


@dataclass(frozen=True)
class Adapter:
    """Not a field's sentence."""

    rank: int = 16
    """Rank; above 0."""

    scale: float = 1.0  # a comment is no sentence


@dataclass(frozen=True)
class Source:
    weight: float = 1.0
    """Weight among the sources."""


@dataclass
class Recipe:
    """A recipe."""

    name: str = "a"  # a comment beside the field
    # and one between the field and its sentence
    """Name of
    the run, written over
        two lines."""

    path: str = """\
a default
over two lines"""
    """Where it "writes", with 'quotes'."""

    adapter: Adapter | None = None
    """Adapters, or null."""

    sources: tuple[Source, ...] = ()
    mixed: str | list[Source] | None = None
    train: dict[str, Any] = field(default_factory=dict, metadata={KEY_DOCS: lambda: {"steps": "Steps."}})
    """Settings of another library."""

    joined: int = 0
    "One sentence in two literals."

    bare: int = 0

    limit = 3
    """Not a field: it has no annotation."""

    def method(self) -> None:
        """Not a field either."""


@dataclass
class Child(Recipe):
    bare: int = 1
    """Documented by the child."""

    name: str = "b"


def test_a_sentence_is_the_string_below_a_field():
    assert dict(field_docs(Recipe)) == {
        "name": "Name of the run, written over two lines.",
        "path": "Where it \"writes\", with 'quotes'.",
        "adapter": "Adapters, or null.",
        "train": "Settings of another library.",
        "joined": "One sentence in two literals.",
    }


def test_a_subclass_inherits_and_adds_sentences():
    assert dict(field_docs(Child)) == {**field_docs(Recipe), "bare": "Documented by the child."}


def test_dotted_docs_reach_optional_sections_lists_and_foreign_keys():
    docs = dotted_docs(Recipe)
    assert docs["adapter.rank"] == "Rank; above 0."
    assert "adapter.scale" not in docs
    assert docs["sources[].weight"] == docs["mixed[].weight"] == "Weight among the sources."
    assert docs["train.steps"] == "Steps."
    assert "sources" not in docs
    assert docs["name"] == field_docs(Recipe)["name"]


def test_a_class_inside_a_function_whose_strings_start_at_the_margin():
    @dataclass
    class Local:
        text: str = """
at the margin"""
        """Text that
is not indented either."""

    assert dict(field_docs(Local)) == {"text": "Text that is not indented either."}


def test_a_class_without_source_has_no_sentences():
    space: dict[str, Any] = {"dataclass": dataclass, "__name__": "nowhere"}
    exec('@dataclass\nclass Typed:\n    steps: int = 1\n    """Steps."""\n', space)
    assert field_docs(space["Typed"]) == {}
    assert dotted_docs(space["Typed"]) == {}


def test_sections_of_a_type():
    assert sections(int | None) == []
    assert sections(Adapter | None) == [("", Adapter)]
    assert sections(str | list[Source | Adapter]) == [("[]", Source), ("[]", Adapter)]
    assert sections(dict[str, Source]) == []
