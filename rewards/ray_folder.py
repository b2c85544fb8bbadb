"""Checks the folders where a local Ray puts sockets, logs (RAY_TMPDIR, TMPDIR) and its token."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

# Longest path of a Unix socket in bytes, without the terminating zero (sun_path).
_MAX_SOCKET_PATH = 103 if sys.platform == "darwin" else 107
# The largest process number of 64-bit Linux.
_LARGEST_PROCESS = 4_194_304


def ray_folder_problem(environment: Mapping[str, str] = os.environ, process: int | None = None) -> str | None:
    """Why a local Ray cannot start in its folder, and the fix, in one sentence; None if it can.

    Ray takes RAY_TMPDIR, then TMPDIR (on Linux), then /tmp. It names its sockets
    <folder>/ray/session_<date>_<time>_<microseconds>_<process>/sockets/plasma_store. The token that
    its processes share lies in ~/.ray.
    """
    return _token_problem(environment) or _socket_problem(environment, process)


def _token_problem(environment: Mapping[str, str]) -> str | None:
    if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(environment):
        return None
    if environment.get("RAY_AUTH_MODE") == "disabled":
        return None
    folder = Path(environment.get("HOME") or os.path.expanduser("~"), ".ray")
    if (folder / "auth_token").is_file():
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    return (
        None
        if writable
        else f"{folder}, where Ray keeps its token, cannot be written; set HOME to a folder that can"
    )


def _socket_problem(environment: Mapping[str, str], process: int | None) -> str | None:
    names = ("RAY_TMPDIR", "TMPDIR") if sys.platform.startswith("linux") else ("RAY_TMPDIR",)
    name = next((name for name in names if name in environment), None)
    if name is None:
        return None
    folder = environment[name]
    fix = "set RAY_TMPDIR to the absolute path of a writable folder, such as /tmp"
    if not os.path.isabs(folder):
        return f"{name} is '{folder}', which is not an absolute path; {fix}"
    length = len(os.fsencode(folder.rstrip("/")))
    if length > _room(process or os.getpid()):
        room = _room(_LARGEST_PROCESS)  # so that the advice holds for the next process, too
        return (
            f"{name} is '{folder}', whose {length} bytes leave no room for the names of Ray's sockets; set "
            f"RAY_TMPDIR to a shorter path (up to {room} bytes), such as /tmp"
        )
    try:
        Path(folder, "ray").mkdir(parents=True, exist_ok=True)
        writable = os.access(Path(folder, "ray"), os.W_OK)
    except OSError as error:
        return f"{name} is '{folder}', which cannot be written ({error.strerror}); {fix}"
    return None if writable else f"{name} is '{folder}', which cannot be written; {fix}"


def _room(process: int) -> int:
    """The bytes that the names of Ray's sockets leave for the folder's path."""
    session = f"/ray/session_2000-01-01_00-00-00_000000_{process}/sockets/plasma_store"
    return _MAX_SOCKET_PATH - len(session)
