"""Non-finite numbers and steps without scores: injected, skipped, counted, recorded; the next step trains."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback

from data.manifest import MANIFEST_FILE
from rl.scoring import PendingScore
from rl.trainer import RigGRPOTrainer
from tests.rl.commands import metrics
from tests.rl.training_runs import FakeService, Run, weights

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

NAN, INF = math.nan, math.inf
SHORT = {"train.max_completion_length": 40, "train.weight_decay": 0.1, "train.lr_scheduler_type": "linear"}

Poison = Callable[[pytest.MonkeyPatch, Mapping[int, float]], None]


class Watched(TrainerCallback):
    """The weights, moments and learning rates after each step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []
        self.moments: list[list[torch.Tensor]] = []
        self.rates: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        self.weights.append(weights(parts["model"]))
        entries = parts["optimizer"].state.values()
        self.moments.append([torch.as_tensor(value).clone() for entry in entries for value in entry.values()])
        self.rates.append(parts["lr_scheduler"].get_last_lr()[0])

    def updates(self) -> list[bool]:
        """Whether each step but the first changed anything."""
        pairs = zip(self.weights, self.weights[1:], self.moments, self.moments[1:], strict=False)
        return [
            any(not torch.equal(old[name], new[name]) for name in old)
            or len(old_moments) != len(new_moments)
            or not all(map(torch.equal, old_moments, new_moments))
            for old, new, old_moments, new_moments in pairs
        ]

    def finite(self) -> bool:
        return all(bool(tensor.isfinite().all()) for step in self.weights for tensor in step.values())


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


# ------------------------------------------------------------ injections, by step


def poison_loss(monkeypatch: pytest.MonkeyPatch, values: Mapping[int, float]) -> None:
    original = RigGRPOTrainer._compute_loss

    def compute(self, model, inputs):
        return original(self, model, inputs) * values.get(self.state.global_step + 1, 1.0)

    monkeypatch.setattr(RigGRPOTrainer, "_compute_loss", compute)


def poison_gradient(monkeypatch: pytest.MonkeyPatch, values: Mapping[int, float]) -> None:
    """One element of one gradient; the loss is finite."""
    original = RigGRPOTrainer._compute_loss

    def compute(self, model, inputs):
        loss = original(self, model, inputs)
        value = values.get(self.state.global_step + 1)
        if value is not None:
            handles: list[RemovableHandle] = []

            def spoil(gradient):
                handles.pop().remove()
                gradient = gradient.clone()
                gradient.view(-1)[0] = value
                return gradient

            parameter = next(p for p in self.model.parameters() if p.requires_grad)
            handles.append(parameter.register_hook(spoil))
        return loss

    monkeypatch.setattr(RigGRPOTrainer, "_compute_loss", compute)


def poison_advantage(monkeypatch: pytest.MonkeyPatch, values: Mapping[int, float]) -> None:
    original = RigGRPOTrainer._compute_loss

    def compute(self, model, inputs):
        value = values.get(self.state.global_step + 1)
        if value is not None:
            inputs["advantages"][3] = value
        return original(self, model, inputs)

    monkeypatch.setattr(RigGRPOTrainer, "_compute_loss", compute)


def poison_log_probability(monkeypatch: pytest.MonkeyPatch, values: Mapping[int, float]) -> None:
    original = RigGRPOTrainer._get_per_token_logps_and_entropies

    def log_probs(self, model, *arguments, **options):
        found, *rest = original(self, model, *arguments, **options)
        value = values.get(self.state.global_step + 1)
        if value is not None and found.requires_grad:
            found = found.clone()
            found[2, 0] = value
            self._last_log_probs = found.detach()
        return found, *rest

    monkeypatch.setattr(RigGRPOTrainer, "_get_per_token_logps_and_entropies", log_probs)


