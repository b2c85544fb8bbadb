"""The pre-training loop: examples per step, logging, checkpoints, exact resume, refusals."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader

from data.command_line import RunFailedError
from data.manifest import write_manifest
from data.typed_recipe import RecipeError
from policy.pretraining.loop import StepSampler, run_training
from policy.pretraining.loop_recipe import LoopRecipe
from policy.pretraining.start import started_run
from tests.policy.tiny_recipes import metrics

ROOT = Path(__file__).resolve().parents[3]


class Net(nn.Module):
    """A regression with one matrix for Muon and the rest for AdamW."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(3, width)
        self.blocks = nn.ModuleList([nn.Linear(width, width)])
        self.outer = nn.Linear(width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(self.blocks[0](self.inner(x).tanh()).tanh())


class Numbers(torch.utils.data.Dataset[torch.Tensor]):
    """Example i is a function of i."""

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.randn(3, generator=torch.Generator().manual_seed(index))


def squares(model: nn.Module, batch: torch.Tensor, step: int) -> dict[str, torch.Tensor]:
    result = {"loss": (model(batch) - batch.sum(1, keepdim=True)).square().mean()}
    return {**result, "late": result["loss"] * 2} if step >= 5 else result


def recipe(folder: Path, **changes: Any) -> LoopRecipe:
    options: dict[str, Any] = {
        "max_steps": 10,
        "batch_size": 2,
        "warmup_steps": 2,
        "logging_steps": 4,
        "save_steps": 3,
        "dataloader_workers": 0,
        "output_dir": str(folder),
        **changes,
    }
    return LoopRecipe(**options)


def run(loop: LoopRecipe, losses: Any = squares, model: nn.Module | None = None) -> nn.Module:
    model = Net() if model is None else model
    with started_run(loop, loop):
        return run_training(model, Numbers(), torch.stack, losses, loop, "test")


def stopping_at(step: int, error: BaseException) -> Any:
    """`squares`, but the run ends in the middle of a step."""

    def losses(model: nn.Module, batch: torch.Tensor, at: int) -> dict[str, torch.Tensor]:
        if at == step:
            raise error
        return squares(model, batch, at)

    return losses


def states(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("state*"))


def equal(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ---------------------------------------------------------------- pieces


def test_the_schedule_reaches_the_optimizer(tmp_path):
    class Slope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    # The gradient is always 1, so that AdamW steps by the learning rate: 0.5, 1, 1 and 0.55 times 0.01.
    loop = recipe(
        tmp_path,
        max_steps=4,
        optimizer="adamw",
        learning_rate=0.01,
        min_learning_rate_ratio=0.1,
        save_steps=9,
    )
    model = run(loop, lambda model, batch, step: {"loss": model.weight.sum()}, Slope())
    assert model.weight.item() == pytest.approx(-0.01 * (0.5 + 1 + 1 + 0.55), rel=1e-6)


def test_steps_take_their_own_examples():
    assert list(StepSampler(3, 2, 4)) == [6, 7, 8, 9, 10, 11]
    assert len(StepSampler(3, 2, 4)) == 6
    assert list(StepSampler(3, 5, 4)) == []
    assert len(StepSampler(3, 5, 4)) == 0


def test_processes_and_accumulation_share_the_examples_of_a_step():
    # Two processes with two batches of three: step 1 has items 12 to 23, as one process with batches of 12.
    first, second = (list(StepSampler(3, 1, 2, 2, process, 2)) for process in range(2))
    assert first == [12, 13, 14, 18, 19, 20]
    assert second == [15, 16, 17, 21, 22, 23]
    assert len(StepSampler(3, 1, 2, 2, 1, 2)) == 6


# ---------------------------------------------------------------- runs


def test_a_run_logs_means_and_keeps_the_last_checkpoint(tmp_path, capsys):
    seen = []

    def losses(model, batch, step):
        result = squares(model, batch, step)
        seen.append(float(result["loss"].detach()))
        return result

    model = run(recipe(tmp_path), losses)
    assert len(seen) == 10
    assert seen[-1] < seen[0]
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == [4, 8]
    assert [line["loss"] for line in lines] == pytest.approx([sum(seen[:4]) / 4, sum(seen[4:8]) / 4])
    assert "late" not in lines[0]
    assert lines[1]["late"] == pytest.approx(2 * sum(seen[5:8]) / 3)  # there since step 5
    assert states(tmp_path) == ["state-10"]
    assert "test: 100%" in capsys.readouterr().err
    # The run is finished: running it again only returns the result.
    again = run(recipe(tmp_path), stopping_at(0, AssertionError()))
    assert equal(again, model)
    assert metrics(tmp_path) == lines


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("stop", [2, 5, 8])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, optimizer, stop):
    # Checkpoints at 3, 6, 9, log at 4, 8: sums outlast checkpoints, and a stop at 5 has logged step 4.
    whole = run(recipe(tmp_path / "whole", optimizer=optimizer))
    with pytest.raises(KeyboardInterrupt):
        run(recipe(tmp_path / "broken", optimizer=optimizer), stopping_at(stop, KeyboardInterrupt()))
    assert states(tmp_path / "broken") == ([f"state-{stop // 3 * 3}"] if stop >= 3 else [])
    again = run(recipe(tmp_path / "broken", optimizer=optimizer))
    assert equal(again, whole)
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "whole")


