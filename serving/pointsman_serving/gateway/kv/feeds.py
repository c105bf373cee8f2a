"""The replicas whose KV cache events are followed: begun by what they say, ended with them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from pointsman_api.route_table import PoolEntry, PrefixIndex
from pointsman_serving.gateway.kv.wire import parse_ports
from pointsman_serving.gateway.loop_share import LoopShare
from pointsman_serving.gateway.news import News
from pointsman_serving.routing.kv.index import KvIndex
from pointsman_serving.routing.types import ReplicaAddress, ReplicaKey

if TYPE_CHECKING:
    import zmq.asyncio

    from pointsman_serving.gateway.kv.feed import FeedCounts, KvFeed

log = structlog.get_logger(__name__)

_MOST_FEEDS = 512
_MOST_SOCKETS = 8 * _MOST_FEEDS
_SHARE = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedReading:
    """The feeds of one pool."""

    states: Mapping[str, int]
    events: int
    gaps: int
    failures: int


@dataclass(slots=True, kw_only=True)
class _Followed:
    address: ReplicaAddress
    value: bytes
    feed: KvFeed
    task: asyncio.Task[None]


class KvFeeds:
    """All feeds of one gateway. Needs pyzmq once a pool wants its events followed.

    Args:
        index: is told what replicas tell.
        pools: the route table's pools now.
        clock: seconds; monotonic.
    """

    def __init__(
        self,
        index: KvIndex,
        pools: Callable[[], Mapping[str, PoolEntry]],
        *,
        news: News,
        clock: Callable[[], float],
    ) -> None:
        self._index = index
        self._pools = pools
        self._news = news
        self._clock = clock
        self._loop_share = LoopShare(share=_SHARE, clock=clock)
        self._context: zmq.asyncio.Context | None = None
        self._followed: dict[ReplicaKey, _Followed] = {}
        self._counts: dict[str, FeedCounts] = {}

    def wants(self, pool: str) -> bool:
        """Whether a pool's replicas are to be followed."""
        entry = self._pools().get(pool)
        return entry is not None and entry.prefix_index is PrefixIndex.EVENTS

    def announced(self, address: ReplicaAddress, value: bytes) -> None:
        """A replica has said where its events are: follow them, unless that is done already.

        Args:
            value: of the header ``x-pointsman-kv-events``.
        """
        key = address.key
        followed = self._followed.get(key)
        if followed is not None:
            if followed.value == value and followed.address == address:
                return
            self._end(key)
        ports = parse_ports(value)
        if ports is None or not self.wants(key.pool) or len(self._followed) >= _MOST_FEEDS:
            return
        context = self._zmq_context()
        if context is None:
            return
        from pointsman_serving.gateway.kv.feed import FeedCounts, KvFeed

        feed = KvFeed(
            key,
            address.host,
            ports,
            context=context,
            index=self._index,
            counts=self._counts.setdefault(key.pool, FeedCounts()),
            loop_share=self._loop_share,
            news=self._news,
            clock=self._clock,
        )
        task = asyncio.get_running_loop().create_task(feed.run())
        self._followed[key] = _Followed(address=address, value=value, feed=feed, task=task)

    def retain(self, replicas: Mapping[str, Sequence[ReplicaAddress]]) -> None:
        """End the feeds of replicas that are not among these, or not to be followed any more.

        Args:
            replicas: by pool.
        """
        for key, followed in list(self._followed.items()):
            if not self.wants(key.pool) or followed.address not in replicas.get(key.pool, ()):
                self._end(key)

    def close(self) -> None:
        """End all."""
        tasks = [followed.task for followed in self._followed.values()]
        for key in list(self._followed):
            self._end(key)
        context, self._context = self._context, None
        if context is not None:
            # Each feed closes its sockets first.
            ended = asyncio.gather(*tasks, return_exceptions=True)
            ended.add_done_callback(lambda _: context.destroy(linger=0))

    def readings(self) -> dict[str, FeedReading]:
        """The pools that have, or had, feeds."""
        states: dict[str, Counter[str]] = {pool: Counter() for pool in self._counts}
        for key, followed in self._followed.items():
            states[key.pool][followed.feed.state.value] += 1
        return {
            pool: FeedReading(
                states=states[pool],
                events=counts.events,
                gaps=counts.gaps,
                failures=counts.failures,
            )
            for pool, counts in self._counts.items()
        }

    def _end(self, key: ReplicaKey) -> None:
        self._followed.pop(key).task.cancel()
        self._index.stopped(key)

    def _zmq_context(self) -> zmq.asyncio.Context | None:
        if self._context is None:
            try:
                import zmq.asyncio
            except ImportError:
                if self._news.is_new("no pyzmq"):
                    log.warning(
                        "pools with prefixIndex Events are estimated: this gateway has no pyzmq; "
                        "install pointsman[gateway]"
                    )
                return None
            self._context = zmq.asyncio.Context()
            self._context.set(zmq.MAX_SOCKETS, _MOST_SOCKETS)
        return self._context
