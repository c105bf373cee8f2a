"""Who of those that wait goes when there is room, and what those are told who cannot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple, Protocol

import structlog

from pointsman_api.route_table import Rule
from pointsman_serving.gateway import openai
from pointsman_serving.gateway.openai import ApiError
from pointsman_serving.gateway.phase import Phase
from pointsman_serving.gateway.place import place_of
from pointsman_serving.gateway.queue_counts import QueueCounts, Shed
from pointsman_serving.routing.place import Lane, Place, RuleKey
from pointsman_serving.routing.queue import WaitQueue
from pointsman_serving.routing.scheduler import Scheduler
from pointsman_serving.routing.types import Decision, Outcome, RouteRequest

log = structlog.get_logger(__name__)

# How many waiters of a lane may be passed over for those behind them: each costs a decision.
_PASSED_OVER = 64

# Counting out who stands where takes time: so many, and not more often than this.
_POSITIONS_COUNTED = 200
_POSITIONS_SECONDS = 1.0


class Routed(Protocol):
    """A routed request, as what it shares with the others sees it. ``relay.Relay`` is one."""

    request: RouteRequest
    rule: Rule
    rule_key: RuleKey
    phase: Phase

    @property
    def pools(self) -> list[str]:
        """The pools that its rule may choose."""

    @property
    def bound(self) -> bool:
        """Whether its reply has begun: it stays with its pool whatever the route table says."""

    @property
    def pool(self) -> str:
        """The pool that it was sent to last; empty before that."""

    def decide(self, now: float) -> Decision:
        """Ask the scheduler what to do with it now."""

    def waits(self, decision: Decision) -> bool:
        """Whether a decision means that it waits: for room, or for a replica to come."""

    def take(self, decision: Decision, now: float) -> None:
        """Act on a decision."""

    def wait_until(self, at: float) -> None:
        """Its time in the queue ends then; until it hears otherwise."""

    def stop(self, error: ApiError) -> None:
        """End it with ``error``."""


class Standing(NamedTuple):
    """Where a waiter stands."""

    position: int | None
    """From 1; those before it wait for the same pools. None: further back than is counted."""
    seconds: float | None
    """About how long it has to wait; None: not known."""
    cold: bool
    """No replica is there yet."""


class Dispatcher:
    """Lets those go who wait.

    Args:
        queue: who waits.
        counts: where it is counted what came of waiting.
        retry_after_seconds: the least that a refused client is told to wait.
        clock: seconds; monotonic.
    """

    def __init__(
        self,
        queue: WaitQueue[Routed],
        scheduler: Scheduler,
        *,
        counts: QueueCounts,
        retry_after_seconds: float,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
    ) -> None:
        self._queue = queue
        self._scheduler = scheduler
        self._counts = counts
        self._retry_after_seconds = retry_after_seconds
        self._loop = loop
        self._clock = clock
        self._wake_due = False
        self._cold: set[Lane] = set()
        """The lanes of which the queue was told last that they have no replica."""
        self._positions: dict[Lane, tuple[float, dict[int, int]]] = {}
        """When the places in a lane were counted, and what they were."""

    # Coming and leaving.

    def join(
        self, waiter: Routed, *, now: float, again: bool, cold: bool = False
    ) -> ApiError | None:
        """Let a request wait; the answer to it where it may not.

        It is refused at once where the queue is full, or so long that its time would run out.

        Args:
            again: it was let through before; it is not turned away, and waits in front.
            cold: there is no replica that could take it.
        """
        rule = waiter.rule
        place = self._place(waiter, now=now, again=again)
        # Those who wait there already are held for as long as the newcomer.
        cold = self._look_for_replica(place.lane, now) or cold
        if not (again or cold):
            error = self._too_late(place, rule, now)
            if error is not None:
                return error
        limit = rule.overload.max_queued_requests
        joined = self._queue.join(waiter, place, rule_limit=limit, now=now, cold=cold)
        if not joined.accepted:
            self._counts.shed(Shed.FULL)
            shown = limit if self._queue.depth(place.rule) >= limit else len(self._queue)
            return openai.queue_full(shown, self._retry_after(place, rule, now))
        if joined.pushed_out is not None:
            self._push_out(joined.pushed_out, now)
        self._set_time(waiter)
        return None

    def leave(self, waiter: Routed) -> None:
        """Let a request wait no more, if it does."""
        self._queue.leave(waiter, now=self._clock())

    def late(self, waiter: Routed) -> ApiError:
        """The answer to a waiter whose time is over."""
        now = self._clock()
        rule = waiter.rule
        entry = self._queue.find(waiter)
        place = self._place(waiter, now=now, again=False) if entry is None else entry.place
        wait = self._retry_after(place, rule, now)
        if now >= place.latest:
            self._counts.shed(Shed.TOO_LATE)
            return openai.objective_unreachable(wait)
        if entry is not None and entry.cold:
            self._counts.shed(Shed.COLD_START)
            return openai.no_replica_came(place.lane, place.cold_seconds, wait)
        self._counts.shed(Shed.EXPIRED)
        return openai.queue_timeout(rule.overload.max_queue_seconds, wait)

    def standing(self, waiter: Routed) -> Standing | None:
        """Where a waiter stands, as of a second ago at most; None where it does not wait."""
        entry = self._queue.find(waiter)
        if entry is None:
            return None
        now = self._clock()
        place = entry.place
        counted_at, positions = self._positions.get(place.lane, (-_POSITIONS_SECONDS, {}))
        if now >= counted_at + _POSITIONS_SECONDS:
            positions = self._queue.positions(place.lane, most=_POSITIONS_COUNTED)
            self._positions[place.lane] = now, positions
        position = positions.get(entry.number)
        seconds = None
        if position is not None and not entry.cold:
            seconds = self._queue.seconds_behind(
                position, place, departures=self._turn(place.lane), now=now
            )
        return Standing(position, seconds, entry.cold)

    def _too_late(self, place: Place, rule: Rule, now: float) -> ApiError | None:
        wait = self._queue.wait_seconds(place, departures=self._turn(place.lane), now=now)
        if wait is None:
            return None
        error = None
        if now + wait > place.latest:
            error = openai.objective_unreachable(self._bounded(wait, rule))
        elif wait > place.queue_seconds:
            error = openai.queue_too_long(place.queue_seconds, wait)
        if error is not None:
            self._counts.shed(Shed.TOO_LATE)
        return error

    def _push_out(self, waiter: Routed, now: float) -> None:
        self._counts.shed(Shed.PUSHED_OUT)
        rule = waiter.rule
        place = self._place(waiter, now=now, again=False)
        waiter.stop(openai.pushed_out(self._retry_after(place, rule, now)))

    @staticmethod
    def _place(waiter: Routed, *, now: float, again: bool) -> Place:
        lane = frozenset(waiter.pools)
        return place_of(
            waiter.request, waiter.rule, waiter.rule_key, lane=lane, now=now, again=again
        )

    def _set_time(self, waiter: Routed) -> None:
        entry = self._queue.find(waiter)
        if entry is not None:
            waiter.wait_until(entry.expires_at)

    # Going.

    def wake_soon(self) -> None:
        """Look at the queue in the next turn of the loop: there may be room."""
        if not self._wake_due and len(self._queue):
            self._wake_due = True
            self._loop.call_soon(self._wake)

    def may_go_first(self, newcomer: Routed) -> bool:
        """Whether a newcomer may act on a decision though others wait.

        Those of its priority or a higher one who could use the room go before it. Where more of
        them wait than are looked at, or none can be sent, it waits behind them.
        """
        if not len(self._queue):
            return True
        own = frozenset(newcomer.pools)
        lanes = {lane for lane in self._queue.lanes() if not own.isdisjoint(lane)}
        priority = newcomer.rule.overload.priority
        if next(self._queue.in_order(lanes, least_priority=priority), None) is None:
            return True
        decision = newcomer.decide(self._clock())
        if decision.outcome is Outcome.WAIT:
            return False
        if decision.outcome is not Outcome.CHOSEN:
            return True
        still_open = self._drain(lanes, least_priority=priority)
        left = next(self._queue.in_order({own}, least_priority=priority), None)
        return left is None or own in still_open

    def look_again(self) -> None:
        """The route table has changed: some of those that wait may have nothing to wait for."""
        now = self._clock()
        for waiter in self._queue.waiters():
            entry = self._queue.find(waiter)
            if entry is None:
                continue
            found = self._scheduler.route(waiter.request)
            if waiter.bound or found is None:
                decision = waiter.decide(now)
                if decision.outcome is not Outcome.CHOSEN and not waiter.waits(decision):
                    self._let_go(waiter, decision, now)
                continue
            lane = frozenset(target.pool for target in found[1].targets)
            if lane != entry.place.lane:
                cold = self._look_for_replica(lane, now)
                self._queue.move(waiter, lane, now=now, cold=cold)
                self._set_time(waiter)
        self.wake_soon()

    def _wake(self) -> None:
        self._wake_due = False
        lanes = self._queue.lanes()
        self._positions = {lane: self._positions[lane] for lane in lanes if lane in self._positions}
        self._cold.intersection_update(lanes)
        now = self._clock()
        for lane in lanes:
            self._look_for_replica(lane, now)
        self._drain(set(lanes))

    def _look_for_replica(self, lane: Lane, now: float) -> bool:
        """Whether a lane has no replica: its waiters are held for longer then."""
        cold = not self._scheduler.has_replica(lane, now=now)
        if cold != (lane in self._cold):
            self._cold ^= {lane}
            for waiter in self._queue.set_cold(lane, cold, now=now):
                self._set_time(waiter)
        return cold

    def _drain(self, lanes: set[Lane], *, least_priority: int | None = None) -> set[Lane]:
        """Let go who can, in the queue's order; returns the lanes that still have room.

        Who waits for a pool that is full (by its weights, its conversation or what it tried
        already) must not keep those behind it from another pool.
        """
        now = self._clock()
        lanes = {lane for lane in lanes if self._scheduler.has_room(lane, now=now)}
        passed_over = dict.fromkeys(lanes, 0)
        for waiter in self._queue.in_order(lanes, least_priority=least_priority):
            entry = self._queue.find(waiter)
            if entry is None:
                continue
            lane = entry.place.lane
            now = self._clock()
            decision = waiter.decide(now)
            if waiter.waits(decision):
                if self._queue.mark_cold(waiter, decision.outcome is not Outcome.WAIT, now=now):
                    self._set_time(waiter)
                passed_over[lane] += 1
                if passed_over[lane] >= _PASSED_OVER:
                    lanes.discard(lane)
            else:
                self._let_go(waiter, decision, now)
                winner = decision.winner
                taken = None if winner is None else winner.key.pool
                full = [
                    each
                    for each in lanes
                    if taken in each and not self._scheduler.has_room(each, now=now)
                ]
                lanes.difference_update(full)
            if not lanes:
                break
        return lanes

    def _let_go(self, waiter: Routed, decision: Decision, now: float) -> None:
        entry = self._queue.find(waiter)
        if entry is not None and decision.outcome is Outcome.CHOSEN:
            self._counts.waited(entry.place.priority, now - entry.joined_at)
            self._queue.admit(waiter, now=now)
        else:
            if decision.outcome is Outcome.HOPELESS:
                self._counts.shed(Shed.TOO_LATE)
            self._queue.leave(waiter, now=now)
        try:
            waiter.take(decision, now)
        except Exception:
            # One request must not keep those behind it waiting.
            log.exception("request failed", request_id=waiter.request.request_id)
            waiter.stop(openai.internal_error())

    # Estimates.

    def _turn(self, lane: Lane) -> int:
        """Departures after which the rate at which a lane drains says something."""
        return max(self._scheduler.capacity(lane), 1)

    def _retry_after(self, place: Place, rule: Rule, now: float) -> float:
        wait = self._queue.wait_seconds(place, departures=self._turn(place.lane), now=now)
        return self._bounded(wait or 0.0, rule)

    def _bounded(self, wait_seconds: float, rule: Rule) -> float:
        most = max(rule.overload.max_queue_seconds, 1.0)
        return min(max(wait_seconds, self._retry_after_seconds), most)
