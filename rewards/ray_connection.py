"""Connects to Ray or starts it, tells whether it is still alive, and turns its errors into one sentence."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private import worker as ray_driver
from ray.exceptions import (
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
)

from data.command_line import RunFailedError
from rewards.ray_folder import ray_folder_problem

# A Ray head that refuses connections for this long is dead.
_HEAD_GONE_S = 5.0
# Closing a connection to a dead cluster can block in Ray.
_SHUTDOWN_S = 15.0
# How to go on after a failed run.
RESUME = "run the same command again to resume from the last checkpoint"


class RayUnavailableError(RunFailedError):
    """Ray or the reward workers could not be started or reached, or died; the message says what to change."""


def connect(address: str | None, namespace: str, workers: int) -> bool:
    """Connect to Ray unless this process is connected; True if it was not (so that closing disconnects).

    Raises RayUnavailableError.
    """
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Actors that request no GPU still see all of them.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Without its head, Ray ends this process after 60 s, in the middle of a step. `ClusterHealth` notices
    # earlier, and the run ends by itself.
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "3600")
    options: dict[str, Any] = {"namespace": namespace, "log_to_driver": False, "logging_level": "error"}
    if address is None:
        if (problem := ray_folder_problem()) is not None:
            raise RayUnavailableError(f"a local Ray cannot start: {problem}")
        # "local": otherwise Ray joins any cluster named by RAY_ADDRESS or left by an earlier run.
        # At least one slot per scoring worker: on a small machine they share cores.
        slots = max(workers, os.cpu_count() or 1)
        # Ray's head keeps 3 kB about each of the last 100,000 tasks for the dashboard, which a local Ray does
        # not have: it grew by 0.1 MB a step.
        os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
        options |= {"address": "local", "num_cpus": slots, "include_dashboard": False}
    else:
        options["address"] = address
    try:
        _check_reachable(address)
        ray.init(**options)
    except (OSError, RuntimeError, ValueError) as error:
        where = "a local Ray" if address is None else f"Ray at '{address}'"
        # Something listens there, and may have wanted the token that `ray start` makes.
        token = address is not None and not isinstance(error, OSError)
        hint = ", and set RAY_AUTH_MODE=token if the cluster asks for a token" if token else ""
        raise RayUnavailableError(
            f"{where} could not be reached ({str(error).splitlines()[0]}); check 'ray.address'{hint}"
        ) from error
    # Ray prints dozens of lines of its log when a worker or a node dies; the service says it in one.
    ray_driver.print_to_stdstream = lambda data, ignore_prefix: None
    return True


def disconnect() -> None:
    """Disconnect from Ray, and end a Ray that this process started; gives up on one that does not answer."""
    thread = threading.Thread(target=ray.shutdown, daemon=True)
    thread.start()
    thread.join(_SHUTDOWN_S)


def _check_reachable(address: str | None) -> None:
    """Raise OSError if nothing listens at `host:port`: Ray itself would keep trying for many minutes."""
    host, separator, port = (address or "").rpartition(":")
    if separator and port.isdigit() and "//" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


class ClusterHealth:
    """Whether the cluster that this process is connected to is alive: its head, and the raylet of this node.

    Ray ends the process that touches the object store after its raylet died, without a word: ask first.
    """

    def __init__(self) -> None:
        context = ray.get_runtime_context()
        self._head = context.gcs_address
        self._refused_since: float | None = None
        node = context.get_node_id()
        sockets = [entry["RayletSocketName"] for entry in ray.nodes() if entry["NodeID"] == node]
        self._raylet = _process_with(sockets[0]) if sockets else None

    def problem(self) -> str | None:
        """Why the cluster cannot be used any more, None if it can. Cheap: opens no connection."""
        if self._raylet is not None and not _runs(self._raylet):
            return f"Ray's node process (raylet, pid {self._raylet.pid}) on this machine died; {RESUME}"
        refused = self._refused_since
        if refused is not None and time.monotonic() - refused > _HEAD_GONE_S:
            return f"the Ray head at {self._head} does not answer any more; {RESUME}"
        return None

    def call_head(self) -> None:
        """Note whether the head accepts connections; takes up to 2 s."""
        host, _, port = self._head.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
        except OSError:
            self._refused_since = self._refused_since or time.monotonic()
        else:
            self._refused_since = None


def _process_with(raylet_socket: str) -> psutil.Process | None:
    """The raylet that listens on this socket, None if it cannot be seen from here."""
    for process in psutil.process_iter(["name", "cmdline"]):
        line = process.info["cmdline"] or []
        if process.info["name"] == "raylet" and any(raylet_socket in argument for argument in line):
            return process
    return None


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def root_cause(error: BaseException) -> BaseException:
    """The first error: a task that depends on a failed one fails with that one's error as its cause."""
    while isinstance(error, RayTaskError) and error.cause is not None:
        error = error.cause
    return error


def is_system_failure(error: RayError) -> bool:
    """Whether a worker or the object store failed, not the code that ran there."""
    cause = root_cause(error)
    return isinstance(cause, RayError) and not isinstance(cause, RayTaskError)


def reason_of(error: RayError) -> str:
    """A Ray error in one line: ours for those that have a remedy, else its first line, or the last of a
    traceback, which names the cause."""
    cause = root_cause(error)
    if isinstance(cause, OutOfDiskError):
        return "Ray's object store is full and the disk it spills to as well; free space in its folder"
    if isinstance(cause, ObjectStoreFullError):
        return "Ray's object store is full; start Ray with more of it (ray start --object-store-memory)"
    if isinstance(cause, OutOfMemoryError) or "memory monitor" in str(cause):
        return "a node ran out of memory and Ray killed a worker; lower 'workers.count' or add memory"
    if isinstance(cause, ObjectLostError):
        return "a node that held a mesh or its rigs' weights left the cluster"
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    if not lines:
        return type(cause).__name__
    line = lines[-1] if "ray::" in lines[0] or "Traceback" in lines[0] else lines[0]
    return f"{type(cause).__name__}: {line}"


def python_path(folders: Iterable[str] = ()) -> str:
    """The workers' PYTHONPATH: this checkout first, so that they run the same code, and `folders` last."""
    root = str(Path(__file__).resolve().parent.parent)
    own = filter(None, [os.environ.get("PYTHONPATH")])
    return os.pathsep.join(dict.fromkeys([root, *own, *folders]))
