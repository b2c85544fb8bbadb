"""Deadlines of worker tasks: bounds, growth with the work; how many meshes may be quarantined."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.deadlines import TaskTimes, WorkerLimits, deadline, quarantine_allowance

LIMITS = WorkerLimits(timeout_s=300, min_deadline_s=30)
UNITS = st.integers(0, 10**12)
TIMES = st.floats(0, 1e6)


def test_by_hand():
    # 10 x 0.002 s a unit x 10,000 units = 200 s; 1,000 units would get 20 s, below the floor.
    assert deadline(10_000, 0.002, LIMITS) == pytest.approx(200)
    assert deadline(1_000, 0.002, LIMITS) == 30
    assert deadline(20_000, 0.002, LIMITS) == 300
    assert deadline(1, None, LIMITS) == 300


@given(UNITS, TIMES | st.none(), st.floats(0.1, 1e4), st.floats(0.1, 1e4))
def test_a_deadline_stays_between_its_bounds(units, slowest, most, least):
    limits = WorkerLimits(timeout_s=most, min_deadline_s=least)
    assert min(least, most) <= deadline(units, slowest, limits) <= most


@given(UNITS, UNITS, TIMES)
def test_more_work_never_gets_less_time(first, second, slowest):
    less, more = sorted((first, second))
    assert deadline(less, slowest, LIMITS) <= deadline(more, slowest, LIMITS)


@given(st.lists(st.tuples(st.integers(1, 10**9), st.floats(0, 300)), min_size=1, max_size=30))
def test_no_task_that_was_seen_would_have_been_killed(tasks):
    times = TaskTimes(LIMITS)
    for units, seconds in tasks:
        times.add("score", units, seconds)
    for units, seconds in tasks:
        assert seconds <= times.deadline("score", units) * (1 + 1e-9)
    assert times.deadline("decode", 1) == LIMITS.timeout_s  # each kind by itself


@given(st.floats(0, 1e6) | st.just(float("inf")), st.integers(0, 10**6))
def test_allowance(limit, meshes):
    allowed = quarantine_allowance(limit, meshes)
    if limit >= 1:
        assert allowed == int(min(limit, meshes))
    else:
        assert allowed == (0 if limit == 0 else max(1, int(limit * meshes)))


def test_allowance_by_hand():
    cases = ((0.1, 64), (0.1, 3), (0.0, 64), (5, 64), (5, 3), (1.0, 64))
    assert [quarantine_allowance(*case) for case in cases] == [6, 1, 0, 5, 3, 1]
