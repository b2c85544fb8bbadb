"""Runs one function on many seeds, with a record to resume from and a limit of time per seed."""

import json
import os
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from tqdm import tqdm

# Where campaigns keep their records and soak tests their curves; a campaign resumes from what it finds there.
FOLDER = Path(os.environ.get("SOAK_DIR", Path(__file__).parents[2] / "outputs" / "soak"))
CHUNK = 50


class TooSlowError(Exception):
    """A seed took longer than it may."""


def campaign(
    name: str,
    outcome: Callable[[int], str],
    count: int,
    seconds: float = 30.0,
    folder: Path = FOLDER,
) -> Counter[str]:
    """Outcomes of the seeds 0 to `count` − 1, counted.

    Each chunk of seeds adds a line of outcomes to `folder/name.jsonl`; seeds in it are not run again.
    An exception is recorded with its seed and counts as a fault, so that one fault does not hide the others.

    Raises AssertionError at the end if there were faults, with the seeds and the first traceback.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / f"{name}.jsonl"
    lines = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    done = lines[-1]["to"] if lines else 0
    outcomes: Counter[str] = Counter()
    faults: dict[str, str] = {}
    for line in lines:
        outcomes.update(line["outcomes"])
        faults |= line["faults"]
    with tqdm(total=count, initial=done, desc=name) as bar:
        for start in range(done, count, CHUNK):
            seeds = range(start, min(start + CHUNK, count))
            found: Counter[str] = Counter()
            failed: dict[str, str] = {}
            for seed in seeds:
                try:
                    with time_limit(seconds):
                        found[outcome(seed)] += 1
                except Exception:
                    failed[str(seed)] = traceback.format_exc()
            line = {"from": seeds.start, "to": seeds.stop, "outcomes": found, "faults": failed}
            with record.open("a") as file:
                file.write(json.dumps(line) + "\n")
            outcomes.update(found)
            faults |= failed
            bar.update(len(seeds))
            bar.set_postfix({**outcomes, "faults": len(faults)})
    assert not faults, (
        f"{name}: {len(faults)} faults, seeds {', '.join(list(faults)[:20])}; delete {record} after fixing "
        f"them\n{next(iter(faults.values()))}"
    )
    return outcomes


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """TooSlowError once this process has computed for `seconds` in the block: other load does not count."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise TooSlowError(f"over {seconds:g} s of computation")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
