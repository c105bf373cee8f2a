"""The order in which requests go that wait in the gateway, over all its rules.

Strict priorities first: while one of a higher priority could go, none of a lower does, and
nothing bounds how long the lower waits but its own limits. Inside a priority those go first who
were let through before; then the tenants take turns by the tokens that they were served
(``lane``), so that none of them starves; and inside a tenant the earliest deadline goes first.

Pure: it holds waiters, knows no clock and starts nothing. Waiters are hashable and wait once.
"""

from __future__ import annotations

import heapq
import itertools
from bisect import insort
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Generic

from pointsman_serving.routing.drain_rate import DrainRate
from pointsman_serving.routing.lane import LaneQueue
from pointsman_serving.routing.place import Entry, Lane, Place, RuleKey, Waiter
from pointsman_serving.routing.rule_line import RuleLine

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator


_MOST_OWED_TOKENS: Final = 100_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined(Generic[Waiter]):
    """What came of joining."""

    accepted: bool
    pushed_out: Waiter | None = None
    """Who lost its place to the newcomer: the queue has let go of it."""


class _Band(Generic[Waiter]):
    """One priority."""

    __slots__ = ("lanes", "newest")

    def __init__(self) -> None:
        self.lanes: dict[Lane, LaneQueue[Waiter]] = {}
        self.newest: dict[Entry[Waiter], None] = {}
        """Those who can be pushed out, in order of joining."""

    @property
    def tag(self) -> float:
        """Where a lane starts that nobody waited in."""
        return max((lane.tag for lane in self.lanes.values()), default=0.0)

    def limit_debts(self) -> None:
        """Bound what lanes are owed whose pools were full while others had room.

        Where they then share a pool, they have it to themselves until they have caught up.
        """
        least = self.tag - _MOST_OWED_TOKENS
        for lane in self.lanes.values():
            lane.offset += max(0.0, least - lane.tag)


