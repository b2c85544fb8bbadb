"""Kept rollouts: `rollouts/rollouts.jsonl` with one row each, GLB files beside it, bounded in size."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from data.atomic import write_atomic
from data.typed_recipe import RecipeError
from rl.bad_steps import strict

ROWS_FILE = "rollouts.jsonl"
FORMAT = 1

Why = Literal["best", "worst", "failure"]


@dataclass(frozen=True)
class KeptRollout:
    """One row of `rollouts.jsonl`; docs/watching_a_run.md has the table of its fields.

    why: the best or the worst valid rig of its group, or the first rollout with its kind of failure.
    failure: what the tokenizer or the scoring reported; kind: the same without numbers and mesh name.
    step: as in metrics.jsonl: the step that trained on it. mesh_key: digest of the mesh. tokens: the
    completion after `prompt`. rewards: by name, None if it was not scored; weights: theirs in the total.
    decoder: digest of skin VAE and vocabulary. glb: file name, None for a failure.
    """

    why: Why
    step: int
    mesh: str
    mesh_file: str | None
    mesh_key: str
    prompt: str
    given_skeleton: bool
    tokens: list[int]
    seed: int
    pose_seed: int
    rewards: dict[str, float] | None
    weights: dict[str, float]
    total: float | None
    valid: bool
    joints: int | None
    diagnostics: dict[str, float]
    advantage: float | list[float]
    policy: str
    decoder: str
    failure: str | None = None
    kind: str | None = None
    glb: str | None = None
    format: int = FORMAT

    def line(self) -> str:
        """The row as a line of strict JSON; numbers that JSON lacks are texts, such as "NaN"."""
        return json.dumps(strict(asdict(self)), allow_nan=False) + "\n"

    def file_name(self) -> str:
        """A name for its GLB that sorts by step and is valid everywhere."""
        return f"step-{self.step:06d}-{self.why}-{file_stem(self.mesh)}.glb"


def file_stem(mesh: str) -> str:
    """A mesh's name as part of a file name that is valid everywhere."""
    return re.sub(r"[^\w.-]+", "_", mesh)[:60]


def kind_of(failure: str, mesh: str) -> str:
    """A failure without numbers and the mesh's name: equal for the same kind of failure."""
    return re.sub(r"\d[\d.,]*(?<![.,])", "N", failure.replace(mesh, "<mesh>"))


