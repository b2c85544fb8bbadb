"""A user's own rewards: finds the functions that a recipe names, hands them a rig, and checks their value."""

from __future__ import annotations

import importlib
import math
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.command_line import RunFailedError
from data.compiled import read_only
from rewards.errors import RigRewardError
from rewards.occupancy import OccupancyGrid
from rewards.scoring_mesh import ScoringMesh


class CustomRewardError(RunFailedError):
    """A user's reward function cannot be used; the message names it and says what to do."""


@dataclass(frozen=True, eq=False)
class RewardInputs:
    """One rig on its mesh, as a user's reward function gets it; all arrays are read-only.

    Positions are in the mesh frame: the bounding box is centred at 0 and its longest side spans [-1, 1].

    Attributes:
        mesh: the mesh's name.
        vertices: (S, 3) float32, the scoring vertices: coincident vertices of the file welded into one; of a
            large mesh a fixed random subset.
        normals: (S, 3) float32, unit vertex normals.
        edges: (E, 2) int64, indices into `vertices`.
        grid: the mesh's occupancy, with `contains(points)`, `centres()` and `cell`, the edge of a cell.
        joints: (J, 3) float64.
        parents: (J,) int64, -1 for a root.
        weights: (S, J) float32, raw skinning weights at `vertices`: a sigmoid per bone, not normalised.
        posed: (P, S, 3) float64, `vertices` in each of the poses of `deformation`, by linear blend skinning.
        rewards: the other rewards of the rig, by name.
        diagnostics: its diagnostics, by name (`rewards.diagnostics`).
    """

    mesh: str
    vertices: NDArray[np.float32]
    normals: NDArray[np.float32]
    edges: NDArray[np.int64]
    grid: OccupancyGrid
    joints: NDArray[np.float64]
    parents: NDArray[np.int64]
    weights: NDArray[Any]
    posed: NDArray[np.float64]
    rewards: Mapping[str, float]
    diagnostics: Mapping[str, float]


CustomReward = Callable[[RewardInputs], float]


@cache
def find_reward(place: str) -> CustomReward:
    """The function at `package.module:function`; Python must find the module, also in the current folder.

    Raises:
        CustomRewardError: it cannot be imported, is not there or is not a function.
    """
    module_name, _, name = place.partition(":")
    if os.getcwd() not in sys.path:  # a script's own folder stands in its place
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # the latter of a script that ends itself
        missing = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")
        how = (
            "put the module into the folder of the command, a folder of PYTHONPATH or an installed package"
            if missing
            else "correct the module"
        )
        raise CustomRewardError(f"the reward {place} cannot be imported ({_what(error)}); {how}") from error
    function = getattr(module, name, None)
    if not callable(function):
        found = "has no such name" if function is None else f"has {type(function).__name__} by that name"
        raise CustomRewardError(
            f"the reward {place} is not a function: {module.__file__} {found}; correct one of them"
        )
    return function


def import_folder(place: str) -> str:
    """The folder from which Python imports the module of a reward that `find_reward` has found."""
    top = sys.modules[place.partition(":")[0].partition(".")[0]]
    if hasattr(top, "__path__"):  # a package, with or without an __init__.py
        return str(Path(next(iter(top.__path__))).resolve().parent)
    return str(Path(str(top.__file__)).resolve().parent)


def source_file(place: str) -> Path:
    """The file of the module of a reward that `find_reward` finds."""
    find_reward(place)
    return Path(str(sys.modules[place.partition(":")[0]].__file__))


def custom_rewards(places: tuple[str, ...], inputs: RewardInputs) -> dict[str, float]:
    """The value of each of a user's rewards, by the function's name.

    Raises:
        CustomRewardError: a function fails, or returns something else than a finite number.
        RigRewardError: a function raises it to reject the rig.
    """
    return {place.partition(":")[2]: _value(place, inputs) for place in places}


def _value(place: str, inputs: RewardInputs) -> float:
    function = find_reward(place)
    where = f"the reward {place} %s for a rig of {len(inputs.joints)} joints on mesh '{inputs.mesh}'"
    try:
        value = function(inputs)
    except RigRewardError:
        raise
    except (Exception, SystemExit) as error:
        raise CustomRewardError(f"{where % 'failed'} ({_what(error)}); {_FIX}") from error
    if not isinstance(value, Real):
        shape = f" of shape {value.shape}" if hasattr(value, "shape") else ""
        raise CustomRewardError(f"{where % f'returned {type(value).__name__}{shape}'}, not a number; {_FIX}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise CustomRewardError(f"{where % f'returned {number}'}, which is not finite; {_FIX}")
    return number


_FIX = "fix the function and run the same command again"


def _what(error: BaseException) -> str:
    """An exception in one line, with the line of the user's code that led to it."""
    text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    frames = [
        (Path(frame.filename), frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<") and frame.filename not in (__file__, importlib.__file__)
    ]
    libraries = [Path(path) for path in sysconfig.get_paths().values()]
    own = [frame for frame in frames if not any(frame[0].is_relative_to(path) for path in libraries)]
    return "".join([text, *(f", {path.name} line {line}" for path, line in (own or frames)[-1:])])


def reward_inputs(
    mesh: ScoringMesh,
    joints: NDArray[np.float64],
    parents: NDArray[np.int64],
    weights: NDArray[Any],
    posed: NDArray[np.float64],
    rewards: Mapping[str, float],
    diagnostics: Mapping[str, float],
) -> RewardInputs:
    """What a user's rewards get of a rig that has been scored; posed (S, P, 3) from `rewards.lbs.skin`."""
    return RewardInputs(
        mesh.name,
        read_only(mesh.vertices),
        read_only(mesh.normals),
        read_only(mesh.edges),
        mesh.grid,
        read_only(joints),
        read_only(parents),
        read_only(weights),
        read_only(posed.transpose(1, 0, 2)),
        dict(rewards),
        dict(diagnostics),
    )
