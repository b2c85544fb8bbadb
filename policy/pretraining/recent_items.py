"""A cache of the items used last, within a budget of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class RecentItems(Generic[T]):
    """`read(key)`, kept while the items used last take at most `budget` bytes together.

    Callers must not change the items. An item larger than the budget is not kept.
    """

    def __init__(self, read: Callable[[int], T], size: Callable[[T], int], budget: int) -> None:
        self._read, self._size, self._left = read, size, budget
        self._kept: OrderedDict[int, tuple[T, int]] = OrderedDict()

    def __getitem__(self, key: int) -> T:
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key][0]
        item = self._read(key)
        bytes_taken = self._size(item)
        self._kept[key] = item, bytes_taken
        self._left -= bytes_taken
        while self._left < 0:
            _, (_, freed) = self._kept.popitem(last=False)
            self._left += freed
        return item