def read_row(line: str | bytes, place: str) -> KeptRollout:
    """A row from its JSON; raises RecipeError, which names the `place`, for anything else."""
    try:
        values: dict[str, Any] = json.loads(line)
        if values.get("format") != FORMAT:
            raise ValueError(f"its format is {values.get('format')!r}, not {FORMAT}")
        for name, fits in _FITS.items():
            if not fits(values[name]):
                raise ValueError(f"its '{name}' is {json.dumps(values[name])[:60]}")
        row = KeptRollout(**{field.name: values[field.name] for field in fields(KeptRollout)})
        if row.rewards is not None and (row.rewards.keys() != row.weights.keys() or row.total is None):
            raise ValueError("its rewards, weights and total do not go together")
        return row
    except KeyError as error:
        reason = f"it has no {error}"
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error)
    raise RecipeError(f"{place} is not the row of a kept rollout ({reason}); restore the file")


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _text_or_null(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(value: Any) -> bool:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return real or value in ("NaN", "Infinity", "-Infinity")


def _numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(_number(item) for item in value.values())


# Whether a value of a field is one that a run writes.
_FITS: dict[str, Callable[[Any], bool]] = {
    "why": lambda value: value in get_args(Why),
    **dict.fromkeys(("mesh", "mesh_key", "prompt", "policy", "decoder"), _text),
    **dict.fromkeys(("mesh_file", "failure", "kind", "glb"), _text_or_null),
    **dict.fromkeys(("step", "seed", "pose_seed"), _whole),
    **dict.fromkeys(("given_skeleton", "valid"), lambda value: isinstance(value, bool)),
    "tokens": lambda value: isinstance(value, list) and all(map(_whole, value)),
    "rewards": lambda value: value is None or _numbers(value),
    "weights": lambda value: bool(value) and _numbers(value),
    "total": lambda value: value is None or _number(value),
    "joints": lambda value: value is None or _whole(value),
    "diagnostics": _numbers,
    "advantage": lambda value: _number(value) or (isinstance(value, list) and all(map(_number, value))),
}


def read_rows(path: Path) -> list[KeptRollout]:
    """All rows of a `rollouts.jsonl`, in order; raises RecipeError for a damaged one, by its line."""
    lines = path.read_bytes().splitlines()
    return [read_row(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]


class RolloutStore:
    """The rows and GLB files of one run, at most `max_bytes` together; only the main process has one.

    Opening it drops what is later than `step`, which the run repeats. The rows are rewritten whole, so that
    at any moment every row in the file has its GLB. Raises RecipeError for a damaged file.
    """

    def __init__(self, folder: Path, max_bytes: int, step: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self.dropped = 0
        path = folder / ROWS_FILE
        rows = read_rows(path) if path.is_file() else []
        self.rows = [row for row in rows if row.step <= step]
        if folder.is_dir():
            for partial in folder.glob(".*.tmp"):  # of a run that was killed while it wrote
                partial.unlink()
            self._write()

    @property
    def kinds(self) -> set[str]:
        """The kinds of failure that have been kept."""
        return {row.kind for row in self.rows if row.kind is not None}

    def add(self, new: Sequence[KeptRollout]) -> None:
        """Add rows whose GLB files are in the folder, and drop what no longer fits."""
        rows = [*self.rows, *new]
        sizes = [len(row.line()) + self._glb_bytes(row) for row in rows]
        kept = fitting(rows, sizes, self.max_bytes)
        self.dropped += len(rows) - len(kept)
        self.rows = [rows[place] for place in kept]
        self._write()

    def _write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.folder / ROWS_FILE, "".join(row.line() for row in self.rows).encode())
        named = {row.glb for row in self.rows}
        for path in self.folder.glob("step-*.glb"):
            if path.name not in named:
                path.unlink()

    def _glb_bytes(self, row: KeptRollout) -> int:
        return 0 if row.glb is None else (self.folder / row.glb).stat().st_size


def fitting(rows: Sequence[KeptRollout], sizes: Sequence[int], limit: int) -> list[int]:
    """Indices of the rows to keep so that their sizes add up to at most `limit`, in order.

    Dropped are, until the rest fits: the step whose neighbours are closest, so that what is kept stays spread
    over the run, but neither the first and the latest step nor those with the highest and the lowest total;
    then these two; then the first, the latest, and failures, the latest first.
    """
    kept = list(range(len(rows)))
    while kept and sum(sizes[place] for place in kept) > limit:
        victims = _least_needed([rows[place] for place in kept])
        kept = [place for position, place in enumerate(kept) if position not in victims]
    return kept


def _least_needed(rows: Sequence[KeptRollout]) -> set[int]:
    rigs = [row for row in rows if row.why != "failure"]
    if not rigs:
        return {max(range(len(rows)), key=lambda position: (rows[position].step, position))}
    steps = sorted({row.step for row in rigs})
    inner = list(zip(steps, steps[1:], steps[2:], strict=False))
    totals = sorted(rigs, key=lambda row: 0.0 if row.total is None else row.total)
    extremes = {totals[0].step, totals[-1].step}
    ordinary = [place for place in inner if place[1] not in extremes]
    if ordinary or inner:
        step = min(ordinary or inner, key=lambda place: (place[2] - place[0], place[1]))[1]
    else:
        step = steps[0]
    return {place for place, row in enumerate(rows) if row.step == step and row.why != "failure"}
