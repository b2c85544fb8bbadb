"""Every recipe field is explained, and docs/recipe.md is what the recipes say today."""

import dataclasses
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from data.commented_yaml import to_commented_yaml
from data.field_docs import dotted_docs, field_docs, sections
from data.typed_recipe import build, read_recipe
from policy import pretrain_pair, pretrain_skin_vae, pretrain_tokenrig, skin_report
from policy.pretrain_pair import PairRecipe
from policy.pretrain_skin_vae import SkinVAERecipe
from policy.pretrain_tokenrig import TokenRigRecipe
from policy.skin_report import SkinReportRecipe
from policy.skintokens.skin_vae import SkinVAEConfig
from rl.recipe import Recipe, load_recipe
from rl.recipe.train import FIXED, SET_ELSEWHERE, TRAIN_DEFAULTS, changed_defaults, first_sentence, yaml_value
from rl.recipe_docs import PAGE, recipe_page, shown_type

ROOT = Path(__file__).parents[2]


def all_sections(schema: type) -> Iterator[type]:
    """The dataclass and every section in it, however deep."""
    yield schema
    hints = typing.get_type_hints(schema)
    for one in dataclasses.fields(schema):
        for _, section in sections(hints[one.name]):
            yield from all_sections(section)


SCHEMAS = (Recipe, SkinVAERecipe, TokenRigRecipe, SkinReportRecipe, PairRecipe)
SECTIONS = dict.fromkeys(section for recipe in SCHEMAS for section in all_sections(recipe))


@pytest.mark.parametrize("schema", SECTIONS)
def test_every_field_has_a_sentence_and_values_have_a_source(schema):
    docs, hints = field_docs(schema), typing.get_type_hints(schema)
    assert schema.__doc__
    for one in dataclasses.fields(schema):
        assert docs.get(one.name), f"{schema.__name__}.{one.name} has no sentence below it"
        sentence = docs[one.name]
        assert sentence.endswith("."), sentence
        assert sentence[0] == "`" or sentence[0] == sentence[0].upper(), sentence
        if not dataclasses.is_dataclass(hints[one.name]):
            assert len(re.findall(r"\. Source: ", sentence)) == 1, sentence


def test_every_train_key_has_a_sentence():
    from trl import GRPOConfig

    docs = dotted_docs(Recipe)
    for one in dataclasses.fields(GRPOConfig):
        assert docs[f"train.{one.name}"].endswith(".")
    assert "must use one distribution" in docs["train.top_p"]
    assert docs["train.num_generations"].endswith("Default 24 (TRL's is 8): the paper's group size.")
    assert docs["train.epsilon"].endswith("Default 0.2 (also TRL's): the paper's clip range.")
    assert docs["train.output_dir"].endswith("it is set by 'output_dir' at the top of the recipe.")


def test_changed_defaults_are_those_that_differ():
    from trl import GRPOConfig

    theirs = {one.name: one.default for one in dataclasses.fields(GRPOConfig)}
    changed = changed_defaults()
    for key, value in TRAIN_DEFAULTS.items():
        assert (key in changed) == (key not in FIXED and theirs[key] != value)
    assert changed["beta"] == (0.1, 0.0, "the paper's KL coefficient")
    assert not {*FIXED, *TRAIN_DEFAULTS} & {*SET_ELSEWHERE}
    for key, (value, _) in FIXED.items():
        assert TRAIN_DEFAULTS.get(key, value) == value


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("One. Two.", "One."),
        ("Set e.g. `a` or i.e. B here. Two", "Set e.g. `a` or i.e. B here."),
        ("A ratio of 0.5 is allowed.", "A ratio of 0.5 is allowed."),
        ("Slower by 20%% or so", "Slower by 20% or so."),
        ("First! `second` follows", "First!"),
        ("", ""),
    ],
)
def test_first_sentences(text, first):
    assert first_sentence(text) == first


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "null"),
        (True, "true"),
        (0, "0"),
        (1e-6, "1e-6"),
        (1.0, "1.0"),
        ((8, 4.0), "[8, 4.0]"),
        ([], "[]"),
        ("no", "no"),
    ],
)
def test_values_as_a_recipe_writes_them(value, shown):
    assert yaml_value(value) == shown


@pytest.mark.parametrize(
    ("hint", "shown"),
    [
        (int, "int"),
        (str | list[str] | None, "str or list of str or null"),
        (Literal["a", "b"], "`a` or `b`"),
        (tuple[int, ...], "list of int"),
        (tuple[float, float], "[float, float]"),
        (SkinVAEConfig | None, "section or null"),
        (list[Literal["a", "b"]], "list of `a` or `b`"),
        (str | dict[str, float] | None, "str or mapping to float or null"),
    ],
)
def test_types_in_a_recipes_words(hint, shown):
    assert shown_type(hint) == shown


def test_the_committed_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == recipe_page(), "run `make docs`"


def test_the_page_has_every_key_and_its_links_lead_somewhere():
    page = recipe_page()
    for schema in SCHEMAS:
        for key in dotted_docs(schema):
            if not key.startswith("train."):
                assert f"`{key}`" in page, key
    for target in re.findall(r"\]\(([^)#:]+)\)", page):
        assert (PAGE.parent / target).exists(), target
    anchors = {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", page, flags=re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", page)) <= anchors
    columns = {line.count(" | ") for line in page.splitlines() if line.startswith("| `")}
    assert columns == {1, 2, 3, 4}


LOADERS = {
    SkinVAERecipe: pretrain_skin_vae.load_recipe,
    TokenRigRecipe: pretrain_tokenrig.load_recipe,
    SkinReportRecipe: skin_report.load_recipe,
    PairRecipe: pretrain_pair.load_recipe,
}
SHIPPED = {
    "skin_vae": SkinVAERecipe,
    "tokenrig": TokenRigRecipe,
    "skin_report": SkinReportRecipe,
    "small_pair": PairRecipe,
}


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_read_back_from_their_explained_print(path, tmp_path):
    schema = next((schema for name, schema in SHIPPED.items() if path.stem.startswith(name)), Recipe)
    overrides = ["data.sources=[{prepared: a, weight: 2}, {creatures: true}]"] * (
        schema in (SkinVAERecipe, TokenRigRecipe)
    )
    overrides += ["policy.lora.rank=4", "data.meshes=['a.glb', 'b/**/*.glb']"] * (schema is Recipe)
    recipe = LOADERS.get(schema, load_recipe)(str(path), overrides)
    text = to_commented_yaml(recipe)
    printed = tmp_path / "printed.yaml"
    printed.write_text(text)
    assert build(schema, read_recipe(printed)) == recipe
    assert max(len(line) for line in text.splitlines() if line.lstrip().startswith("#")) <= 100
