"""Non-finite numbers and steps without scores: injected, skipped, counted, recorded; the next step works."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from data.command_line import RunFailedError
from rewards.worker import UNSCORED
from rl.trainer import RigGRPOTrainer
from tests.rl.training_runs import FakeService, Run, weights

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

NAN, INF = math.nan, math.inf
RULE = {"train.lr_scheduler_type": "linear", "train.weight_decay": 0.1, "train.max_steps": 3}


class Watched(TrainerCallback):
    """The weights, moments, learning rates and counts after each step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []
        self.moments: list[list[torch.Tensor]] = []
        self.rates: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        self.weights.append(weights(parts["model"]))
        entries = parts["optimizer"].state.values()
        self.moments.append([value.clone() for entry in entries for value in entry.values()])
        self.rates.append(parts["lr_scheduler"].get_last_lr()[0])

    def unchanged(self, before: int, after: int) -> bool:
        old, new = self.weights[before - 1], self.weights[after - 1]
        old_moments, new_moments = self.moments[before - 1], self.moments[after - 1]
        return (
            all(torch.equal(old[name], new[name]) for name in old)
            and len(old_moments) == len(new_moments)
            and all(map(torch.equal, old_moments, new_moments))
        )


def train(run: Run, monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Train and return what was seen after each step."""
    watched = Watched()
    original = RigGRPOTrainer.train

    def train_watched(self: RigGRPOTrainer, *arguments: Any, **options: Any) -> Any:
        self.add_callback(watched)
        return original(self, *arguments, **options)

    monkeypatch.setattr(RigGRPOTrainer, "train", train_watched)
    run.optimise()
    return watched


def bad_step(run: Run, step: int) -> dict[str, Any]:
    """The record of a bad step, read as strict JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    path = Path(run.recipe.output_dir) / "bad_steps" / f"step-{step}.json"
    return json.loads(path.read_text(), parse_constant=refuse)


# ------------------------------------------------------------ injections


def poison_loss(monkeypatch, value, steps=(2,), where=lambda trainer: True):
    original = RigGRPOTrainer._compute_loss

    def compute(self, model, inputs):
        loss = original(self, model, inputs)
        hit = self.state.global_step + 1 in steps and where(self)
        return loss * value if hit else loss

    monkeypatch.setattr(RigGRPOTrainer, "_compute_loss", compute)


def poison_gradient(monkeypatch, value):
    original = RigGRPOTrainer._compute_loss

    def compute(self, model, inputs):
        loss = original(self, model, inputs)
        if self.state.global_step == 1:
            parameter = next(p for p in self.model.parameters() if p.requires_grad)

            def spoil(gradient):
                gradient = gradient.clone()
                gradient.view(-1)[0] = value
                return gradient

            handle = parameter.register_hook(lambda g: (handle.remove(), spoil(g))[1])
        return loss

    monkeypatch.setattr(RigGRPOTrainer, "_compute_loss", compute)


def poison_advantage(monkeypatch, value):
    original = RigGRPOTrainer._compute_loss

    def compute(self, model, inputs):
        if self.state.global_step == 1:
            inputs["advantages"][3] = value
        return original(self, model, inputs)

    monkeypatch.setattr(RigGRPOTrainer, "_compute_loss", compute)


def poison_log_probability(monkeypatch, value):
    original = RigGRPOTrainer._get_per_token_logps_and_entropies

    def log_probs(self, model, *arguments, **options):
        found, *rest = original(self, model, *arguments, **options)
        if self.state.global_step == 1 and found.requires_grad:
            found = found.clone()
            found[2, 0] = value
            self._last_log_probs = found.detach()
        return found, *rest

    monkeypatch.setattr(RigGRPOTrainer, "_get_per_token_logps_and_entropies", log_probs)


def poison_reward(monkeypatch, value):
    from rl.scoring import PendingScore

    original, calls = PendingScore.rewards, []

    def rewards(self, names):
        result = original(self, names)
        calls.append(names)
        # Four rewards of eight rows a step: row 5 of the second step, in its second function.
        return {names[0]: value} if len(calls) == 4 * 8 + 8 + 5 + 1 else result

    monkeypatch.setattr(PendingScore, "rewards", rewards)


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize(
    ("poison", "first_cause"),
    [
        (poison_loss, "loss"),
        (poison_gradient, "gradient"),
        (poison_advantage, "advantage"),
        (poison_log_probability, "log-probability"),
        (poison_reward, "reward"),
    ],
)
def test_a_bad_step_changes_nothing_and_the_next_one_trains(
    make_recipe, monkeypatch, capsys, poison, first_cause, value
):
    poison(monkeypatch, value)
    run = Run(make_recipe(RULE))
    watched = train(run, monkeypatch)
    assert watched.unchanged(1, 2)
    assert not watched.unchanged(2, 3)
    assert all(tensor.isfinite().all() for tensor in watched.weights[2].values())
    assert watched.rates == pytest.approx([1e-3 * 2 / 3, 1e-3 / 3, 0.0])  # the step counts
    lines = run.metrics()
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert [line["train_guard/bad_steps"] for line in lines] == [0, 1, 0]
    assert [line["train_guard/unscored_steps"] for line in lines] == [0, 0, 0]
    assert math.isfinite(lines[2]["loss"])
    assert "step 2 is skipped" in capsys.readouterr().err
    record = bad_step(run, 2)
    assert record["causes"][0] == record["causes_here"][0] == first_cause
    assert record["step"] == 2
    assert len(record["rows"]) == 8
    names = {sample.name for sample in run.bank.samples}
    for row in record["rows"]:
        assert row["mesh"] in names
        assert row["tokens"]
        assert len(row["rewards"]) == 4
