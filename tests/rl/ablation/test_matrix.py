"""The recipe of an ablation: the runs it expands into, and what it refuses."""

from pathlib import Path

import pytest
import yaml

from data.typed_recipe import RecipeError
from rl import ablate
from rl.ablation.matrix import AblationRecipe, Run, expand, load_recipe, starts_of
from tests.rl import tiny

ROOT = Path(__file__).parents[3]
VARIANTS = {"no_coverage": ["rewards.coverage.weight=0"], "cool": ["train.temperature=0.8"]}


@pytest.fixture
def write(policy_path, tmp_path):
    """Write an ablation of the tiny recipe; its path."""

    def write(changes=None, **values) -> str:
        tiny.write_recipe_file(tmp_path / "base.yaml", policy_path, tmp_path / "own", changes or {})
        whole = {
            "recipe": "base.yaml",
            "variants": VARIANTS,
            "seeds": [1, 2],
            "output_dir": str(tmp_path / "out"),
        }
        path = tmp_path / "ablation.yaml"
        path.write_text(yaml.safe_dump({**whole, **values}, sort_keys=False))
        return str(path)

    return write


def runs(path: str, *overrides: str) -> list[Run]:
    return expand(load_recipe(path, overrides))


def test_every_variant_is_trained_with_every_seed(write, tmp_path):
    found = runs(write())
    assert [(run.variant, run.seed) for run in found] == [
        *(("base", 1), ("no_coverage", 1), ("cool", 1)),
        *(("base", 2), ("no_coverage", 2), ("cool", 2)),
    ]
    assert found[4].folder == tmp_path / "out" / "no_coverage" / "seed-2"
    assert len({run.folder for run in found}) == 6


def test_a_run_differs_from_the_recipe_in_its_overrides_seed_and_evaluation(write):
    base, no_coverage, cool, *_ = runs(write())
    assert [run.recipe.train["seed"] for run in (base, no_coverage)] == [1, 1]
    assert base.recipe.rewards.weights["coverage"] == 5
    assert no_coverage.recipe.rewards.weights["coverage"] == 0
    assert (base.recipe.train["temperature"], cool.recipe.train["temperature"]) == (1, 0.8)
    assert cool.recipe.train["run_name"] == "cool-seed-1"
    assert not base.recipe.eval.before_and_after
    assert base.recipe.resume


def test_overrides_of_all_runs_come_before_those_of_a_variant(write):
    base, no_coverage, cool, *_ = runs(write(overrides=["train.temperature=0.5", "eval.samples=3"]))
    assert [run.recipe.train["temperature"] for run in (base, no_coverage, cool)] == [0.5, 0.5, 0.8]
    assert [run.after.recipe.eval.samples for run in (base, no_coverage, cool)] == [3, 3, 3]


def test_all_policies_are_evaluated_by_the_base_recipe(write, policy_path):
    found = runs(write())
    for run in found:
        assert run.after.recipe.rewards.weights["coverage"] == 5
        assert run.after.recipe.policy.path == str(run.folder / "policy")
        assert run.before is found[0].before  # evaluated once
    assert [subject.recipe.policy.path for subject in starts_of(found)] == [str(policy_path)]


def test_a_variant_with_a_policy_of_its_own_has_an_evaluation_of_it(write, policy_path, tmp_path):
    found = runs(write(variants={"other": ["policy.path=elsewhere"], **VARIANTS}))
    assert [subject.folder for subject in starts_of(found)] == [
        tmp_path / "out" / "untrained",
        tmp_path / "out" / "other" / "untrained",
    ]
    assert found[1].before.recipe.policy.path == "elsewhere"
    assert found[1].after.recipe.policy.path == str(found[1].folder / "policy")


def test_the_explained_print_reads_back(write, tmp_path, capsys):
    assert ablate.main([write(), "--print-recipe"]) == 0
    text = capsys.readouterr().out
    assert "# Values of `train.seed`; every variant is trained with each of them." in text
    printed = tmp_path / "printed.yaml"
    printed.write_text(text)
    assert load_recipe(str(printed)) == load_recipe(write())


