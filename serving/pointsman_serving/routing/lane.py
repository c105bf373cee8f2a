"""Those of one priority who wait for the same pools, fair among tenants.

Start-time fair queueing (Goyal, Vin and Cheng, 1996): each tenant has a tag, the tokens that it
was served, counted from the tag that was served last when it came. The lowest tag goes next. So
a tenant with a thousand requests delays another's first by one request at the most, and between
two that wait all the time the tokens served differ by no more than one request of each.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final, Generic

from pointsman_serving.routing.drain_rate import DrainRate
from pointsman_serving.routing.lazy_heap import LazyHeap
from pointsman_serving.routing.place import Entry, Waiter

if TYPE_CHECKING:
    from collections.abc import Iterator

_TAGS_KEPT: Final = 1024


def _waits(entry: Entry[Waiter], _order: float) -> bool:
    return entry.waiter is not None


class Flow(Generic[Waiter]):
    """What one tenant has waiting in a lane."""

    __slots__ = ("entries", "number", "tag", "tenant")

    def __init__(self, tenant: str, *, tag: float, number: int) -> None:
        self.tenant = tenant
        self.tag = tag
        self.number = number
        self.entries: LazyHeap[Entry[Waiter]] = LazyHeap(_waits)


def _is_next(flow: Flow[Waiter], tag: float) -> bool:
    return flow.tag == tag and flow.entries.count > 0


class LaneQueue(Generic[Waiter]):
    """The waiters of one lane at one priority.

    Args:
        tag: where its tenants start: at what is being served elsewhere at this priority.
        rate: how fast it drains; outlives it.
    """

    __slots__ = (
        "_again",
        "_finished",
        "_finished_order",
        "_flows",
        "_next",
        "_numbers",
        "_served",
        "_sizes",
        "count",
        "offset",
        "rate",
    )

    def __init__(self, *, tag: float, rate: DrainRate) -> None:
        self.rate = rate
        self.offset = tag
        """From the lane's own tags to those of its priority."""
        self.count = 0
        self._served = 0.0
        self._numbers = 0
        self._flows: dict[str, Flow[Waiter]] = {}
        self._next: LazyHeap[Flow[Waiter]] = LazyHeap(_is_next)
        self._again: LazyHeap[Entry[Waiter]] = LazyHeap(_waits)
        self._sizes: dict[int, int] = {}
        # Tags of tenants that have nothing left but were ahead of what is served: coming back at
        # once they must not find themselves in front.
        self._finished: dict[str, float] = {}
        self._finished_order: list[tuple[float, str]] = []

    @property
    def tag(self) -> float:
        """What is being served, on the scale of its priority."""
        return self._served + self.offset

    def join(self, entry: Entry[Waiter]) -> None:
        """Put one in."""
        self.count += 1
        if entry.place.again:
            self._again.add(entry.order, entry.number, entry)
            return
        tenant = entry.place.tenant
        flow = self._flows.get(tenant)
        if flow is None:
            tag = max(self._served, self._finished.pop(tenant, 0.0))
            self._numbers += 1
            flow = self._flows[tenant] = Flow(tenant, tag=tag, number=self._numbers)
            flow.entries.add(entry.order, entry.number, entry)
            self._next.add(flow.tag, flow.number, flow)
        else:
            flow.entries.add(entry.order, entry.number, entry)
        self._resize(flow.entries.count - 1, flow.entries.count)

    def remove(self, entry: Entry[Waiter], *, served: bool) -> None:
        """Take out one that is in; ``served``: it takes from its tenant's share."""
        entry.waiter = None
        self.count -= 1
        if entry.place.again:
            self._again.gone()
            return
        tenant = entry.place.tenant
        flow = self._flows[tenant]
        flow.entries.gone()
        left = flow.entries.count
        self._resize(left + 1, left)
        if served:
            self._next.gone()
            self._served = max(self._served, flow.tag)
            flow.tag += entry.place.cost_tokens
            if left:
                self._next.add(flow.tag, flow.number, flow)
        elif not left:
            self._next.gone()
        if not left:
            del self._flows[tenant]
            self._remember(tenant, flow.tag)

    def again_in_order(self) -> Iterator[tuple[float, int, Entry[Waiter]]]:
        """Those who were let through before, by arrival."""
        return self._again.in_order()

    def in_order(self) -> Iterator[tuple[float, int, Entry[Waiter]]]:
        """The others with their tags on the scale of the priority, as they would be served."""
        turns: list[tuple[float, int, Iterator[tuple[float, int, Entry[Waiter]]]]] = []
        tenants = self._next.in_order()
        coming = next(tenants, None)
        while coming is not None or turns:
            if coming is not None and (not turns or coming[:2] < turns[0][:2]):
                tag, number, flow = coming
                entries = flow.entries.in_order()
                coming = next(tenants, None)
            else:
                tag, number, entries = heapq.heappop(turns)
            found = next(entries, None)
            if found is not None:
                entry = found[2]
                heapq.heappush(turns, (tag + entry.place.cost_tokens, number, entries))
                yield tag + self.offset, entry.number, entry

    def ahead_of(self, tenant: str) -> int:
        """How many go before a newcomer of the tenant, with one deadline for all."""
        flow = self._flows.get(tenant)
        turns = 1 if flow is None else flow.entries.count + 1
        # The tenant's own are among them: fewer than its turns, so all of them.
        others = sum(min(size, turns) * number for size, number in self._sizes.items())
        return self._again.count + others

    def _resize(self, before: int, after: int) -> None:
        sizes = self._sizes
        if before:
            sizes[before] -= 1
            if not sizes[before]:
                del sizes[before]
        if after:
            sizes[after] = sizes.get(after, 0) + 1

    def _remember(self, tenant: str, tag: float) -> None:
        order = self._finished_order
        if tag > self._served:
            self._finished[tenant] = tag
            heapq.heappush(order, (tag, tenant))
        while order and (order[0][0] <= self._served or len(order) > _TAGS_KEPT):
            passed, name = heapq.heappop(order)
            if self._finished.get(name) == passed:
                del self._finished[name]
