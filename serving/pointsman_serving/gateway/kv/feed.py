"""One replica's KV cache events, followed over ZeroMQ for as long as they can be.

Every batch has a number. What was missed is asked for again, from the replica's replay port;
what cannot be had any more voids all that was known. A connection that ends may have been a
process that ended, so that voids it too (a replica that comes back has an empty cache).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import structlog
import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from pointsman_serving.gateway.kv.wire import KvPorts, decode_events
from pointsman_serving.gateway.loop_share import LoopShare
from pointsman_serving.gateway.news import News
from pointsman_serving.routing.kv.index import KvIndex
from pointsman_serving.routing.types import ReplicaKey

log = structlog.get_logger(__name__)

CONNECT_SECONDS = 5.0
REPLAY_SECONDS = 5.0
"""The replay's next batch must come within this."""
LONGEST_RETRY_SECONDS = 60.0

_FIRST_RETRY_SECONDS = 1.0
_PROVEN_SECONDS = 60.0
_REPLAYS = 64
_END = (1 << 64) - 1
# A batch is what one step of the engine did; together with the count this bounds what a replica
# can make the gateway hold.
_MAX_BATCH_BYTES = 1024 * 1024
_MAX_BATCHES_HELD = 128
_HEARTBEAT_MS = 2_000
_SILENCE_MS = 6_000

_WATCHED = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


class FeedError(Exception):
    """Why a replica's events cannot be followed; a clause."""


class FeedState(StrEnum):
    """How a feed is doing."""

    CONNECTING = "connecting"
    LIVE = "live"
    BROKEN = "broken"


@dataclass(slots=True)
class FeedCounts:
    """Of all feeds of a pool so far."""

    events: int = 0
    gaps: int = 0
    failures: int = 0


