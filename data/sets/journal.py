"""The journal of `data.prepare`: the outcome of each source file, so that an interrupted run resumes."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from data.atomic import write_atomic
from data.formats.load import Refusal
from data.sets.prepared import PreparedEntry, entry_from

JOURNAL = ".prepare.jsonl"


@dataclass(frozen=True)
class Outcome:
    """The result of one source file; `stamp` changes if the file or the settings change."""

    source: str
    stamp: str
    rigs: tuple[PreparedEntry, ...]
    refused: tuple[Refusal, ...]


class Journal:
    """The outcome of each source in a prepared folder so far, one JSON line each, beside the manifest.

    Truncated lines are ignored.
    """

    def __init__(self, out: Path) -> None:
        self._path = out / JOURNAL
        self.outcomes: dict[str, Outcome] = {}
        if self._path.is_file():
            for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
                outcome = _outcome_from(line)
                if outcome is not None:
                    self.outcomes[outcome.source] = outcome

    def add(self, outcome: Outcome) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            # The leading line break ends a truncated line, if any.
            file.write("\n" + json.dumps(asdict(outcome)))
        self.outcomes[outcome.source] = outcome

    def keep(self, outcomes: Sequence[Outcome]) -> None:
        write_atomic(self._path, "\n".join(json.dumps(asdict(outcome)) for outcome in outcomes).encode())


def _outcome_from(line: str) -> Outcome | None:
    try:
        values = json.loads(line)
        return Outcome(
            str(values["source"]),
            str(values["stamp"]),
            tuple(entry_from(rig) for rig in values["rigs"]),
            tuple(Refusal(one["file"], one["reason"]) for one in values["refused"]),
        )
    except (ValueError, LookupError, TypeError):
        return None
