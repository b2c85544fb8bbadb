"""The benchmark of the input: what it measures of each stage; its numbers are the machine's."""

import pytest

from policy.input_benchmark import load_recipe, main, measure
from tests.policy.tiny_recipes import SKIN_VAE, TOKENRIG, write


def test_stage_1_has_bones(tmp_path):
    (speed,) = measure(load_recipe(write(tmp_path, SKIN_VAE), []), count=3)
    assert speed.name == "bones"
    assert speed.per_second > 0
    assert list(speed.parts) == [
        "make_creature",
        "augmented",
        "make_example",
        "weld_surface",
        "skin_points",
        "near_bones",
    ]
    assert speed.parts["make_example"] > speed.parts["weld_surface"] > 0


def test_stage_2_has_skeletons_and_whole_rigs(tmp_path):
    recipe = load_recipe(write(tmp_path, TOKENRIG), [])
    skeletons, whole = measure(recipe, count=3)
    assert (skeletons.name, whole.name) == ("skeletons alone", "whole rigs")
    assert "near_bones" in whole.parts
    assert "make_example" not in skeletons.parts
    assert skeletons.parts["tokenize_skeleton"] > 0


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("policy.input_benchmark.measure", lambda recipe, count=2: measure(recipe, 2))
    assert main([write(tmp_path, TOKENRIG)]) == 0
    printed = capsys.readouterr().out
    assert "whole rigs: " in printed
    assert "examples/s per loading process" in printed
    assert printed.count("procedural creature\n") == 2
    assert main([str(tmp_path / "none.yaml")]) == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", [SKIN_VAE, TOKENRIG])
def test_the_recipe_decides_the_stage(tmp_path, recipe):
    assert hasattr(load_recipe(write(tmp_path, recipe), []), "language_model") == (recipe is TOKENRIG)