class KvFeed:
    """Follows one replica until it is cancelled.

    Args:
        index: is told what the replica tells.
        loop_share: shared by all feeds.
        clock: seconds; monotonic.
    """

    def __init__(
        self,
        key: ReplicaKey,
        host: str,
        ports: KvPorts,
        *,
        context: zmq.asyncio.Context,
        index: KvIndex,
        counts: FeedCounts,
        loop_share: LoopShare,
        news: News,
        clock: Callable[[], float],
    ) -> None:
        self.key = key
        self.state = FeedState.CONNECTING
        self._host = f"[{host}]" if ":" in host else host
        self._ports = ports
        self._context = context
        self._index = index
        self._counts = counts
        self._loop_share = loop_share
        self._news = news
        self._clock = clock
        self._expected = 0

    async def run(self) -> None:
        """Follow, and begin anew when that has failed; never returns.

        Who cancels it tells the index that it has stopped.
        """
        retry = _FIRST_RETRY_SECONDS
        while True:
            since = self._clock()
            self.state = FeedState.CONNECTING
            try:
                reason = await self._follow()
            except Exception:
                log.exception("a fault in following KV events", replica="/".join(self.key))
                reason = "a fault of the gateway"
            # Not where it is cancelled: another feed of this replica may have begun by then.
            self._index.stopped(self.key)
            self.state = FeedState.BROKEN
            self._counts.failures += 1
            tell = log.warning if self._news.is_new("kv events", self.key) else log.debug
            tell(
                "a replica's KV events cannot be followed; its cache is estimated meanwhile",
                replica="/".join(self.key),
                reason=reason,
            )
            if self._clock() - since > _PROVEN_SECONDS:
                retry = _FIRST_RETRY_SECONDS
            await asyncio.sleep(retry)
            retry = min(2 * retry, LONGEST_RETRY_SECONDS)

    async def _follow(self) -> str:
        """Follow as far as it goes; returns why it goes no further."""
        reason = ""
        try:
            async with self._subscription() as (events, monitor), asyncio.TaskGroup() as group:
                connected = asyncio.Event()
                group.create_task(_watch(monitor, connected))
                try:
                    async with asyncio.timeout(CONNECT_SECONDS):
                        await connected.wait()
                except TimeoutError:
                    raise FeedError(f"no connection within {CONNECT_SECONDS:g} s") from None
                await self._read(events)
        except* (FeedError, zmq.ZMQError) as failed:
            reason = str(failed.exceptions[0])
        return reason

    @asynccontextmanager
    async def _subscription(
        self,
    ) -> AsyncIterator[tuple[zmq.asyncio.Socket, zmq.asyncio.Socket]]:
        events = self._socket(zmq.SUB)
        try:
            events.setsockopt(zmq.SUBSCRIBE, b"")
            monitor = events.get_monitor_socket(_WATCHED)
            events.connect(f"tcp://{self._host}:{self._ports.events}")
            yield events, monitor
        finally:
            events.disable_monitor()
            events.close(linger=0)

    def _socket(self, kind: int) -> Any:
        socket = self._context.socket(kind)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.IPV6, 1),
            (zmq.RCVHWM, _MAX_BATCHES_HELD),
            (zmq.MAXMSGSIZE, _MAX_BATCH_BYTES),
            # Who is connected to anew may be another process.
            (zmq.RECONNECT_IVL, -1),
            (zmq.HEARTBEAT_IVL, _HEARTBEAT_MS),
            (zmq.HEARTBEAT_TIMEOUT, _SILENCE_MS),
        ):
            socket.setsockopt(option, value)
        return socket

    async def _read(self, events: zmq.asyncio.Socket) -> None:
        self._expected = 0
        self._index.started(self.key, complete=True)
        await self._replay()
        self._index.caught_up(self.key)
        self.state = FeedState.LIVE
        while True:
            frames = await events.recv_multipart()
            if len(frames) != 3 or len(frames[1]) != 8:
                raise FeedError(f"it published {len(frames)} frames, not topic, number and batch")
            number = int.from_bytes(frames[1], "big")
            if number > self._expected:
                self._counts.gaps += 1
                await self._replay()
            if number > self._expected:
                self._begin_at(number)
            if number == self._expected:
                await self._take(frames[2])

    def _begin_at(self, number: int) -> None:
        """What was before that batch cannot be had any more."""
        self._index.started(self.key, complete=False)
        self._index.caught_up(self.key)
        self._expected = number

    async def _replay(self) -> None:
        """Ask for what was missed, as often as parts of the answer are missing too."""
        replay = self._socket(zmq.DEALER)
        try:
            replay.connect(f"tcp://{self._host}:{self._ports.replay}")
            for _ in range(_REPLAYS):
                if await self._replay_once(replay):
                    return
        finally:
            replay.close(linger=0)

    async def _replay_once(self, replay: zmq.asyncio.Socket) -> bool:
        """Whether the answer had no gaps."""
        await replay.send_multipart([b"", self._expected.to_bytes(8, "big")])
        first = True
        whole = True
        while True:
            try:
                async with asyncio.timeout(REPLAY_SECONDS):
                    frames = await replay.recv_multipart()
            except TimeoutError:
                raise FeedError(f"no replay within {REPLAY_SECONDS:g} s") from None
            if len(frames) != 4 or len(frames[2]) != 8:
                raise FeedError(f"it replayed {len(frames)} frames, not those of a batch")
            number = int.from_bytes(frames[2], "big")
            if number == _END:
                return whole
            if first and number > self._expected:
                self._begin_at(number)
            first = False
            if number > self._expected:
                whole = False
            elif number == self._expected:
                await self._take(frames[3])

    async def _take(self, payload: bytes) -> None:
        await self._loop_share.turn()
        before = time.perf_counter()
        try:
            events = decode_events(payload)
        except ValueError as error:
            raise FeedError(str(error)) from error
        self._index.apply(self.key, events)
        self._expected += 1
        self._counts.events += len(events)
        self._loop_share.spent(time.perf_counter() - before)


async def _watch(monitor: zmq.asyncio.Socket, connected: asyncio.Event) -> None:
    """Say when the connection is there; raise when it is not any more."""
    while True:
        message: Any = await recv_monitor_message(monitor)
        if message["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            connected.set()
        else:
            raise FeedError("the connection ended" if connected.is_set() else "no connection")
