"""The start of a pre-training run: its directory and recipe, and starting weights of other sizes."""

import pytest

from data.typed_recipe import RecipeError, build, read_recipe
from policy.pretraining.loop_recipe import LoopRecipe
from policy.pretraining.start import check_same_sizes, started_run
from tests.policy.pretraining.test_loop import recipe


def test_the_run_writes_its_recipe_and_refuses_a_directory_that_is_none(tmp_path):
    loop = recipe(tmp_path / "deep" / "run", learning_rate=1e-6)
    with started_run(loop, loop) as output:
        assert output == tmp_path / "deep" / "run"
        assert build(LoopRecipe, read_recipe(output / "recipe.yaml")) == loop
        with pytest.raises(RecipeError, match=r"'loop\.output_dir' .* is in use by process"):
            started_run(loop, loop).__enter__()
    assert [path.name for path in output.iterdir()] == ["recipe.yaml"]
    (tmp_path / "file").write_text("")
    for place in ("file", "file/run"):
        blocked = recipe(tmp_path / place)
        with pytest.raises(
            RecipeError, match=r"'loop\.output_dir': '.*' cannot be written .*; choose another"
        ):
            started_run(blocked, blocked).__enter__()


def test_starting_weights_of_other_sizes_are_refused_with_every_difference():
    own = {"model.width": 8, "model.levels": (4, 2), "model.heads": 2}
    check_same_sizes("here", own, {"model.width": 8, "model.levels": [4, 2]})
    with pytest.raises(RecipeError) as caught:
        check_same_sizes("here", own, {"model.width": 16, "model.levels": [8, 2], "model.heads": 2})
    assert str(caught.value) == (
        "'start_from': the weights in 'here' do not match the recipe's 'model.width'; set model.width=8, "
        "model.levels=[4, 2], or start from other weights"
    )