def test_some_variants_only(write):
    found = runs(write(), "only=[cool]")
    assert [run.variant for run in found if run.wanted] == ["base", "cool", "base", "cool"]
    assert all(run.wanted for run in runs(write()))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"variant": {}}, ["'variant'", "'variants'"]),
        ({"variants": {"a": ["rewards.coverag.weight=0"]}}, ["'variants.a'", "'rewards.coverage'"]),
        ({"variants": {"a": ["rewards.coverage.weight=no"]}}, ["'variants.a'", "a number"]),
        ({"variants": {"a": ["train.num_generations=5"]}}, ["'variants.a'", "8 rollouts"]),
        ({"variants": {"a": "train.beta=0"}}, ["'variants.a'", "a list"]),
        ({"variants": {}}, ["'variants'", "besides base"]),
        ({"variants": {"base": []}}, ["'variants'", "besides base"]),
        ({"variants": {"base": ["train.beta=0"], **VARIANTS}}, ["'variants.base'", "'overrides'"]),
        ({"variants": {"a/b": ["train.beta=0"]}}, ["'variants.a/b'", "another name"]),
        ({"variants": {"plots": ["train.beta=0"]}}, ["'variants.plots'", "another name"]),
        ({"variants": {"Untrained": ["train.beta=0"]}}, ["'variants.Untrained'", "another name"]),
        ({"variants": {"table.md": ["train.beta=0"]}}, ["'variants.table.md'", "another name"]),
        ({"variants": {"a": ["train.beta=0"], "A": ["train.beta=1"]}}, ["'a'", "'A'", "case"]),
        ({"variants": {"BASE": ["train.beta=0"]}}, ["'base'", "'BASE'", "case"]),
        ({"variants": {"a": []}}, ["'variants.a'", "the same recipe as 'base'"]),
        ({"variants": {"a": ["train.beta=0"], "b": ["train.beta=0.0"]}}, ["'variants.b'", "as 'a'"]),
        ({"variants": {"a": ["eval.samples=9"]}}, ["'variants.a'", "'eval.samples'", "evaluated alike"]),
        ({"variants": {"a": ["train.seed=9"]}}, ["'variants.a'", "'train.seed'", "'seeds'"]),
        ({"overrides": ["output_dir=x"]}, ["'overrides'", "'output_dir'"]),
        ({"overrides": ["resume=false"]}, ["'overrides'", "'resume'"]),
        ({"overrides": ["train.bet=1"]}, ["'train.bet'", "'train.beta'"]),
        ({"seeds": []}, ["'seeds'", "at least one"]),
        ({"seeds": [1, 1]}, ["'seeds'", "different"]),
        ({"seeds": [-1]}, ["'seeds'", "-1"]),
        ({"jobs": 0}, ["'jobs'", "above 0"]),
        ({"only": ["cold"]}, ["'only'", "'cold'", "no_coverage"]),
        ({"recipe": "none.yaml"}, ["none.yaml", "does not exist"]),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
def test_refusals(write, values, words):
    with pytest.raises(RecipeError) as refused:
        load_recipe(write(**values))
    assert all(word in str(refused.value) for word in words), refused.value
    assert "\n" not in str(refused.value)


def test_a_name_twice_in_the_file(write):
    path = Path(write())
    path.write_text(path.read_text().replace("  cool:", "  no_coverage:"))
    with pytest.raises(RecipeError, match=r"ablation.yaml: .*duplicate key no_coverage"):
        load_recipe(str(path))


def test_the_recipe_is_needed(write):
    path = Path(write())
    path.write_text(path.read_text().replace("recipe: base.yaml\n", ""))
    with pytest.raises(RecipeError, match="'recipe' is missing"):
        load_recipe(str(path))


@pytest.mark.parametrize(
    "path", sorted((ROOT / "recipes/ablations").glob("*.yaml")), ids=lambda path: path.stem
)
def test_shipped_ablations(path):
    ablation = load_recipe(str(path))
    assert isinstance(ablation, AblationRecipe)
    found = expand(ablation)
    assert len(found) == (len(ablation.variants) + 1) * len(ablation.seeds)
    for name in ("coverage", "containment", "sparsity", "smoothness"):
        alone = next(run.recipe for run in found if run.variant == f"only_{name}").rewards.weights
        without = next(run.recipe for run in found if run.variant == f"no_{name}").rewards.weights
        assert [key for key, weight in alone.items() if weight] == [name]
        assert [key for key, weight in without.items() if not weight] == [name]
