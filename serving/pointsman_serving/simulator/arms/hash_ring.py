"""A consistent-hash ring of instance numbers."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from xxhash import xxh64_intdigest


class HashRing:
    """Which instances a key belongs to, nearest first; a change moves only what it must."""

    def __init__(self, *, points: int, salt: int = 0) -> None:
        """Each instance has so many points on the ring."""
        self._points_of_each = points
        self._salt = salt
        self._members: tuple[int, ...] = ()
        self._hashes: list[int] = []
        self._owners: list[int] = []

    def set_members(self, members: Sequence[int]) -> None:
        """Build the ring anew where its members have changed."""
        if tuple(members) == self._members:
            return
        self._members = tuple(members)
        ring = sorted(
            (xxh64_intdigest(f"{member}#{point}".encode(), self._salt), member)
            for member in self._members
            for point in range(self._points_of_each)
        )
        self._hashes = [place for place, _ in ring]
        self._owners = [member for _, member in ring]

    def owner(self, key: str) -> int:
        """The member at or after the key; there must be one."""
        return next(self.walk(key))

    def walk(self, key: str) -> Iterator[int]:
        """All members from the key on, each once."""
        start = bisect_left(
            self._hashes, xxh64_intdigest(key.encode("utf-8", "surrogatepass"), self._salt)
        )
        seen: set[int] = set()
        count = len(self._owners)
        for step in range(count):
            owner = self._owners[(start + step) % count]
            if owner not in seen:
                seen.add(owner)
                yield owner
                if len(seen) == len(self._members):
                    return
