"""The split by groups: no group on both sides, the closest share, and what changes with more rigs."""

from dataclasses import dataclass
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.sets.dataset import split
from data.sets.grouped_split import split_groups


@dataclass(frozen=True)
class Item:
    name: str


def items(sizes: list[int]) -> tuple[list[Item], dict[str, str | None]]:
    """Groups g0, g1, … of these sizes."""
    groups: dict[str, str | None] = {
        f"g{group}-{number}": f"g{group}" for group, size in enumerate(sizes) for number in range(size)
    }
    return [Item(name) for name in groups], groups


@given(st.lists(st.integers(1, 6), min_size=1, max_size=7), st.integers(0, 30), st.integers(0, 5))
def test_whole_groups_as_close_to_the_count_as_possible(sizes: list[int], count: int, seed: int) -> None:
    """Against all selections of some but not all groups."""
    listed, groups = items(sizes)
    train, held_out = split_groups(listed, groups, count, seed)
    assert sorted(item.name for item in train + held_out) == sorted(groups)
    assert not {groups[item.name] for item in train} & {groups[item.name] for item in held_out}
    if count == 0 or len(sizes) == 1:
        assert not held_out
        return
    sums = [sum(chosen) for k in range(1, len(sizes)) for chosen in combinations(sizes, k)]
    assert abs(len(held_out) - count) == min(abs(total - count) for total in sums)
    again = split_groups(listed[::-1], groups, count, seed)
    assert {item.name for item in again[1]} == {item.name for item in held_out}


@given(st.sets(st.text("abcdef", min_size=1, max_size=4), min_size=2, max_size=30), st.integers(0, 99))
def test_without_groups_it_is_the_plain_split(names: set[str], seed: int) -> None:
    listed = [Item(name) for name in sorted(names)]
    for count in (0, 1, len(listed) // 2, len(listed) - 1):
        assert split_groups(listed, {}, count, seed) == split(listed, count, seed)
        alone = {item.name: item.name for item in listed}
        assert split_groups(listed, alone, count, seed) == split(listed, count, seed)


def test_a_group_and_a_rig_of_the_same_name_are_two() -> None:
    listed = [Item("a"), Item("b"), Item("c")]
    train, held_out = split_groups(listed, {"b": "a", "c": "a"}, 1)
    assert [item.name for item in held_out] == ["a"]
    assert [item.name for item in train] == ["b", "c"]


@pytest.mark.parametrize("seed", range(5))
def test_added_rigs_move_few_others(seed: int) -> None:
    """40 groups of 1 to 5 rigs, 10 % held out; one rig more, in a new group or an old one."""
    sizes = [1 + group % 5 for group in range(40)]
    listed, groups = items(sizes)
    before = {item.name for item in split_groups(listed, groups, 12, seed)[1]}
    for name, group in (("new", None), ("g7-new", "g7"), ("g20-new", "g20")):
        after = split_groups([*listed, Item(name)], groups | {name: group}, 12, seed)[1]
        moved = before ^ {item.name for item in after if item.name != name}
        assert len(moved) <= 6


def test_many_rigs_are_split_at_once() -> None:
    listed, groups = items([1 + group % 3 for group in range(20_000)])
    train, held_out = split_groups(listed, groups, 2_000)
    assert len(held_out) == 2_000
    assert len(train) == len(listed) - 2_000
