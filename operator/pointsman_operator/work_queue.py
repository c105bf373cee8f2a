"""A queue of keys to be reconciled, worked off by a few workers.

A key that waits is not put in twice; a key that is worked on is never given to a second worker,
but put in again when it is done if it was added meanwhile. A key that fails comes back later and
later, and holds up no other. Urgent keys go before the others, which still get every fifth turn.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

from pointsman_kube.backoff import Backoff
from pointsman_kube.errors import KubeError

log = structlog.get_logger(__name__)

KeyT = TypeVar("KeyT", bound=Hashable)

Reconcile = Callable[[KeyT], Awaitable[float | None]]
"""Does one key's work; returns after how many seconds to do it again, or None for when added."""

URGENT_IN_A_ROW = 4
"""So many urgent keys go before one that is not and has waited meanwhile."""


@dataclass(slots=True)
class QueueCounts:
    """What a queue has done."""

    done: int = 0
    failed: int = 0
    added: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class _Later:
    at: float
    turn: int
    urgent: bool


class WorkQueue(Generic[KeyT]):
    """Keys of one sort, and the workers on them.

    Args:
        name: for logs and metrics.
        reconcile: does the work of one key.
        workers: how many keys are worked on at once.
        base_seconds: the wait after a first failure; it doubles from there.
        most_seconds: the longest wait after failures.
        timeout_seconds: a reconcile that takes longer counts as failed.
        on_done: told key, seconds and the error (or None) of every reconcile.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        name: str,
        reconcile: Reconcile[KeyT],
        *,
        workers: int = 4,
        base_seconds: float = 0.2,
        most_seconds: float = 60.0,
        timeout_seconds: float = 120.0,
        on_done: Callable[[KeyT, float, Exception | None], None] = lambda *_: None,
        clock: Callable[[], float] = time.monotonic,
        source: random.Random | None = None,
    ) -> None:
        self.name = name
        self.counts = QueueCounts()
        self._reconcile = reconcile
        self._workers = workers
        self._base_seconds = base_seconds
        self._most_seconds = most_seconds
        self._timeout_seconds = timeout_seconds
        self._on_done = on_done
        self._clock = clock
        self._source = source or random.Random()
        self._urgent: OrderedDict[KeyT, float] = OrderedDict()
        self._waiting: OrderedDict[KeyT, float] = OrderedDict()
        self._in_a_row = 0
        self._working: set[KeyT] = set()
        self._again: dict[KeyT, bool] = {}
        """Keys that were added while they are worked on, and whether that is urgent."""
        self._later: dict[KeyT, _Later] = {}
        self._heap: list[tuple[float, int, KeyT]] = []
        self._turns = itertools.count(1)
        self._backoffs: dict[KeyT, Backoff] = {}
        self._news = asyncio.Event()
        self._times_changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._urgent) + len(self._waiting)

    @property
    def longest_wait_seconds(self) -> float:
        """How long the key that has waited longest has done so."""
        heads = [next(iter(lane.values())) for lane in (self._urgent, self._waiting) if lane]
        return self._clock() - min(heads) if heads else 0.0

    @property
    def retrying(self) -> int:
        """How many keys have failed and not yet succeeded again."""
        return len(self._backoffs)

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is worked on; what is due later does not count."""
        return not len(self) and not self._working

    def add(self, key: KeyT, *, urgent: bool = False) -> None:
        """The key needs work now, and before those that are not urgent if it is."""
        self.counts.added += 1
        due = self._later.pop(key, None)
        urgent = urgent or (due is not None and due.urgent)
        if key in self._working:
            self._again[key] = urgent or self._again.get(key, False)
        elif key in self._urgent or (key in self._waiting and not urgent):
            return
        else:
            lane = self._urgent if urgent else self._waiting
            lane[key] = self._waiting.pop(key, self._clock())
            self._news.set()

    def add_later(self, key: KeyT, seconds: float, *, urgent: bool = False) -> None:
        """The key needs work in a while, unless it is due earlier already."""
        if key in self._urgent or key in self._waiting or key in self._again:
            if urgent:
                self.add(key, urgent=True)
            return
        at = self._clock() + seconds
        due = self._later.get(key)
        if due is not None:
            due.urgent = urgent = urgent or due.urgent
            if due.at <= at:
                return
        turn = next(self._turns)
        self._later[key] = _Later(at, turn, urgent)
        heapq.heappush(self._heap, (at, turn, key))
        self._times_changed.set()

    def add_failed(self, key: KeyT, least_seconds: float = 0.0) -> None:
        """The key's work failed: do it again, later each time."""
        backoff = self._backoffs.get(key)
        if backoff is None:
            backoff = self._backoffs[key] = Backoff(
                base_seconds=self._base_seconds,
                most_seconds=self._most_seconds,
                source=self._source,
            )
        self.add_later(key, backoff.next_seconds(least_seconds))

    def forget(self, key: KeyT) -> None:
        """The key's object is gone: nothing is due any more, and no failure remembered."""
        self._later.pop(key, None)
        self._urgent.pop(key, None)
        self._waiting.pop(key, None)
        self._again.pop(key, None)
        self._backoffs.pop(key, None)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._run_clock(), name=f"{self.name} clock")
            for number in range(self._workers):
                group.create_task(self._work(), name=f"{self.name} worker {number}")

    async def _run_clock(self) -> None:
        while True:
            self._times_changed.clear()
            wait: float | None = None
            while self._heap:
                at, turn, key = self._heap[0]
                due = self._later.get(key)
                if due is None or due.turn != turn:
                    heapq.heappop(self._heap)
                elif at <= self._clock():
                    heapq.heappop(self._heap)
                    self.add(key)
                else:
                    wait = at - self._clock()
                    break
            try:
                async with asyncio.timeout(wait):
                    await self._times_changed.wait()
            except TimeoutError:
                continue

    async def _work(self) -> None:
        while True:
            while not len(self):
                self._news.clear()
                await self._news.wait()
            key = self._next()
            self._working.add(key)
            try:
                await self._once(key)
            finally:
                self._working.discard(key)
                if key in self._again:
                    self.add(key, urgent=self._again.pop(key))

    def _next(self) -> KeyT:
        if self._urgent and (not self._waiting or self._in_a_row < URGENT_IN_A_ROW):
            self._in_a_row += 1
            return self._urgent.popitem(last=False)[0]
        self._in_a_row = 0
        return self._waiting.popitem(last=False)[0]

    async def _once(self, key: KeyT) -> None:
        started = self._clock()
        failure: Exception | None = None
        try:
            async with asyncio.timeout(self._timeout_seconds):
                again_seconds = await self._reconcile(key)
        except Exception as error:  # a poison key must not end its worker
            failure = error
            least = error.retry_after_seconds if isinstance(error, KubeError) else 0.0
            self._complain(key, error)
            self.counts.failed += 1
            self.add_failed(key, least)
        else:
            self.counts.done += 1
            self._backoffs.pop(key, None)
            if again_seconds is not None:
                self.add_later(key, again_seconds)
        seconds = self._clock() - started
        self.counts.seconds += seconds
        self._on_done(key, seconds, failure)

    def _complain(self, key: KeyT, error: Exception) -> None:
        expected = isinstance(error, KubeError | TimeoutError)
        said = str(error) or type(error).__name__
        backoff = self._backoffs.get(key)
        log.warning(
            "reconcile failed",
            queue=self.name,
            key=str(key),
            cause=said,
            failures=(backoff.failures if backoff else 0) + 1,
            # A programming error is worth its traceback, but not at every try.
            exc_info=error if not expected and backoff is None else None,
        )


class Debounce:
    """Turns many calls into one, shortly after the first.

    Args:
        call: what to do.
        seconds: how long to gather.
        most_seconds: while calls keep coming it gathers for twice as long each time, up to this.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        call: Callable[[], None],
        seconds: float,
        *,
        most_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._call = call
        self._least_seconds = seconds
        self._most_seconds = max(seconds, most_seconds)
        self._clock = clock
        self._seconds = seconds
        self._fired_at = -math.inf
        self._due: asyncio.TimerHandle | None = None

    def __call__(self) -> None:
        """Something changed."""
        if self._due is not None:
            return
        crowded = self._clock() - self._fired_at < self._seconds
        self._seconds = self._seconds * 2 if crowded else self._least_seconds
        self._seconds = min(self._seconds, self._most_seconds)
        self._due = asyncio.get_running_loop().call_later(self._seconds, self._fire)

    def _fire(self) -> None:
        self._due = None
        self._fired_at = self._clock()
        self._call()
