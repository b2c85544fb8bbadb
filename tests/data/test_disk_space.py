"""Free space before a write, and failed writes of libraries that do not raise OSError."""

import errno
import resource
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from data.command_line import RunFailedError, run_command
from data.disk_space import mount_point, readable, require_space, write_failure


def test_the_message_has_the_disk_the_needed_and_the_free_space(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3_000_000_000))
    require_space(tmp_path / "not" / "yet", 2_000_000_000, "the next checkpoint")
    with pytest.raises(RunFailedError) as failed:
        require_space(tmp_path / "not" / "yet", 3_000_000_000, "the next checkpoint")
    assert str(failed.value) == (
        f"the next checkpoint needs 3 GB in {tmp_path / 'not' / 'yet'}, but the disk at "
        f"{mount_point(tmp_path)} has 3 GB free; free some space and run the command again"
    )


def test_sizes():
    assert [readable(size) for size in (0, 999, 1000, 1_250_000, 7.5e12)] == [
        *("0 B", "999 B", "1 kB", "1.25 MB", "7.5 TB")
    ]


def test_failed_writes_are_recognised(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    tensor = {"a": torch.zeros(100_000)}
    for write, reason in (
        (lambda: torch.save(tensor, tmp_path / "a.pt"), "a file could not be written to its end"),
        (lambda: save_file(tensor, tmp_path / "a.safetensors"), "File too large"),
        (lambda: (tmp_path / "a").write_bytes(bytes(400_000)), "File too large"),
    ):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            with pytest.raises(Exception) as failed:  # each library has its own
                write()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert write_failure(failed.value) == reason
    assert write_failure(RuntimeError("CUDA error")) is None
    assert write_failure(ValueError("1")) is None


def test_a_full_disk_ends_any_command_with_a_sentence(tmp_path, capsys):
    (tmp_path / "r.yaml").write_text("a: 1\n")

    def run(recipe):
        raise OSError(errno.ENOSPC, "No space left on device", "/data/metrics.jsonl")

    assert run_command("", lambda path, overrides: {}, run, [str(tmp_path / "r.yaml")]) == 1
    assert capsys.readouterr().err == (
        "failed: the disk is full (No space left on device): /data/metrics.jsonl cannot be written; free "
        "some space and run the same command again\n"
    )