class WaitQueue(Generic[Waiter]):
    """All who wait.

    Args:
        limit: how many wait at once, over all rules; at least 1.
    """

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._entries: dict[Waiter, Entry[Waiter]] = {}
        self._bands: dict[int, _Band[Waiter]] = {}
        self._priorities: list[int] = []
        self._lanes: dict[Lane, int] = {}
        self._rules: dict[RuleKey, RuleLine[Waiter]] = {}
        self._rates: dict[tuple[int, Lane], DrainRate] = {}
        self._numbers = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, waiter: Waiter) -> bool:
        return waiter in self._entries

    def depth(self, rule: RuleKey) -> int:
        """How many of a rule wait."""
        line = self._rules.get(rule)
        return 0 if line is None else line.count

    def depths(self) -> dict[RuleKey, int]:
        """How many wait, for every rule of which any does."""
        return {rule: line.count for rule, line in self._rules.items()}

    def lanes(self) -> list[Lane]:
        """The sets of pools that somebody waits for."""
        return list(self._lanes)

    def waiters(self) -> list[Waiter]:
        """All who wait, in order of joining."""
        return list(self._entries)

    def find(self, waiter: Waiter) -> Entry[Waiter] | None:
        """A waiter's entry; to be read only."""
        return self._entries.get(waiter)

    # Coming and going.

    def join(
        self, waiter: Waiter, place: Place, *, rule_limit: int, now: float, cold: bool = False
    ) -> Joined[Waiter]:
        """Wait, if there is room for one more.

        Where the queue is full, the newest of the lowest priority below the newcomer's loses its
        place. Where the rule has as many as it may, the tenant with the most does, if that is more
        than the newcomer's would then have. Who was let through before is always taken.

        Args:
            rule_limit: how many of the rule may wait.
            cold: there is no replica to wait for yet.

        Raises:
            ValueError: it waits already.
        """
        if waiter in self._entries:
            raise ValueError(f"{waiter!r} waits already; it must leave before it joins again")
        victim: Entry[Waiter] | None = None
        if not place.again:
            line = self._rules.get(place.rule)
            if rule_limit <= 0:
                return Joined(accepted=False)
            if line is not None and line.count >= rule_limit:
                victim = line.to_push_out(place.tenant)
            elif len(self._entries) >= self._limit:
                victim = self._lowest_below(place.priority)
            else:
                return self._put(waiter, place, now=now, cold=cold)
            if victim is None:
                return Joined(accepted=False)
        pushed_out = None
        if victim is not None:
            pushed_out = victim.waiter
            self._remove(victim, now=now, served=False)
        self._put(waiter, place, now=now, cold=cold)
        return Joined(accepted=True, pushed_out=pushed_out)

    def leave(self, waiter: Waiter, *, now: float) -> bool:
        """Give up waiting: a client that went, or time that ran out; False: it did not wait."""
        return self._take(waiter, now=now, served=False)

    def admit(self, waiter: Waiter, *, now: float) -> None:
        """Take a waiter out because it goes.

        Raises:
            LookupError: it does not wait.
        """
        if not self._take(waiter, now=now, served=True):
            raise LookupError(f"{waiter!r} does not wait, so that it cannot be let go")

    # Order.

    def in_order(
        self, lanes: Container[Lane], *, least_priority: int | None = None
    ) -> Iterator[Waiter]:
        """Who waits in these lanes, next first.

        Waiters may leave and lanes be taken from ``lanes`` meanwhile; who joins may be missed.

        Args:
            least_priority: leave out all that are lower.
        """
        for priority in reversed(self._priorities.copy()):
            if least_priority is not None and priority < least_priority:
                return
            band = self._bands.get(priority)
            if band is not None:
                yield from _band_in_order(band, lanes)

    def wait_seconds(self, place: Place, *, departures: int, now: float) -> float | None:
        """How long a newcomer would wait; see ``seconds_behind``."""
        band = self._bands.get(place.priority)
        lane = None if band is None else band.lanes.get(place.lane)
        ahead = 0 if lane is None else lane.ahead_of(place.tenant)
        return self.seconds_behind(ahead, place, departures=departures, now=now)

    def seconds_behind(
        self, ahead: int, place: Place, *, departures: int, now: float
    ) -> float | None:
        """How long it takes until so many have gone, by how the lane drains at the priority.

        Args:
            departures: how many must have been seen, or nothing is said: requests that run at
                once end at once, so less than one turn of them says little.

        Returns:
            Seconds, rather too few; None where it is not known.
        """
        rate = self._rates.get((place.priority, place.lane))
        if rate is None or rate.seen < departures:
            return None
        return ahead * rate.seconds_each(now)

    def positions(self, lane: Lane, *, most: int) -> dict[int, int]:
        """The places in a lane, from 1, by the entries' numbers; of the first ``most``."""
        places = {}
        for position, waiter in enumerate(itertools.islice(self.in_order({lane}), most), start=1):
            places[self._entries[waiter].number] = position
        return places

    # Replicas that come and go.

    def set_cold(self, lane: Lane, cold: bool, *, now: float) -> list[Waiter]:
        """Note that the lane's pools have no replica, or have one again.

        Returns:
            Those whose time now ends at another moment; see ``Entry.expires_at``.
        """
        changed: list[Waiter] = []
        for band in self._bands.values():
            queue = band.lanes.get(lane)
            if queue is None:
                continue
            if cold:
                queue.rate.stop(now)
            else:
                queue.rate.start(now)
                # While it could not be served, others had tokens: those are not owed to it.
                queue.offset += max(0.0, band.tag - queue.tag)
        for waiter, entry in self._entries.items():
            if entry.place.lane == lane and entry.set_cold(cold, now):
                changed.append(waiter)
        return changed

    def mark_cold(self, waiter: Waiter, cold: bool, *, now: float) -> bool:
        """The same for one waiter, whom not every replica of its lane can serve."""
        entry = self._entries.get(waiter)
        return entry is not None and entry.set_cold(cold, now)

    def move(self, waiter: Waiter, lane: Lane, *, now: float, cold: bool = False) -> None:
        """Let a waiter wait for other pools; its time goes on.

        Args:
            cold: these have no replica yet.

        Raises:
            LookupError: it does not wait.
        """
        before = self._entries.get(waiter)
        if before is None:
            raise LookupError(f"{waiter!r} does not wait, so that it cannot be moved")
        self._remove(before, now=now, served=False)
        self._put(waiter, replace(before.place, lane=lane), now=now, cold=cold)
        entry = self._entries[waiter]
        entry.go_on_from(before)
        entry.set_cold(cold, now)

    def retain(self, rules: Iterable[tuple[int, Lane]]) -> None:
        """Forget how fast lanes drained that are not among these priorities and lanes."""
        kept = set(rules)
        kept.update(
            (priority, lane) for priority, band in self._bands.items() for lane in band.lanes
        )
        self._rates = {key: rate for key, rate in self._rates.items() if key in kept}

    # Inside.

    def _put(self, waiter: Waiter, place: Place, *, now: float, cold: bool) -> Joined[Waiter]:
        self._numbers += 1
        entry = Entry(waiter, place, number=self._numbers, cold=cold, now=now)
        band = self._bands.get(place.priority)
        if band is None:
            band = self._bands[place.priority] = _Band()
            insort(self._priorities, place.priority)
        lane = band.lanes.get(place.lane)
        if lane is None:
            rate = self._rates.setdefault((place.priority, place.lane), DrainRate())
            lane = band.lanes[place.lane] = LaneQueue(tag=band.tag, rate=rate)
            self._lanes[place.lane] = self._lanes.get(place.lane, 0) + 1
        if not cold:
            lane.rate.start(now)
        lane.join(entry)
        if not place.again:
            band.newest[entry] = None
        self._rules.setdefault(place.rule, RuleLine()).join(entry)
        self._entries[waiter] = entry
        return Joined(accepted=True)

    def _take(self, waiter: Waiter, *, now: float, served: bool) -> bool:
        entry = self._entries.get(waiter)
        if entry is None:
            return False
        self._remove(entry, now=now, served=served)
        return True

    def _remove(self, entry: Entry[Waiter], *, now: float, served: bool) -> None:
        place = entry.place
        if entry.waiter is not None:
            del self._entries[entry.waiter]
        line = self._rules[place.rule]
        line.remove(entry)
        if not line.count:
            del self._rules[place.rule]
        band = self._bands[place.priority]
        band.newest.pop(entry, None)
        lane = band.lanes[place.lane]
        lane.remove(entry, served=served)
        if served:
            lane.rate.depart(now)
            band.limit_debts()
        if lane.count:
            return
        lane.rate.stop(now)
        del band.lanes[place.lane]
        self._lanes[place.lane] -= 1
        if not self._lanes[place.lane]:
            del self._lanes[place.lane]
        if not band.lanes:
            del self._bands[place.priority]
            self._priorities.remove(place.priority)

    def _lowest_below(self, priority: int) -> Entry[Waiter] | None:
        for lower in self._priorities:
            if lower >= priority:
                return None
            newest = self._bands[lower].newest
            if newest:
                return next(reversed(newest))
        return None


def _band_in_order(band: _Band[Waiter], lanes: Container[Lane]) -> Iterator[Waiter]:
    queues = [(lane, queue) for lane, queue in band.lanes.items() if lane in lanes]
    again = [_while_open(lane, lanes, queue.again_in_order()) for lane, queue in queues]
    others = [_while_open(lane, lanes, queue.in_order()) for lane, queue in queues]
    for walks in (again, others):
        for _, _, entry in heapq.merge(*walks):
            # The merge looks one ahead in each lane.
            if entry.waiter is not None and entry.place.lane in lanes:
                yield entry.waiter


def _while_open(
    lane: Lane, lanes: Container[Lane], walk: Iterator[tuple[float, int, Entry[Waiter]]]
) -> Iterator[tuple[float, int, Entry[Waiter]]]:
    return itertools.takewhile(lambda _: lane in lanes, walk)
