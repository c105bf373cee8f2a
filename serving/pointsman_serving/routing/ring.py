"""Two consistent-hash rings per pool, so that gateways agree on where a new prefix goes.

Source: DualMap (two candidates per prefix from two hash functions, equal ones replaced by the
next on the ring); virtual nodes as in KubeAI.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from xxhash import xxh3_64_intdigest

if TYPE_CHECKING:
    from collections.abc import Iterable

VIRTUAL_NODES: Final = 64


class Ring:
    """Which replica a 64-bit hash belongs to; a change moves only what it must."""

    __slots__ = ("_names", "_points", "_salt", "_shift", "_starts")

    def __init__(self, *, salt: int) -> None:
        self._salt = salt & 0xFFFFFFFFFFFFFFFF
        self._points = array("Q")
        self._names: list[str] = []
        self._shift = 64
        self._starts = array("L", (0, 0))
        """Index of the first point whose first bits are at least so large; about one for each
        point, so that the search is over few of them."""

    def set_members(self, names: Iterable[str]) -> None:
        """Rebuild the ring; the order of the names does not matter."""
        nodes = sorted(
            (xxh3_64_intdigest(f"{name}#{node}".encode(), self._salt), name)
            for name in names
            for node in range(VIRTUAL_NODES)
        )
        self._points = array("Q", [point for point, _ in nodes])
        self._names = [name for _, name in nodes]
        bits = max(len(nodes), 1).bit_length() - 1
        self._shift = 64 - bits
        counts = [0] * (1 << bits)
        for point in self._points:
            counts[point >> self._shift] += 1
        self._starts = array("L", accumulate(counts, initial=0))

    def owner(self, key: int, *, other_than: str | None = None) -> str | None:
        """The first member at or after the key, or the next distinct one; None without any."""
        names = self._names
        count = len(names)
        if not count:
            return None
        row = key >> self._shift
        at = bisect_left(self._points, key, self._starts[row], self._starts[row + 1])
        for _ in range(count):
            name = names[at if at < count else at - count]
            if name != other_than:
                return name
            at += 1
        return None


class DualRing:
    """The two candidates of a key."""

    __slots__ = ("_few", "_first", "_members", "_second")

    def __init__(self, *, seed: int = 0) -> None:
        self._first = Ring(salt=2 * seed)
        self._second = Ring(salt=2 * seed + 1)
        self._members: frozenset[str] = frozenset()
        self._few: tuple[str, ...] = ()
        """The members where they are two or fewer: each is a candidate of every key."""

    def set_members(self, names: Iterable[str]) -> None:
        """Change the members; does nothing where they are the same."""
        members = frozenset(names)
        if members == self._members:
            return
        self._members = members
        self._few = tuple(sorted(members)) if len(members) <= 2 else ()
        self._first.set_members(members)
        self._second.set_members(members)

    def candidates(self, key: int) -> tuple[str, ...]:
        """Two distinct members, or as many as there are."""
        if len(self._members) <= 2:
            return self._few
        first = self._first.owner(key)
        if first is None:
            return ()
        second = self._second.owner(key, other_than=first)
        return (first,) if second is None else (first, second)
