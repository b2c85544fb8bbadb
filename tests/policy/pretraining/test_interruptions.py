"""Pre-training interrupted: signals, damaged checkpoints, a full disk."""

import shutil
import signal
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from torch import nn

from data.command_line import RunFailedError
from data.stop_signals import StopRun, handling_stop_signals
from data.typed_recipe import RecipeError
from tests.policy.pretraining.test_loop import equal, recipe, run, squares, states, stopping_at
from tests.policy.tiny_recipes import metrics

pytestmark = pytest.mark.usefixtures("stop_signal_handlers")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_signal_lets_the_step_finish_and_saves_it(tmp_path, workers):
    """In step 5 of 10, also with a data loader's worker, which a terminal's Ctrl-C reaches as well."""

    def losses(model: nn.Module, batch: torch.Tensor, at: int) -> dict[str, torch.Tensor]:
        if at == 4:
            for child in [*psutil.Process().children(), psutil.Process()]:
                child.send_signal(signal.SIGINT)
        return squares(model, batch, at)

    loop = recipe(tmp_path / "stopped", dataloader_workers=workers)
    with pytest.raises(StopRun) as stop, handling_stop_signals():
        run(loop, losses)
    assert (stop.value.signum, stop.value.together) == (signal.SIGINT, True)
    assert stop.value.message.startswith("SIGINT: stopped after step 5 of 10, which is saved")
    assert states(tmp_path / "stopped") == ["state-5"]
    whole = run(recipe(tmp_path / "whole"))
    assert equal(run(recipe(tmp_path / "stopped")), whole)
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")


def test_a_damaged_checkpoint_is_not_resumed_and_the_run_does_not_start_over(tmp_path, capsys):
    run(recipe(tmp_path, max_steps=3))
    (tmp_path / "state-3" / "optimizer.bin").unlink()
    with pytest.raises(RecipeError, match=r"\(state-3: optimizer\.bin is missing\).*loop\.resume=false"):
        run(recipe(tmp_path))
    # A damaged one that an interruption left beside a whole one is skipped.
    run(recipe(tmp_path, max_steps=3, resume=False))
    shutil.copytree(tmp_path / "state-3", tmp_path / "state-6")
    (tmp_path / "state-6" / "means.json").write_text("{}")
    run(recipe(tmp_path))
    error = capsys.readouterr().err
    assert (
        f"skipping a damaged checkpoint: {tmp_path / 'state-6'}: means.json has 2 bytes instead of" in error
    )
    assert states(tmp_path) == ["state-10"]


def test_a_checkpoint_from_before_manifests_keeps_loading(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(recipe(tmp_path / "old"), stopping_at(7, KeyboardInterrupt()))
    (tmp_path / "old" / "state-6" / "manifest.json").unlink()
    assert equal(run(recipe(tmp_path / "old")), run(recipe(tmp_path / "whole")))


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    run(recipe(tmp_path, max_steps=3))
    save = torch.save

    def full(*arguments: Any, **options: Any) -> None:
        save(*arguments, **options)
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunFailedError, match=rf"state-6 could not be written to {tmp_path} \(a file"):
        run(recipe(tmp_path))
    assert states(tmp_path) == ["state-3"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(RunFailedError, match=r"the next checkpoint needs .* has 1 kB free"):
        run(recipe(tmp_path))
    monkeypatch.undo()
    assert equal(run(recipe(tmp_path)), run(recipe(tmp_path / "whole")))
