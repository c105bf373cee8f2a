"""Noticing replicas that are dead without a word, and asking ejected ones whether they are back.

A replica that is stopped, hangs, sits on a lost node or behind dropped packets keeps its
connections open in silence. Silence alone proves nothing, for a long prefill is silent too: so
where requests are open and no byte has come for a while, the replica is asked whether it is
there, on a connection of its own; any answer is one. A replica that hangs and yet answers that
is not found here: the time limits of the requests end that. Only an ejected replica must say
that it is well before it gets requests again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Final

import aiohttp
import structlog

from pointsman_serving.gateway.endpoint import Endpoint
from pointsman_serving.gateway.health import Health, ask_alive, ask_health
from pointsman_serving.gateway.metrics import Metrics
from pointsman_serving.gateway.upstream import Upstreams
from pointsman_serving.routing.scheduler import Scheduler
from pointsman_serving.routing.types import ReplicaAddress

log = structlog.get_logger(__name__)

LOST: Final = "the replica does not answer its health probe"

_TICK_SECONDS: Final = 0.1
_FAILURES_UNTIL_LOST: Final = 2
# A refused connection fails at once: that is no second opinion.
_SHORTEST_BETWEEN_SECONDS: Final = 0.25
_LONGEST_PAUSE_SECONDS: Final = 5.0
# Where the gateway itself could not ask.
_UNKNOWN_PAUSE_SECONDS: Final = 0.5
# Where a whole node is silent, its replicas are asked in waves: few at a time.
_MOST_STARTED_PER_TICK: Final = 32
_MOST_AT_ONCE: Final = 128
# A tick that comes so much too late says that this process stood still, not the replicas.
_STALL_SECONDS: Final = 0.5


@dataclass(slots=True)
class _Watch:
    """What is known of one endpoint since requests were open there in silence."""

    due_at: float
    """When it is asked whether it is there, unless a byte comes before."""
    pause_seconds: float
    heard_at: float
    asking: bool = False


class Vigil:
    """Asks after replicas that are silent or ejected; only those that have a health path.

    A silent replica is lost when two questions in a row got no answer in time: the scheduler is
    told, and every request that is open there goes on elsewhere. At the settings' defaults that
    is about four seconds after its last byte.

    Args:
        silence_seconds: how long a replica with open requests may say nothing.
        probe_seconds: how long an answer about its health may take.
        woken: called when a replica may be tried again.
        clock: seconds; the scheduler's.
    """

    def __init__(
        self,
        upstreams: Upstreams,
        scheduler: Scheduler,
        metrics: Metrics,
        *,
        silence_seconds: float,
        probe_seconds: float,
        woken: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._upstreams = upstreams
        self._scheduler = scheduler
        self._trouble = metrics.trouble
        self._silence_seconds = silence_seconds
        self._probe_seconds = probe_seconds
        self._woken = woken
        self._clock = clock
        self._watches: dict[Endpoint, _Watch] = {}
        self._ejected: set[ReplicaAddress] = set()
        """Those that are being asked because they are ejected."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._stalled_at = float("-inf")

    async def run(self) -> None:
        """Keep watch until cancelled."""
        # Each question is a connection of its own: a kept one says nothing about new ones.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(connector=connector) as session:
            try:
                while True:
                    before = self._clock()
                    await asyncio.sleep(_TICK_SECONDS)
                    now = self._clock()
                    if now - before > _TICK_SECONDS + _STALL_SECONDS:
                        self._stalled_at = now
                    self._look(session, now)
            finally:
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)

    def _look(self, session: aiohttp.ClientSession, now: float) -> None:
        """Start the questions that are due."""
        may_start = min(_MOST_STARTED_PER_TICK, _MOST_AT_ONCE - len(self._tasks))
        for endpoint in self._silent(now):
            if may_start <= 0:
                return
            may_start -= 1
            self._watches[endpoint].asking = True
            self._start(self._ask_silent(session, endpoint, self._watches[endpoint]))
        for address in self._scheduler.wanting_health(now):
            if may_start <= 0:
                return
            if address not in self._ejected:
                may_start -= 1
                self._ejected.add(address)
                self._start(self._ask_ejected(session, address))

    def _start(self, question: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(question)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _silent(self, now: float) -> list[Endpoint]:
        """Endpoints where nothing was heard for too long since requests were open there.

        Clients that have less patience take nothing back: the question of whether a replica is
        there stays open until it is heard or has answered.
        """
        watches: dict[Endpoint, _Watch] = {}
        due: list[Endpoint] = []
        for endpoint in self._upstreams.endpoints():
            if not endpoint.address.health_path:
                continue
            watch = self._watches.get(endpoint)
            if not endpoint.busy and (watch is None or (endpoint.heard and not watch.asking)):
                continue
            if watch is None:
                watch = _Watch(now + self._silence_seconds, self._silence_seconds, now)
            elif endpoint.heard or self._stalled_at == now:
                watch.heard_at = now
                watch.due_at = now + self._silence_seconds
                watch.pause_seconds = self._silence_seconds
            elif now >= watch.due_at and not watch.asking:
                due.append(endpoint)
            endpoint.heard = False
            watches[endpoint] = watch
        self._watches = watches
        return due

    async def _ask_silent(
        self, session: aiohttp.ClientSession, endpoint: Endpoint, watch: _Watch
    ) -> None:
        """Ask up to twice; without any sign of life the replica is lost."""
        try:
            for number in range(_FAILURES_UNTIL_LOST):
                began = self._clock()
                alive = await ask_alive(
                    session, endpoint.address, timeout_seconds=self._probe_seconds
                )
                self._trouble.health_probes[alive.value] += 1
                if alive is Health.UNKNOWN:
                    watch.due_at = self._clock() + watch.pause_seconds
                    return
                if alive is Health.ANSWERED:
                    if not endpoint.busy:
                        self._watches.pop(endpoint, None)
                        return
                    watch.due_at = self._clock() + watch.pause_seconds
                    watch.pause_seconds = min(2 * watch.pause_seconds, _LONGEST_PAUSE_SECONDS)
                    return
                if number + 1 < _FAILURES_UNTIL_LOST:
                    took = self._clock() - began
                    await asyncio.sleep(max(0.0, _SHORTEST_BETWEEN_SECONDS - took))
                if endpoint.heard or watch.heard_at >= began or self._stalled_at >= began:
                    return
            self._lose(endpoint)
        finally:
            watch.asking = False

    def _lose(self, endpoint: Endpoint) -> None:
        key = endpoint.address.key
        self._watches.pop(endpoint, None)
        log.warning(
            "replica lost", replica="/".join(key), reason=LOST, open_requests=len(endpoint.busy)
        )
        self._trouble.lost_replicas[key.pool] += 1
        # Under the same name another process may answer by now.
        if self._scheduler.address(key) == endpoint.address:
            self._scheduler.failed(key, now=self._clock(), hard=True)
        self._upstreams.lose(endpoint, LOST)

    async def _ask_ejected(self, session: aiohttp.ClientSession, address: ReplicaAddress) -> None:
        try:
            health = await ask_health(session, address, timeout_seconds=self._probe_seconds)
            self._trouble.health_probes[health.value] += 1
            if health is Health.UNKNOWN:
                await asyncio.sleep(_UNKNOWN_PAUSE_SECONDS)
                return
            answered = health is Health.ANSWERED
            self._scheduler.health(address, now=self._clock(), answered=answered)
            if answered:
                self._woken()
        finally:
            self._ejected.discard(address)
