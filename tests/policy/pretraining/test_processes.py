"""What the processes of a run decide together, in two processes on the CPU."""

import gc
import json
import os
import socket
import time
import weakref
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import PartialState

from data.run_lock import Process
from data.typed_recipe import RecipeError
from policy.pretraining.processes import (
    _close_process_group,
    exit_together,
    largest,
    main_process_only,
    shared_lock,
)

# Of collective operations, in seconds: the main process works longer than this.
LIMIT = 4.0


def _decide(rank: int, port: int, folder: str) -> None:
    os.environ |= {
        **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
    }
    PartialState(cpu=True, backend="gloo", timeout=timedelta(seconds=LIMIT))
    place = Path(folder)
    # A signal that reached one process only.
    assert largest([15 * rank, 0, 1 - rank]) == [15, 0, 1]
    with shared_lock(place, "output_dir") as lock:
        assert (lock is not None) == (rank == 0)
        owner = json.loads((place / "run.lock").read_text())
        assert Process.current() == Process(**owner["processes"][rank])
        with main_process_only() as here:
            assert here == (rank == 0)
            if here:
                time.sleep(1.5 * LIMIT)
                (place / "evaluated").write_text("")
        assert (place / "evaluated").exists()
        PartialState().wait_for_everyone()
    exit_together(None)
    try:
        exit_together(RecipeError("'x' is wrong") if rank == 0 else None)
    except (RecipeError, SystemExit) as error:
        (place / f"rank{rank}").write_text(f"{type(error).__name__} {error}")
    torch.distributed.destroy_process_group()


def test_two_processes_decide_alike(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_decide, (port, str(tmp_path)), nprocs=2)
    assert (tmp_path / "rank0").read_text() == "RecipeError 'x' is wrong"
    assert (tmp_path / "rank1").read_text() == "SystemExit 2"
    assert not (tmp_path / "run.lock").exists()


def test_models_are_freed_before_the_group_that_they_use():
    class Model:
        def __init__(self) -> None:
            self.me = self  # as a trainer and its callbacks refer to each other

    gc.disable()
    try:
        model, left = weakref.ref(Model()), []
        assert model() is not None
        _close_process_group(SimpleNamespace(destroy_process_group=lambda: left.append(model())))
    finally:
        gc.enable()
    assert left == [None]