def poison_reward(monkeypatch: pytest.MonkeyPatch, values: Mapping[int, float]) -> None:
    """The second reward of the sixth row."""
    original, calls = PendingScore.rewards, iter(range(1000))

    def rewards(self, names):
        place = next(calls)  # four rewards of eight rows a step
        value = values.get(place // 32 + 1)
        return {names[0]: value} if value is not None and place % 32 == 13 else original(self, names)

    monkeypatch.setattr(PendingScore, "rewards", rewards)


INJECTIONS: dict[int, tuple[Poison, str, float]] = {
    2: (poison_loss, "loss", NAN),
    3: (poison_loss, "loss", INF),
    5: (poison_gradient, "gradient", NAN),
    6: (poison_gradient, "gradient", INF),
    8: (poison_advantage, "advantage", NAN),
    9: (poison_advantage, "advantage", -INF),
    11: (poison_log_probability, "log-probability", NAN),
    12: (poison_log_probability, "log-probability", INF),
    14: (poison_reward, "reward", NAN),
    15: (poison_reward, "reward", -INF),
}


def test_bad_steps_change_nothing_and_the_others_train(make_recipe, monkeypatch, capsys):
    """Every injection in one run, two bad steps and a good one in turn; three bad ones would stop it."""
    for poison in {poison for poison, _, _ in INJECTIONS.values()}:
        poison(monkeypatch, {step: value for step, (own, _, value) in INJECTIONS.items() if own is poison})
    run = Run(make_recipe({**SHORT, "train.max_steps": 16}))
    watched = train(run, monkeypatch)
    assert watched.updates() == [step not in INJECTIONS for step in range(2, 17)]
    assert watched.finite()
    assert watched.rates == pytest.approx([1e-3 * (16 - step) / 16 for step in range(1, 17)])  # they count
    shown = capsys.readouterr().err
    names = {sample.name for sample in run.bank.samples}
    for line in run.metrics():
        step = line["step"]
        assert line["train_guard/bad_steps"] == (step in INJECTIONS)
        assert line["train_guard/unscored_steps"] == 0
        if step not in INJECTIONS:
            assert all(value is None or math.isfinite(value) for value in line.values()), step
            continue
        poison, cause, value = INJECTIONS[step]
        assert f"step {step} is skipped, because its {cause}" in shown
        record = bad_step(run, step)
        assert record["step"] == record["sampled_at_step"] + 1 == step
        assert record["causes"][0] == record["causes_here"][0] == cause
        assert len(record["rows"]) == 8
        assert {row["mesh"] for row in record["rows"]} <= names
        assert len({row["seed"] for row in record["rows"]}) == 8
        assert all(row["tokens"] and len(row["rewards"]) == 4 for row in record["rows"])
        if poison is poison_loss:
            assert not math.isfinite(line["loss"])  # and not 0
            assert record["losses"] == ["NaN" if math.isnan(value) else record["losses"][0]]
            assert "nan" in shown
        if poison is poison_gradient:
            assert not math.isfinite(line["grad_norm"])
            assert record["grad_norm"] in ("NaN", "Infinity")
        if poison is poison_advantage:
            assert record["rows"][3]["advantage"] == ("NaN" if math.isnan(value) else "-Infinity")
        if poison is poison_reward:
            assert math.isnan(line["rewards/containment/mean"])
            assert math.isfinite(line["rewards/coverage/mean"])
            assert math.isnan(line["reward"])
            bad = [row["rewards"]["containment"] for row in record["rows"]]
            assert bad.count("NaN" if math.isnan(value) else "-Infinity") == 1
            assert all(math.isfinite(row["advantage"]) for row in record["rows"])


def test_too_many_bad_steps_in_a_row_stop_the_run_with_its_weights_saved(here, tmp_path, monkeypatch, capsys):
    """The next command resumes: with the cause removed, it trains."""
    changes = {**SHORT, "train.max_steps": 5, "train.save_steps": 100, "train_guard.max_bad_steps": 2}
    changes["eval.before_and_after"] = False
    with monkeypatch.context() as patch:
        poison_loss(patch, {2: NAN, 3: INF})
        assert here(changes) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("failed: 2 steps in a row had a loss that is not finite and updated nothing")
    assert f"rows: {tmp_path / 'run' / 'bad_steps'}" in error
    assert "lower train.learning_rate" in error
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["checkpoint-3"]
    assert not (tmp_path / "run" / "policy").exists()
    assert here(changes) == 0
    assert "resuming from" in capsys.readouterr().err
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert [line["train_guard/bad_steps"] for line in lines] == [0, 1, 1, 0, 0]
    # As if it had never stopped: a run with the same bad steps and a larger limit.
    exported = (tmp_path / "run" / "policy" / "model.safetensors").read_bytes()
    poison_loss(monkeypatch, {2: NAN, 3: INF})
    assert here({**changes, "train_guard.max_bad_steps": 3}, "resume=false") == 0
    assert (tmp_path / "run" / "policy" / "model.safetensors").read_bytes() == exported


@pytest.mark.parametrize(
    "changes",
    [
        {"train.gradient_accumulation_steps": 2, "train.per_device_train_batch_size": 4},
        {"policy.lora": {"rank": 2}, "train.max_grad_norm": 0.0},
        {"policy.train_mesh_encoder": True, "train.steps_per_generation": 2, "train.optim": "adafactor"},
    ],
    ids=["accumulation", "lora", "encoder"],
)
def test_other_ways_to_train_are_guarded_too(make_recipe, monkeypatch, changes):
    poison_loss(monkeypatch, {2: NAN})
    watched = train(Run(make_recipe({**SHORT, "train.max_steps": 3, **changes})), monkeypatch)
    assert watched.updates() == [False, True]
    assert watched.finite()


def test_a_step_without_scores_changes_nothing_and_counts_as_no_bad_step(make_recipe, monkeypatch, capsys):
    """Workers fail in the second and third step; tokens that are no rig score 0 without them."""
    run = Run(make_recipe({**SHORT, "train.max_steps": 4, "train_guard.max_bad_steps": 1}))
    service = FakeService(lambda row: None if 3 <= len(service.submitted) <= 6 else row / 8)
    run.service = service
    watched = train(run, monkeypatch)
    assert watched.updates() == [False, False, True]
    assert watched.rates == pytest.approx([7.5e-4, 5e-4, 2.5e-4, 0])
    lines = run.metrics()
    assert [line["train_guard/unscored_steps"] for line in lines] == [0, 1, 1, 0]
    assert [line["train_guard/bad_steps"] for line in lines] == [0] * 4
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert "step 3 has no scores: it updates nothing" in capsys.readouterr().err
    assert not (Path(run.recipe.output_dir) / "bad_steps").exists()


def test_groups_without_scores_beside_others_contribute_no_nan(make_recipe, monkeypatch):
    """A whole group without scores, one row alone with a score, and a group that has them all."""
    recipe = make_recipe({**SHORT, "train.max_steps": 3, "train.per_device_train_batch_size": 12})
    run = Run(recipe)
    groups = iter(range(1000))

    class Service(FakeService):
        def score(self, row, rig):
            if row == 0:
                self.kind = next(groups) % 3
            self.value_of = [lambda row: None, lambda row: 0.5 if row == 1 else None, lambda row: row / 4][
                self.kind
            ]
            return super().score(row, rig)

    run.service = Service(lambda row: None)
    watched = train(run, monkeypatch)
    assert watched.updates() == [True, True]
    assert watched.finite()
    for line in run.metrics():
        assert line["train_guard/bad_steps"] == line["train_guard/unscored_steps"] == 0
        assert line["rig/unscored"] > 0
        assert all(value is None or math.isfinite(value) for value in line.values())


# ------------------------------------------------------------ checkpoints


def test_a_checkpoint_that_is_not_finite_is_neither_saved_nor_resumed(here, tmp_path, monkeypatch, capsys):
    changes = {**SHORT, "train.max_steps": 3, "eval.before_and_after": False}
    original = AcceleratedOptimizer.step

    def overflow(self, closure=None):
        original(self, closure)
        parameter = self.param_groups[0]["params"][0]
        if self.state[parameter]["step"] == 2:
            self.state[parameter]["exp_avg_sq"].view(-1)[0] = INF

    with monkeypatch.context() as patch:
        patch.setattr(AcceleratedOptimizer, "step", overflow)
        assert here(changes) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("failed: checkpoint-2 was not saved, because exp_avg_sq of ")
    checkpoints = tmp_path / "run" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["checkpoint-1"]
    state = torch.load(checkpoints / "checkpoint-1" / "optimizer.pt")
    state["state"][1]["exp_avg"].view(-1)[0] = NAN
    torch.save(state, checkpoints / "checkpoint-1" / "optimizer.pt")
    (checkpoints / "checkpoint-1" / MANIFEST_FILE).unlink()  # as saved before manifests, which see the change
    assert here(changes) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "checkpoint-1: exp_avg of " in error
    assert "contains NaN or infinity; use an earlier checkpoint" in error


# ------------------------------------------------------------ float16


class Scaler:
    """What the guard needs of torch's GradScaler, which runs on GPUs only."""

    def __init__(self, scale: float) -> None:
        self.scale, self.updates = scale, []

    def get_scale(self) -> float:
        return self.scale

    def update(self, scale: float) -> None:
        self.updates.append(scale)


# scale, loss, gradient norm, whether it is a bad step
OVERFLOWS = [
    (65536.0, 1.0, NAN, False),  # the scale is being found: GradScaler skips this step itself
    (2.0, 1.0, INF, False),
    (1.0, 1.0, NAN, True),  # no scale is to blame
    (65536.0, NAN, NAN, True),
    (65536.0, 1.0, 3.0, False),
]


def test_an_overflow_of_float16_is_no_bad_step(make_recipe):
    trainer = Run(make_recipe(SHORT)).trainer()
    trainer.model.train()
    batch = trainer._generate_and_score_completions([{"prompt": trainer.bank.prompt(0)} for _ in range(8)])
    guard, gradient_state = trainer.guard, trainer.accelerator.gradient_state
    for scale, loss, norm, bad in OVERFLOWS:
        scaler = trainer.accelerator.scaler = Scaler(scale)
        guard.watch(torch.tensor(loss, requires_grad=True), batch, batch["sampling_per_token_logps"])
        guard.decide(1, 0, torch.tensor(norm))
        assert guard.take_counts()["train_guard/bad_steps"] == bad
        guard.on_pre_optimizer_step(None, None, None)
        # A bad step does not reach GradScaler.step, which would lower the scale; its record is cleared.
        assert scaler.updates == ([scale] if bad else [])
        assert gradient_state.sync_gradients == (not bad)
        guard.on_optimizer_step(None, None, None)
        assert gradient_state.sync_gradients
        guard.on_step_end(None, None, None)
