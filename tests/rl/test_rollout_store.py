"""Rows of kept rollouts: their format, their errors, and which are dropped when space runs out."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.typed_recipe import RecipeError
from rl.rollout_store import KeptRollout, RolloutStore, fitting, kind_of, read_row, read_rows
from tests.rl.kept_rows import kept_row


def test_a_row_reads_back_and_is_strict_json():
    kept = kept_row(7, glb="step-7.glb")
    assert read_row(kept.line(), "x") == kept
    bad = kept_row(7, "failure", rewards={"a": math.nan}, total=math.inf)
    assert json.loads(bad.line(), parse_constant=pytest.fail)["rewards"] == {"a": "NaN"}
    assert read_row(bad.line(), "x").total == "Infinity"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"why": "best"', "Expecting"),
        ("[1, 2]", "has no attribute"),
        ("[" * 100_000, "recursion"),
        (b"\xff\xfe\x00a", "Expecting"),
        (b'{"why": "\xff"}', "can't decode"),
        ('{"format": 2}', "its format is 2, not 1"),
        ('{"format": 1, "why": "best"}', "it has no 'mesh'"),
        (kept_row(1, "great").line(), "its 'why' is \"great\""),
        (kept_row(1, tokens=[1, "x"]).line(), "its 'tokens' is [1, \"x\"]"),
        (kept_row(1, mesh_file=3).line(), "its 'mesh_file' is 3"),
        (kept_row(1, pose_seed=-1).line(), "its 'pose_seed' is -1"),
        (kept_row(1, valid=None).line(), "its 'valid' is null"),
        (kept_row(1, weights={}).line(), "its 'weights' is {}"),
        (kept_row(1, rewards={"a": "much"}).line(), 'its \'rewards\' is {"a": "much"}'),
        (kept_row(1, rewards={"b": 1.0}).line(), "its rewards, weights and total do not go together"),
        (
            kept_row(1, rewards={"a": 1.0}, total=None).line(),
            "its rewards, weights and total do not go together",
        ),
    ],
)
def test_damaged_rows_are_named(line, reason):
    with pytest.raises(RecipeError) as caught:
        read_row(line, "rollouts.jsonl:12")
    assert str(caught.value).startswith("rollouts.jsonl:12 is not the row of a kept rollout (")
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        ("no skeleton eos among its 162 tokens", "no skeleton eos among its N tokens"),
        ("12 of the 1,024 SkinTokens of 5 joints.", "N of the N SkinTokens of N joints."),
        ("'fox' is quarantined: it stopped 2 workers", "'<mesh>' is quarantined: it stopped N workers"),
    ],
)
def test_kinds_are_free_of_numbers_and_names(failure, kind):
    assert kind_of(failure, "fox") == kind


def pairs(*steps: int) -> list[KeptRollout]:
    return [kept_row(step, why, total) for step in steps for why, total in (("best", 2.0), ("worst", 1.0))]


@pytest.mark.parametrize(
    ("rows", "limit", "steps"),
    [
        (pairs(1, 10, 20, 30), 8, [1, 10, 20, 30]),  # all fit
        # The extremes are the best and the worst of step 1 (the first of equals), kept as the first anyway.
        (pairs(1, 10, 20, 30), 6, [1, 20, 30]),  # 10 is 9 and 10 from its neighbours, 20 is 10 and 10
        (pairs(1, 10, 20, 30), 4, [1, 30]),
        (pairs(1, 10, 20, 30), 2, [30]),  # the first goes before the latest
        (pairs(1, 10, 20, 30), 1, []),
        # The highest total at 20 and the lowest at 10 stay longer than 15.
        (
            [kept_row(1), kept_row(10, total=0.1), kept_row(15), kept_row(20, total=9.0), kept_row(30)],
            4,
            [1, 10, 20, 30],
        ),
        (
            [kept_row(1), kept_row(10, total=0.1), kept_row(15), kept_row(20, total=9.0), kept_row(30)],
            3,
            [1, 20, 30],
        ),
        # Failures stay until only they are left; then the latest goes first.
        ([kept_row(1), kept_row(2, "failure"), kept_row(3), kept_row(4, "failure")], 2, [2, 4]),
        ([kept_row(1), kept_row(2, "failure"), kept_row(3), kept_row(4, "failure")], 1, [2]),
    ],
)
def test_what_is_dropped_first(rows, limit, steps):
    kept = fitting(rows, [1] * len(rows), limit)
    assert list(dict.fromkeys(rows[place].step for place in kept)) == steps


@given(
    st.lists(st.tuples(st.integers(1, 30), st.sampled_from(["best", "worst", "failure"]), st.integers(1, 9))),
    st.integers(1, 60),
)
def test_it_always_fits_and_drops_nothing_without_need(entries, limit):
    rows = [kept_row(step, why, float(size)) for step, why, size in entries]
    sizes = [size for _, _, size in entries]
    kept = fitting(rows, sizes, limit)
    assert sum(sizes[place] for place in kept) <= limit
    assert kept == sorted(set(kept))
    if sum(sizes) <= limit:
        assert len(kept) == len(rows)


def test_a_store_keeps_within_its_bytes_and_its_files_match_its_rows(tmp_path):
    store = RolloutStore(tmp_path / "rollouts", 5000, 0)
    for step in range(1, 9):
        kept = kept_row(step)
        kept = replace(kept, glb=kept.file_name())
        (tmp_path / "rollouts").mkdir(exist_ok=True)
        (tmp_path / "rollouts" / kept.glb).write_bytes(b"x" * 1000)
        store.add([kept])
        files = {path.name for path in (tmp_path / "rollouts").glob("*.glb")}
        assert files == {one.glb for one in store.rows}
        assert sum(path.stat().st_size for path in (tmp_path / "rollouts").iterdir()) <= 5000
        assert read_rows(tmp_path / "rollouts" / "rollouts.jsonl") == store.rows
    assert [one.step for one in store.rows] == [1, 5, 8] or store.rows[0].step == 1
    assert store.rows[-1].step == 8
    assert store.dropped > 0


def test_a_resumed_store_drops_what_is_repeated(tmp_path):
    store = RolloutStore(tmp_path / "r", 10**6, 0)
    store.add([kept_row(1), kept_row(2, "failure"), kept_row(5), kept_row(6, "failure")])
    (tmp_path / "r" / ".step-000003-best-fox.glb.7.tmp").write_bytes(b"of a run that was killed")
    again = RolloutStore(tmp_path / "r", 10**6, 4)
    assert [one.step for one in again.rows] == [1, 2]
    assert again.kinds == {"kind of 2"}
    assert RolloutStore(tmp_path / "r", 10**6, 0).rows == []
    assert not (tmp_path / "r" / ".step-000003-best-fox.glb.7.tmp").exists()
    (tmp_path / "r" / "rollouts.jsonl").write_text("{")
    with pytest.raises(RecipeError):
        RolloutStore(tmp_path / "r", 10**6, 4)
