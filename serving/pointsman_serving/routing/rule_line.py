"""Those of one rule who wait, by tenant: who loses a place when the rule has no more."""

from __future__ import annotations

import heapq
from typing import Final, Generic

from pointsman_serving.routing.place import Entry, Waiter

_SLACK: Final = 64


class RuleLine(Generic[Waiter]):
    """The waiters of one rule."""

    __slots__ = ("_most", "_tenants", "count")

    def __init__(self) -> None:
        self.count = 0
        self._tenants: dict[str, dict[Entry[Waiter], None]] = {}
        # Counts, negative, that were true once; a tenant's own is always among them or below one.
        self._most: list[tuple[int, str]] = []

    def join(self, entry: Entry[Waiter]) -> None:
        """Put one in."""
        self.count += 1
        if entry.place.again:
            return
        tenant = entry.place.tenant
        waiting = self._tenants.setdefault(tenant, {})
        waiting[entry] = None
        heapq.heappush(self._most, (-len(waiting), tenant))
        if len(self._most) > 2 * len(self._tenants) + _SLACK:
            self._most = [(-len(entries), name) for name, entries in self._tenants.items()]
            heapq.heapify(self._most)

    def remove(self, entry: Entry[Waiter]) -> None:
        """Take out one that is in."""
        self.count -= 1
        if entry.place.again:
            return
        waiting = self._tenants[entry.place.tenant]
        del waiting[entry]
        if not waiting:
            del self._tenants[entry.place.tenant]

    def to_push_out(self, newcomer: str) -> Entry[Waiter] | None:
        """The newest of the tenant with the most, if that is more than the newcomer's would have.

        None where no tenant has: then the newcomer is the one too many.
        """
        own = len(self._tenants.get(newcomer, ()))
        most = self._most
        while most:
            stated, tenant = most[0]
            waiting = self._tenants.get(tenant)
            if waiting is None:
                heapq.heappop(most)
            elif len(waiting) != -stated:
                heapq.heapreplace(most, (-len(waiting), tenant))
            else:
                return next(reversed(waiting)) if len(waiting) > own + 1 else None
        return None
