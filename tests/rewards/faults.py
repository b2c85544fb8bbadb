"""Meshes and settings that make a reward worker exit, stop or spin, a given number of times."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rewards import RewardSettings
from rewards.worker import RewardMesh
from tests.rewards.rollouts import SETTINGS

Fault = Literal["exit", "stop", "spin"]


def plan(folder: Path, place: str, *faults: Fault) -> None:
    """Have the next calls of `place` (`prepare`, `decode`, or `score-<pose seed>`) do this, one each."""
    for number, fault in enumerate(faults):
        (folder / f"{place}.{number}.{fault}").touch()


def planned(folder: Path, place: str) -> int:
    """How many planned faults have not happened."""
    return len(list(folder.glob(f"{place}.*")))


def strike(folder: str, place: str, creator: int) -> None:
    """Do what is planned for this call, in a worker's process only."""
    if os.getpid() == creator:
        return
    for path in sorted(Path(folder).glob(f"{place}.*")):
        try:
            path.unlink()
        except FileNotFoundError:
            continue  # another worker took it
        if path.suffix == ".exit":
            os._exit(1)
        if path.suffix == ".stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        # Also after the signal: another thread may take it, and stop this one some instructions later.
        while True:
            pass


@dataclass(frozen=True)
class FaultySettings(RewardSettings):
    """Scoring a group with pose seed S does what is planned for `score-S`."""

    folder: str = ""
    creator: int = 0

    def rotations(self, joint_count: int, seed: int, *arguments: Any, **options: Any) -> Any:
        strike(self.folder, f"score-{seed}", self.creator)
        return super().rotations(joint_count, seed, *arguments, **options)


def faulty_settings(folder: Path) -> FaultySettings:
    return FaultySettings(
        SETTINGS.resolution,
        max_scoring_vertices=SETTINGS.max_scoring_vertices,
        folder=str(folder),
        creator=os.getpid(),
    )


class FaultyMesh(RewardMesh):
    """Preparing it, or encoding its points for the decoder, does what is planned in `folder`."""

    folder: str
    creator: int

    def __getattribute__(self, name: str) -> Any:
        place = {"faces": "prepare", "points": "decode"}.get(name)
        if place is not None:
            strike(object.__getattribute__(self, "folder"), place, object.__getattribute__(self, "creator"))
        return object.__getattribute__(self, name)


def faulty_mesh(mesh: RewardMesh, folder: Path, name: str | None = None) -> FaultyMesh:
    """The mesh with faults; `folder` also makes its name, so that no worker knows it already."""
    found = object.__new__(FaultyMesh)
    parts = {"folder": str(folder), "creator": os.getpid(), "name": name or f"faulty {folder.name}"}
    for key, value in (vars(mesh) | parts).items():
        if key != "key":
            object.__setattr__(found, key, value)
    return found
