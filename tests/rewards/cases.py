"""Reference cases: inputs, and the numbers that an independent program computed (see reference/README.md)."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from rewards import OccupancyGrid, build_occupancy

FOLDER = Path(__file__).parent / "reference"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.json")))
INTERIORS = ("surface", "projection", "flood")


@cache
def inputs(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


@cache
def expected(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text())


@cache
def grid(name: str, interior: str = "projection") -> OccupancyGrid:
    return build_occupancy(inputs(name)["vertices"], inputs(name)["faces"], interior=interior)
