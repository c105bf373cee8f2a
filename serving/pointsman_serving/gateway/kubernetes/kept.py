"""Replicas that no EndpointSlice names any more though nobody has said that they are gone.

A slice without endpoints says that a pool has no replica. No slice at all says nothing: they go
with the operator's Deployment, whose garbage they are, while every replica serves on. The gateway
then keeps what it knew, and asks each of these replicas whether it is there; one that is not is
dropped for good. While a pool has a slice, its slices alone say who is there; should the others
follow one that went, what that one said comes back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import aiohttp
import structlog

from pointsman_api.endpoint_slices import PoolEndpoints
from pointsman_serving.gateway.health import Health, ask_alive, ask_health
from pointsman_serving.routing.types import ReplicaAddress

log = structlog.get_logger(__name__)

_INTERVAL_SECONDS = 1.0
_PROBE_SECONDS = 1.0
# For good, as nobody would say that it is back: what hangs for a moment the breaker ejects.
_FAILURES_UNTIL_GONE = 3
_MOST_AT_ONCE = 64
# Slices that are garbage go one after another.
_TOGETHER_SECONDS = 30.0


@dataclass(slots=True)
class _Pool:
    """What is known of one pool."""

    told: PoolEndpoints
    """What its slices said last, less what was found to be gone since then."""
    token: str | None
    """What its replicas asked for then: with another one it is another pool of the same name."""
    kept: tuple[ReplicaAddress, ...] = ()
    """Its replicas in use, while it has no slice."""
    failures: dict[ReplicaAddress, int] = field(default_factory=dict)
    warned: bool = False
    deleted: list[tuple[float, PoolEndpoints]] = field(default_factory=list)
    """What slices said that went one by one, and when they did."""


class KeptReplicas:
    """The last that slices said of each pool, and who of it is still there.

    Args:
        dropped: told the pool of which a replica is not there any more.
        clock: seconds; monotonic.
    """

    def __init__(self, dropped: Callable[[str], None], *, clock: Callable[[], float]) -> None:
        self._dropped = dropped
        self._clock = clock
        self._pools: dict[str, _Pool] = {}

    def __len__(self) -> int:
        """How many replicas are in use without a slice."""
        return sum(len(pool.kept) for pool in self._pools.values())

    @property
    def pools(self) -> set[str]:
        """The pools whose replicas are kept."""
        return {name for name, pool in self._pools.items() if pool.kept}

    def told(self, name: str, endpoints: PoolEndpoints, token: str | None) -> None:
        """A pool's slices are there, and say this; it holds, whatever was known before."""
        known = self._pools.get(name)
        if known is not None and known.warned:
            log.info("the replicas of a pool have an EndpointSlice again", pool=name)
        # One that says that there is none speaks for those that went before it, too.
        deleted = [] if known is None or not endpoints.endpoints else known.deleted
        self._pools[name] = _Pool(endpoints, token, deleted=deleted)

    def slice_deleted(self, name: str, endpoints: PoolEndpoints) -> None:
        """A slice of a pool that said this is gone."""
        known = self._pools.get(name)
        if known is not None:
            known.deleted = [*self._lately(known), (self._clock(), endpoints)]

    def untold(self, name: str, token: str | None) -> PoolEndpoints | None:
        """A pool has no slice: what holds of what was said last; None: nothing."""
        known = self._pools.get(name)
        if known is None:
            return None
        if None not in (token, known.token) and known.token != token:
            del self._pools[name]
            return None
        there = {each.replica for each in known.told.endpoints}
        for _, gone in self._lately(known):
            new = tuple(each for each in gone.endpoints if each.replica not in there)
            known.told = replace(known.told, endpoints=(*known.told.endpoints, *new))
            there.update(each.replica for each in new)
        # Who is dropped from now on must not come back.
        known.deleted = []
        return known.told

    def _lately(self, pool: _Pool) -> list[tuple[float, PoolEndpoints]]:
        horizon = self._clock() - _TOGETHER_SECONDS
        return [each for each in pool.deleted if each[0] >= horizon]

    def use(self, name: str, addresses: tuple[ReplicaAddress, ...]) -> None:
        """These replicas of a pool without a slice are in use: they are asked from now on."""
        self._pools[name].kept = addresses

    def retain(self, names: Iterable[str]) -> None:
        """Forget all pools but these."""
        kept = set(names)
        self._pools = {name: pool for name, pool in self._pools.items() if name in kept}

    async def run(self) -> None:
        """Ask after the kept replicas until cancelled."""
        connector = aiohttp.TCPConnector(limit=_MOST_AT_ONCE, force_close=True)
        async with aiohttp.ClientSession(connector=connector) as session:
            while True:
                await asyncio.sleep(_INTERVAL_SECONDS)
                await self._ask_all(session)

    async def _ask_all(self, session: aiohttp.ClientSession) -> None:
        turns = asyncio.Semaphore(_MOST_AT_ONCE)
        for name, pool in self._pools.items():
            if pool.kept and not pool.warned:
                pool.warned = True
                # Said now, not at once: a pool that was deleted leaves the route table too.
                log.warning(
                    "a pool has no EndpointSlice any more; its replicas are used while they answer",
                    pool=name,
                    replicas=len(pool.kept),
                    next_step="see whether the operator runs; it writes the slices",
                )

        async def ask(name: str, pool: _Pool, address: ReplicaAddress) -> None:
            async with turns:
                health = await _ask(session, address)
            # Meanwhile a slice may have said something about it.
            if self._pools.get(name) is pool and address in pool.kept:
                self._note(name, pool, address, health)

        await asyncio.gather(
            *(
                ask(name, pool, address)
                for name, pool in self._pools.items()
                for address in pool.kept
            )
        )

    def _note(self, name: str, pool: _Pool, address: ReplicaAddress, health: Health) -> None:
        if health is Health.ANSWERED:
            pool.failures.pop(address, None)
        if health is not Health.SILENT:
            return
        failures = pool.failures[address] = pool.failures.get(address, 0) + 1
        if failures < _FAILURES_UNTIL_GONE:
            return
        replica = address.key.replica
        log.warning("a replica without an EndpointSlice is gone", pool=name, replica=replica)
        del pool.failures[address]
        pool.told = replace(
            pool.told,
            endpoints=tuple(each for each in pool.told.endpoints if each.replica != replica),
        )
        pool.kept = tuple(each for each in pool.kept if each != address)
        self._dropped(name)


async def _ask(session: aiohttp.ClientSession, address: ReplicaAddress) -> Health:
    """Whether the replica is there, and still this pool's."""
    health = await ask_health(session, address, timeout_seconds=_PROBE_SECONDS)
    if health is not Health.SILENT or not address.alive_path:
        return health
    # Behind a full replica's limit its own path waits: then any answer there would be a no.
    own = replace(address, alive_path=address.health_path)
    if await ask_alive(session, own, timeout_seconds=_PROBE_SECONDS) is Health.ANSWERED:
        return Health.SILENT
    alive = replace(address, health_path=address.alive_path)
    return await ask_health(session, alive, timeout_seconds=_PROBE_SECONDS)
