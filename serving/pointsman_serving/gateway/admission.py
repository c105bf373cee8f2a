"""The gateway's own queue: who waits for a replica, in which order, and for how long.

Pure: it holds waiters, knows no clock and starts nothing. One bounded queue per rule, kept in
order of arrival; a request that is tried again goes to the front, for it has waited before.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Waiter = TypeVar("Waiter")

RuleKey = tuple[str, str]
"""Policy and rule."""

# How much the newest gap between two departures weighs in the drain rate.
_GAP_WEIGHT = 0.2


@dataclass(slots=True, kw_only=True)
class _Queue(Generic[Waiter]):
    waiting: OrderedDict[Waiter, float] = field(default_factory=OrderedDict)
    last_departure: float | None = None
    gap_seconds: float | None = None


class Admission(Generic[Waiter]):
    """The queues of all rules. Waiters are hashable and wait in one queue at most."""

    def __init__(self) -> None:
        self._queues: dict[RuleKey, _Queue[Waiter]] = {}

    def __len__(self) -> int:
        return sum(len(queue.waiting) for queue in self._queues.values())

    def depth(self, rule: RuleKey) -> int:
        """How many wait."""
        queue = self._queues.get(rule)
        return 0 if queue is None else len(queue.waiting)

    def depths(self) -> dict[RuleKey, int]:
        """How many wait, for every rule with a queue."""
        return {rule: len(queue.waiting) for rule, queue in self._queues.items()}

    def join(
        self, rule: RuleKey, waiter: Waiter, *, limit: int, now: float, front: bool = False
    ) -> bool:
        """Wait in the rule's queue; False where ``limit`` already wait there."""
        queue = self._queues.setdefault(rule, _Queue())
        if len(queue.waiting) >= limit:
            return False
        queue.waiting[waiter] = now
        if front:
            queue.waiting.move_to_end(waiter, last=False)
        return True

    def leave(self, rule: RuleKey, waiter: Waiter) -> bool:
        """Give up waiting: a client that went, or time that ran out."""
        queue = self._queues.get(rule)
        if queue is None or waiter not in queue.waiting:
            return False
        del queue.waiting[waiter]
        self._forget_if_unused(rule, queue)
        return True

    def first(self, rule: RuleKey, count: int) -> list[Waiter]:
        """Those who have waited longest, up to ``count``, in their order."""
        queue = self._queues.get(rule)
        return [] if queue is None else list(itertools.islice(queue.waiting, count))

    def admit(self, rule: RuleKey, waiter: Waiter, *, now: float) -> None:
        """Take a waiter out, because there is room for it.

        Raises:
            LookupError: it does not wait there.
        """
        queue = self._queues.get(rule)
        if queue is None or waiter not in queue.waiting:
            raise LookupError(f"{waiter!r} does not wait for rule {rule!r}")
        del queue.waiting[waiter]
        if queue.last_departure is not None:
            gap = max(now - queue.last_departure, 0.0)
            seen = queue.gap_seconds
            queue.gap_seconds = gap if seen is None else seen + _GAP_WEIGHT * (gap - seen)
        queue.last_departure = now
        self._forget_if_unused(rule, queue)

    def rules(self) -> Iterator[RuleKey]:
        """The rules where somebody waits, those first whose head has waited longest."""
        waiting = [
            (next(iter(queue.waiting.values())), rule)
            for rule, queue in self._queues.items()
            if queue.waiting
        ]
        return iter([rule for _, rule in sorted(waiting)])

    def wait_estimate_seconds(self, rule: RuleKey, *, default: float, most: float) -> float:
        """When a newcomer would be served, by the rate at which the queue drains."""
        queue = self._queues.get(rule)
        if queue is None or queue.gap_seconds is None:
            return default
        return min(max(queue.gap_seconds * len(queue.waiting), default), most)

    def _forget_if_unused(self, rule: RuleKey, queue: _Queue[Waiter]) -> None:
        # A rule that nobody waits for needs no queue, unless its rate is worth keeping.
        if not queue.waiting and queue.last_departure is None:
            del self._queues[rule]

    def retain(self, rules: set[RuleKey]) -> None:
        """Forget the drain rates of rules that are gone; who waits, stays."""
        for rule in [r for r, queue in self._queues.items() if r not in rules]:
            if not self._queues[rule].waiting:
                del self._queues[rule]
