"""The `loop` section: values out of range."""

import math

import pytest

from data.typed_recipe import RecipeError, build
from policy.pretraining.loop_recipe import LoopRecipe, loader_workers


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_steps": 0}, "'loop.max_steps' must be at least 1, not 0"),
        ({"batch_size": 0}, "'loop.batch_size' must be at least 1, not 0"),
        ({"logging_steps": -1}, "'loop.logging_steps' must be at least 1, not -1"),
        ({"save_steps": 0}, "'loop.save_steps' must be at least 1, not 0"),
        ({"warmup_steps": -1}, "'loop.warmup_steps' must be at least 0, not -1"),
        ({"weight_decay": -0.1}, "'loop.weight_decay' must be at least 0, not -0.1"),
        ({"dataloader_workers": -1}, "'loop.dataloader_workers' must be at least 0 or auto, not -1"),
        ({"seed": -1}, "'loop.seed' must be at least 0, not -1"),
        ({"learning_rate": 0}, "'loop.learning_rate' must be above 0, not 0.0"),
        ({"learning_rate": math.nan}, "'loop.learning_rate' must be a finite number, not .nan"),
        ({"max_grad_norm": 0}, "'loop.max_grad_norm' must be above 0, not 0.0"),
        ({"min_learning_rate_ratio": 1.5}, "'loop.min_learning_rate_ratio' must be between 0 and 1, not 1.5"),
        (
            {"gradient_accumulation_steps": 0},
            "'loop.gradient_accumulation_steps' must be at least 1, not 0",
        ),
        ({"optimizer": "sgd"}, "'loop.optimizer' must be one of 'muon', 'adamw', not 'sgd'"),
    ],
)
def test_loop_recipes_that_cannot_be(values, message):
    with pytest.raises(RecipeError) as caught:
        build(LoopRecipe, values, "loop")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("workers", "cores", "cuda", "processes", "expected"),
    [
        (0, 16, True, 1, 0),
        (3, 2, False, 1, 3),
        ("auto", 2, False, 1, 1),
        ("auto", 16, False, 1, 4),
        ("auto", 16, True, 1, 14),
        ("auto", 16, True, 4, 3),
        ("auto", 2, True, 1, 1),
    ],
)
def test_loading_processes(workers, cores, cuda, processes, expected):
    assert loader_workers(workers, cores, cuda, processes) == expected


def test_values_that_are_chosen_for_the_machine():
    assert build(LoopRecipe, {"dataloader_workers": "auto"}, "loop").dataloader_workers == "auto"
    assert build(LoopRecipe, {"compile": True}, "loop").compile is True
