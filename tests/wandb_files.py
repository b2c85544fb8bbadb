"""Reads what an offline W&B run wrote: the records of its .wandb file, in the format of LevelDB's log."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

_BLOCK = 32768
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


class OfflineRun:
    """One .wandb file: the run's id, its configuration, and the rows that were logged."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.id, self.project, self.sweep = "", "", ""
        self.config: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.exit_code: int | None = None
        for record in map(Record.FromString, _records(file.read_bytes())):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.id, self.project = record.run.run_id, record.run.project
                self.sweep = record.run.sweep_id
                self._update(record.run.config.update)
            elif kind == "config":
                self._update(record.config.update)
            elif kind == "history":
                self.history.append(
                    {_name(item): json.loads(item.value_json) for item in record.history.item}
                )
            elif kind == "exit":
                self.exit_code = record.exit.exit_code

    def _update(self, items: Any) -> None:
        for item in items:
            self.config[_name(item)] = json.loads(item.value_json)

    def values(self, name: str) -> dict[int, float]:
        """The values of a metric by `train/global_step`."""
        return {row["train/global_step"]: row[name] for row in self.history if name in row}


def offline_runs(folder: Path) -> list[OfflineRun]:
    """The offline runs in `folder/wandb`, the earliest first."""
    return [OfflineRun(file) for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]


def _name(item: Any) -> str:
    return item.key or "/".join(item.nested_key)


def _records(content: bytes) -> Iterator[bytes]:
    assert content[:4] == b":W&B"
    place, parts = 7, b""
    while place + 7 <= len(content):
        left = _BLOCK - place % _BLOCK
        if left < 7:  # too little for a header: zeros
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        assert kind in (_FULL, _FIRST, _MIDDLE, _LAST)
        if kind in (_FULL, _LAST):
            yield parts
            parts = b""
