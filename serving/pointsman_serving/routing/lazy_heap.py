"""A heap whose items may go at any time, and that can be walked in order."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Item = TypeVar("Item")

_SLACK: Final = 64


class LazyHeap(Generic[Item]):
    """Items by key, then by number. All but walking costs O(log n), over time.

    Args:
        valid: whether an item is still there under this key. What is not is passed over, and
            cleared away when it is on top or is more than what is there.
    """

    __slots__ = ("_items", "_valid", "count")

    def __init__(self, valid: Callable[[Item, float], bool]) -> None:
        self._valid = valid
        self._items: list[tuple[float, int, Item]] = []
        self.count = 0
        """How many are there."""

    def add(self, key: float, number: int, item: Item) -> None:
        """Put one in; no two with one key may have the same number."""
        self._tidy()
        self.count += 1
        heapq.heappush(self._items, (key, number, item))

    def gone(self) -> None:
        """Note that one of them is no longer valid under its key."""
        self.count -= 1

    def in_order(self) -> Iterator[tuple[float, int, Item]]:
        """Walk over them. What goes meanwhile is passed over; what is put in may be missed."""
        self._tidy()
        items = self._items
        ahead = [(items[0], 0)] if items else []
        while ahead:
            found, index = heapq.heappop(ahead)
            for child in (2 * index + 1, 2 * index + 2):
                if child < len(items):
                    heapq.heappush(ahead, (items[child], child))
            if self._valid(found[2], found[0]):
                yield found

    def _tidy(self) -> None:
        items, valid = self._items, self._valid
        while items and not valid(items[0][2], items[0][0]):
            heapq.heappop(items)
        if len(items) > 2 * self.count + _SLACK:
            # A new list: a walk that is under way goes on over the old one.
            self._items = [item for item in items if valid(item[2], item[0])]
            heapq.heapify(self._items)
