"""The soak tests' own checks: a leak is found, a campaign resumes, and it reports faults with their seeds."""

import json
from pathlib import Path

import pytest

from tests.soak.campaign import campaign
from tests.soak.curve import check, growth


def test_a_growing_process_is_found():
    """30 kB a step, one file descriptor, and one byte in the object store are each too much."""

    def samples(leak: int, fd: int) -> list[dict]:
        return [
            {
                "step": step,
                "processes": {
                    role: {"anon": 300_000_000 + leak * step, "fds": 40 + fd * (step > 300), "threads": 9}
                    for role in ("trainer", "decoder", "scorer", "scorer 2")
                },
            }
            for step in range(5, 501, 5)
        ]

    check(growth(samples(0, 0), 100, 500), [1, 1])
    for leak, fd, store in ((30_000, 0, [1, 1]), (0, 1, [1, 1]), (0, 0, [1, 2])):
        with pytest.raises(AssertionError):
            check(growth(samples(leak, fd), 100, 500), store)


def test_a_campaign_resumes_and_reports_faults(tmp_path: Path):
    ran: list[int] = []

    def outcome(seed: int) -> str:
        ran.append(seed)
        if seed == 70:
            raise ZeroDivisionError("seventy")
        if seed == 75:
            while True:
                pass
        return "odd" if seed % 2 else "even"

    assert campaign("x", outcome, 50, folder=tmp_path) == {"odd": 25, "even": 25}
    ran.clear()
    with pytest.raises(AssertionError, match=r"2 faults, seeds 70, 75(.|\n)*seventy"):
        campaign("x", outcome, 100, 0.1, folder=tmp_path)
    assert ran == list(range(50, 100))
    assert json.loads((tmp_path / "x.jsonl").read_text().splitlines()[-1])["faults"].keys() == {"70", "75"}