def test_worker_processes_load_the_same_examples(tmp_path):
    here = run(recipe(tmp_path / "here"))
    there = run(recipe(tmp_path / "there", dataloader_workers=2))
    assert equal(here, there)


def test_a_torn_line_of_the_log_is_dropped(tmp_path):
    run(recipe(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        run(recipe(tmp_path / "torn"), stopping_at(7, KeyboardInterrupt()))
    with (tmp_path / "torn" / "metrics.jsonl").open("a") as log:
        log.write('{"step": 5, "lo')
    run(recipe(tmp_path / "torn"))
    assert metrics(tmp_path / "torn") == metrics(tmp_path / "whole")


def test_starting_over_replaces_the_older_run_whatever_its_steps(tmp_path):
    whole = run(recipe(tmp_path / "fresh", max_steps=6))
    folder = tmp_path / "over"
    run(recipe(folder, max_steps=9, learning_rate=0.1))
    with pytest.raises(KeyboardInterrupt):  # before its first checkpoint the old one stays
        run(recipe(folder, max_steps=6, resume=False), stopping_at(2, KeyboardInterrupt()))
    assert states(folder) == ["state-9"]
    with pytest.raises(KeyboardInterrupt):
        run(recipe(folder, max_steps=6, resume=False), stopping_at(4, KeyboardInterrupt()))
    assert states(folder) == ["state-3"]
    assert equal(run(recipe(folder, max_steps=6)), whole)
    assert equal(run(recipe(folder, max_steps=6, resume=False)), whole)  # the same step's name again
    assert states(folder) == ["state-6"]
    assert metrics(folder) == metrics(tmp_path / "fresh")


def test_leftovers_are_no_checkpoints(tmp_path):
    whole = run(recipe(tmp_path / "whole"))
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(recipe(folder), stopping_at(5, KeyboardInterrupt()))
    for name in ("state.partial", "state.old", "state-99.partial", "state-best"):
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_text("half")
    assert equal(run(recipe(folder)), whole)
    assert "state.partial" not in states(folder)
    assert "state-best" in states(folder)


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(tmp_path, monkeypatch):
    whole = run(recipe(tmp_path / "whole"))
    save = Accelerator.save_state

    def full_disk(self, output_dir, **options):
        save(self, output_dir, **options)
        if (tmp_path / "run" / "state-3").exists():
            raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "save_state", full_disk)
        with pytest.raises(RunFailedError, match=r"state-6 could not be written to .* \(disk full\)"):
            run(recipe(tmp_path / "run"))
    assert states(tmp_path / "run") == ["state-3"]
    assert equal(run(recipe(tmp_path / "run")), whole)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint(tmp_path, bad):
    def losses(model, batch, step):
        result = squares(model, batch, step)
        return {"loss": result["loss"] * bad} if step == 4 else result

    with pytest.raises(
        RunFailedError, match=rf"the loss is {bad} at step 5; lower 'loop\.learning_rate' and run"
    ):
        run(recipe(tmp_path / "run", save_steps=1), losses)
    assert states(tmp_path / "run") == ["state-4"]
    # The checkpoint is sound: with the cause removed, the resumed run equals an undisturbed one.
    assert equal(run(recipe(tmp_path / "run", save_steps=1)), run(recipe(tmp_path / "whole")))


def test_a_gradient_that_is_no_number_never_reaches_the_weights(tmp_path):
    def losses(model, batch, step):
        result = squares(model, batch, step)
        # sqrt has no slope at 0: the loss is finite, its gradient is not.
        return {"loss": result["loss"] + (model.outer.bias * 0).abs().sqrt().sum()} if step == 4 else result

    model = Net()
    with pytest.raises(RunFailedError, match="the gradient is nan at step 5"):
        run(recipe(tmp_path), losses, model)
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_a_weight_or_moment_that_is_no_number_is_not_saved(tmp_path):
    """The update itself may overflow, from a finite loss and gradient."""

    def overflow(parameter):
        parameter.data[0].fill_(math.inf)

    def spoiled(model, batch, step):
        result = squares(model, batch, step)
        if step == 3:
            model.blocks[0].weight.register_post_accumulate_grad_hook(overflow)
        return result

    with pytest.raises(
        RunFailedError, match=r"state-4 was not saved, because blocks\.0\.weight contains NaN"
    ):
        run(recipe(tmp_path / "run", save_steps=1), spoiled)
    assert states(tmp_path / "run") == ["state-3"]
    assert equal(run(recipe(tmp_path / "run", save_steps=1)), run(recipe(tmp_path / "whole")))


def test_a_checkpoint_with_a_weight_that_is_no_number_is_refused(tmp_path):
    run(recipe(tmp_path, max_steps=3))
    file = tmp_path / "state-3" / "model.safetensors"
    tensors = load_file(file)
    tensors["outer.bias"].fill_(math.nan)
    save_file(tensors, file)
    write_manifest(file.parent, {"step": 3})  # as it was saved
    with pytest.raises(RecipeError, match=r"state-3: outer\.bias contains NaN or infinity; use an earlier"):
        run(recipe(tmp_path))


def test_bfloat16_computes_otherwise_but_keeps_float32_weights(tmp_path, reset_accelerate):
    exact = run(recipe(tmp_path / "float32"))
    AcceleratorState._reset_state()
    rounded = run(recipe(tmp_path / "bfloat16", mixed_precision="bf16"))
    assert not equal(exact, rounded)
    for one, other in zip(exact.parameters(), rounded.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0.02)
        assert other.dtype == torch.float32


@pytest.fixture
def reset_accelerate():
    """Accelerate remembers the precision of a process; a test that changes it puts it back."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def test_accumulated_batches_are_one_large_batch(tmp_path):
    large = run(recipe(tmp_path / "large", batch_size=6, optimizer="adamw"))
    small = run(recipe(tmp_path / "small", batch_size=2, gradient_accumulation_steps=3, optimizer="adamw"))
    for one, other in zip(large.parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    for own, other in zip(metrics(tmp_path / "large"), metrics(tmp_path / "small"), strict=True):
        assert own == pytest.approx(other, rel=1e-4)


def test_a_data_loader_that_an_earlier_trainer_left_at_its_end_cuts_no_step_short(tmp_path):
    options = {"batch_size": 2, "gradient_accumulation_steps": 3, "optimizer": "adamw"}
    expected = run(recipe(tmp_path / "alone", **options))
    left = Accelerator().prepare(DataLoader(range(1)))
    next(iter_of_left := iter(left))
    assert left.end_of_dataloader
    assert GradientState().active_dataloader is left
    assert equal(run(recipe(tmp_path / "after", **options)), expected)
    assert not list(iter_of_left)


def test_a_resumed_run_with_accumulation_equals_an_uninterrupted_one(tmp_path):
    options = {"gradient_accumulation_steps": 2}
    whole = run(recipe(tmp_path / "whole", **options))
    with pytest.raises(KeyboardInterrupt):
        run(recipe(tmp_path / "broken", **options), stopping_at(5, KeyboardInterrupt()))
    assert states(tmp_path / "broken") == ["state-3"]
    assert equal(run(recipe(tmp_path / "broken", **options)), whole)
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "whole")


def test_wandb_gets_the_metrics_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    run(recipe(tmp_path / "run", report_to=["wandb"]))
    wandb.teardown()  # its service writes the file and has then exited
    (log,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    content = log.read_bytes()
    assert b"loss" in content
    assert b"late" in content
    assert b"learning_rate" in content  # the recipe


def test_auto_precision_is_float32_without_a_gpu(tmp_path, monkeypatch, reset_accelerate):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    exact = run(recipe(tmp_path / "float32"))
    assert equal(exact, run(recipe(tmp_path / "auto", mixed_precision="auto")))


@pytest.mark.parametrize(("setting", "compiled"), [("auto", False), (False, False), (True, True)])
def test_the_blocks_of_stacks_are_compiled(tmp_path, monkeypatch, setting, compiled):
    """On a CPU, where `auto` does not compile."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inside(x)

    seen: list[nn.Module] = []
    monkeypatch.setattr(Block, "compile", lambda self: seen.append(self))
    model = Net()
    model.blocks.append(Block())  # beside a plain layer, which gains nothing
    run(recipe(tmp_path, compile=setting, max_steps=1, optimizer="adamw"), squares, model)
    assert seen == ([model.blocks[1]] if compiled else [])


# ---------------------------------------------------------------- refusals


def test_gradient_checkpointing_needs_a_model_that_supports_it(tmp_path):
    with pytest.raises(RecipeError, match=r"'loop\.gradient_checkpointing' is available in stage 2 only"):
        run(recipe(tmp_path, gradient_checkpointing=True))


@pytest.mark.parametrize("change", ["size", "optimizer"])
def test_a_checkpoint_of_another_recipe_is_refused(tmp_path, change):
    run(recipe(tmp_path, max_steps=3))
    optimizer = "adamw" if change == "optimizer" else "muon"
    with pytest.raises(
        RecipeError, match=r"'.*state-3' is a checkpoint of a different .* loop\.resume=false"
    ) as caught:
        run(recipe(tmp_path, optimizer=optimizer), model=Net(width=6 if change == "size" else 4))
    assert "\n" not in str(caught.value)
    assert states(tmp_path) == ["state-3"]


def test_pretraining_knows_neither_rewards_nor_reinforcement_learning():
    script = (
        "import sys, policy.pretrain_skin_vae, policy.pretrain_tokenrig\n"
        "print(sorted({'rl', 'rewards', 'ray', 'trl'} & {name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
