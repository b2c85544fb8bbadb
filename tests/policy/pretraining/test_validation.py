"""Validation while training: what is measured, what is kept, and that it never changes the training."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from data.command_line import RunFailedError
from data.typed_recipe import RecipeError, build
from policy.pretraining.loop import run_training
from policy.pretraining.start import started_run
from policy.pretraining.validation import Validation, ValidationRecipe
from tests.policy.pretraining.test_loop import Net, Numbers, equal, recipe, run, squares, states, stopping_at
from tests.policy.tiny_recipes import metrics

# Two batches, of two meshes and of one.
HELD_OUT = (torch.randn(2, 3, generator=torch.Generator().manual_seed(-1)), torch.ones(1, 3))


def validation(first_step: int = 0, losses: Any = squares, **changes: Any) -> Validation:
    settings = ValidationRecipe(**{"every": 2, "creatures": 3, "keep": "best", **changes})
    batches = {"creatures": [(batch, len(batch)) for batch in HELD_OUT]}
    return Validation(settings, batches, losses, settings.chosen_measure(["loss", "iou"]), first_step)


def trained(folder: Path, checks: Validation | None, losses: Any = squares, **changes: Any) -> nn.Module:
    loop = recipe(folder, **changes)
    with started_run(loop, loop):
        return run_training(Net(), Numbers(), torch.stack, losses, loop, "test", checks)


def scripted(values: list[float], name: str = "loss") -> Any:
    """Losses of which the validations of steps 2, 4, … give these values; asks for evaluation mode."""

    def losses(model: nn.Module, batch: torch.Tensor, step: int) -> dict[str, torch.Tensor]:
        assert not model.training
        assert not torch.is_grad_enabled()
        value = torch.tensor(values[min((step + 1) // 2, len(values)) - 1])
        return {**squares(model, batch, 0), name: value}

    return losses


def measured(folder: Path, key: str = "validation/creatures/loss") -> dict[int, float]:
    return {int(line["step"]): line[key] for line in metrics(folder) if key in line}


def test_the_mean_over_meshes_is_logged(tmp_path):
    model = trained(tmp_path, validation(keep="last"), max_steps=7, logging_steps=4)
    steps = measured(tmp_path)
    assert list(steps) == [2, 4, 6, 7]  # every second one, and the last
    with torch.no_grad():
        two, one = (float(squares(model, batch, 0)["loss"]) for batch in HELD_OUT)
    assert steps[7] == pytest.approx((2 * two + one) / 3)
    lines = {int(line["step"]): set(line) for line in metrics(tmp_path)}
    assert lines[2] == {"step", "validation/creatures/loss"}  # the training's own line comes every 4 steps
    assert lines[4] == {"step", "loss", "validation/creatures/loss"}


@pytest.mark.parametrize("workers", [0, 1])
def test_training_is_the_same_with_and_without(tmp_path, workers):
    def drawing(model: nn.Module, batch: torch.Tensor, step: int) -> dict[str, torch.Tensor]:
        noise = torch.rand(()) if model.training else torch.ones(())  # as dropout does
        return {"loss": squares(model, batch, 0)["loss"] * noise}

    options = {"dataloader_workers": workers}
    plain = trained(tmp_path / "plain", None, drawing, **options)
    checks = validation(losses=drawing, keep="last")
    assert equal(trained(tmp_path / "checked", checks, drawing, **options), plain)
    own = [{key: value for key, value in line.items() if not key.startswith("validation")}
           for line in metrics(tmp_path / "checked") if "loss" in line]  # fmt: skip
    assert own == metrics(tmp_path / "plain")


@pytest.mark.parametrize(("name", "values"), [("loss", [5, 3, 4, 6, 3]), ("iou", [0.1, 0.5, 0.4, 0.2, 0.5])])
def test_the_best_steps_weights_are_kept(tmp_path, capsys, name, values):
    best = trained(tmp_path / "all", validation(losses=scripted(values, name), measure=f"creatures/{name}"))
    assert f"kept step 4: validation/creatures/{name} {values[1]:.4f}" in capsys.readouterr().err
    # The same schedule, stopped after step 4.
    with pytest.raises(KeyboardInterrupt):
        run(recipe(tmp_path / "four", save_steps=4), stopping_at(4, KeyboardInterrupt()))
    after_four = load_file(tmp_path / "four" / "state-4" / "model.safetensors")
    assert all(torch.equal(after_four[key], value) for key, value in best.state_dict().items())
    assert not equal(best, run(recipe(tmp_path / "last")))


@pytest.mark.parametrize("stop", [3, 5, 7, 9])
def test_a_resumed_run_keeps_the_best_of_both_parts(tmp_path, stop):
    values = [5.0, 3, 4, 6, 4]
    whole = trained(tmp_path / "whole", validation(losses=scripted(values)))
    with pytest.raises(KeyboardInterrupt):
        trained(
            tmp_path / "parts",
            validation(losses=scripted(values)),
            stopping_at(stop, KeyboardInterrupt()),
        )
    assert equal(trained(tmp_path / "parts", validation(losses=scripted(values))), whole)
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    # Once more, finished: the best weights come from the checkpoint.
    assert equal(trained(tmp_path / "parts", validation(losses=scripted([9.0]))), whole)


def test_patience_ends_the_run_and_a_finished_run_stays_ended(tmp_path):
    checks = {"losses": scripted([5.0, 3, 4, 3, 1]), "patience": 2}
    best = trained(tmp_path, validation(**checks))
    assert list(measured(tmp_path)) == [2, 4, 6, 8]  # 8 is no better than 4 either
    assert states(tmp_path) == ["state-8"]
    again = trained(tmp_path, validation(**checks), stopping_at(8, AssertionError()))
    assert equal(again, best)


def test_steps_of_another_kind_are_measured_but_never_the_best(tmp_path, capsys):
    # Steps 1 to 4 train a part only, whose loss is lower; patience counts from step 5.
    losses = scripted([1.0, 2, 5, 4, 4])
    trained(tmp_path / "two kinds", validation(4, losses, patience=3))
    assert list(measured(tmp_path / "two kinds")) == [2, 4, 6, 8, 10]
    assert "kept step 8" in capsys.readouterr().err
    # A run that has no others keeps the best of them.
    trained(tmp_path / "one kind", validation(10, losses))
    assert "kept step 2" in capsys.readouterr().err


def test_a_measure_that_is_no_number_stops_the_run(tmp_path):
    checks = validation(losses=scripted([5.0, math.nan]))
    with pytest.raises(
        RunFailedError, match=r"validation/creatures/loss is nan after step 4; lower 'loop.learn"
    ):
        trained(tmp_path, checks)
    assert states(tmp_path) == ["state-3"]


def test_checkpoints_that_were_judged_otherwise(tmp_path):
    trained(tmp_path / "last", validation(keep="last"), max_steps=4)
    assert json.loads((tmp_path / "last/state-4/validation.json").read_text())["best_step"]
    with pytest.raises(RecipeError, match=r"'validation.keep': '.*state-4' has not kept the weights"):
        trained(tmp_path / "last", validation())
    changed = validation(measure="creatures/iou", losses=scripted([0.5], "iou"), keep="last")
    with pytest.raises(RecipeError, match=r"judged by creatures/loss, not by creatures/iou; keep that"):
        trained(tmp_path / "last", changed)
    run(recipe(tmp_path / "none", max_steps=4))
    with pytest.raises(RecipeError, match=r"'validation.keep': the run behind '.*state-4' was not validated"):
        trained(tmp_path / "none", validation())
    trained(tmp_path / "none", validation(keep="last"))  # from here on
    assert list(measured(tmp_path / "none")) == [6, 8, 10]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"every": -1}, "'validation.every' must be at least 0, not -1"),
        ({"patience": -1}, "'validation.patience' must be at least 0"),
        ({"keep": "best"}, "'validation.keep: best' needs validations; set 'validation.every' above 0"),
        ({"patience": 2}, "'validation.patience' needs validations"),
        ({"every": 5, "creatures": 0}, "'validation' has neither rigs nor creatures"),
    ],
)
def test_recipes_that_cannot_be(values, message):
    with pytest.raises(RecipeError) as caught:
        build(ValidationRecipe, values, "validation")
    assert str(caught.value).startswith(message)


def test_a_measure_that_there_is_not():
    with pytest.raises(RecipeError, match="must be one of rigs/loss, rigs/iou, not 'creatures/loss'"):
        ValidationRecipe(every=1, rigs="a", creatures=0, measure="creatures/loss").chosen_measure(
            ["loss", "iou"]
        )
    assert ValidationRecipe(every=1, rigs="a").chosen_measure(["loss"]) == "rigs/loss"
    assert ValidationRecipe(every=1).chosen_measure(["loss"]) == "creatures/loss"
