"""Samples what the processes of a run use: memory, file descriptors, threads, and Ray's object store."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import psutil


def sample(root: psutil.Process) -> dict[str, dict[str, int]]:
    """What `root` and all its descendants use now, by the role of the process.

    Returns:
        For each process, in bytes: `rss`; `uss` and `pss` from smaps; `anon`, memory that no file backs. USS
        leaves out pages that other processes map too, so it falls when another program starts the same
        executable; anonymous memory depends on the process alone, and leaves out the object store. Then `fds`
        and `threads`. Processes that end meanwhile are skipped.
    """
    used: dict[str, dict[str, int]] = {}
    seen: Counter[str] = Counter()
    for process in (root, *root.children(recursive=True)):
        try:
            memory = process.memory_full_info()
            values = {
                "rss": memory.rss,
                "uss": memory.uss,
                "pss": memory.pss,
                "anon": anonymous(process.pid),
                "fds": process.num_fds(),
                "threads": process.num_threads(),
            }
            role = "trainer" if process.pid == root.pid else role_of(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess, FileNotFoundError):
            continue
        seen[role] += 1
        used[role if seen[role] == 1 else f"{role} {seen[role]}"] = values
    return used


def anonymous(pid: int) -> int:
    """Bytes of a process's resident memory that no file backs: heaps, stacks, compiled kernels."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


def role_of(process: psutil.Process) -> str:
    """What a process of Ray does: `decoder`, `scorer`, `registry`, `raylet`, `gcs_server`, or its name."""
    if process.name() in ("raylet", "gcs_server"):  # their arguments name the others
        return process.name()
    title = " ".join(process.cmdline())
    for part, role in (
        ("ray::DecoderActor", "decoder"),
        ("ray::ScoringActor", "scorer"),
        ("ray::MeshRegistry", "registry"),
        ("ray::Supervisor", "supervisor"),
        ("ray::IDLE", "idle worker"),
        ("dashboard/agent.py", "agent"),
        ("runtime_env/agent", "runtime_env_agent"),
        ("log_monitor.py", "log_monitor"),
        ("monitor.py", "monitor"),
    ):
        if part in title:
            return role
    return process.name()


def object_store_bytes() -> int:
    """Bytes in use in the object store of the Ray that this process is connected to."""
    import ray

    total = ray.cluster_resources()["object_store_memory"]
    return int(total - ray.available_resources().get("object_store_memory", 0.0))


def append(path: Path, line: dict[str, Any]) -> None:
    """Add one JSON line."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
