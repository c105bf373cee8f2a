"""Where replicas come from. Every source tells the full list of a pool, again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import aiohttp
import structlog

from pointsman_api.route_table import BackendType, PoolEntry, RouteTable
from pointsman_serving.engines.serve_listing import ServeTarget, read_serve_listing
from pointsman_serving.routing.types import ReplicaAddress, ReplicaKey

log = structlog.get_logger(__name__)

Publish = Callable[[str, Sequence[ReplicaAddress]], None]
"""Takes a pool and all its replicas; what is known already costs nothing."""

# Ray's own: answered before a request slot is taken. What lies under the route prefix waits
# behind max_ongoing_requests, so that a full replica would look dead.
_ALIVE_PATH = "/-/healthz"


class ReplicaSource(Protocol):
    """Finds the replicas of some pools."""

    async def run(self, table: Callable[[], RouteTable], publish: Publish) -> None:
        """Publish what there is, at least whenever it changes, until cancelled.

        Args:
            table: the route table that is in force now; it may change at any time.
        """


class RayServeSource:
    """The replicas of Ray Serve applications, read from Ray's own list (direct ingress).

    An application has its pool's name. While the list cannot be read, the last good one stays:
    a dead replica in it is what the breaker is for.

    Args:
        dashboard_url: of Ray's dashboard, such as ``http://127.0.0.1:8265``.
        token: Ray's bearer token; empty where its authentication is off.
        interval_seconds: between two readings. Ray keeps serving from a stopping replica for
            its draining period, which must be longer.
        timeout_seconds: for one reading.
    """

    def __init__(
        self,
        *,
        dashboard_url: str,
        token: str = "",
        interval_seconds: float = 1.0,
        timeout_seconds: float = 5.0,
    ) -> None:
        self._url = f"{dashboard_url.rstrip('/')}/api/serve/applications/"
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        self._interval_seconds = interval_seconds
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._away = False

    async def run(self, table: Callable[[], RouteTable], publish: Publish) -> None:
        """See :class:`ReplicaSource`."""
        async with aiohttp.ClientSession(headers=self._headers, timeout=self._timeout) as session:
            while True:
                await self._read_once(session, table(), publish)
                await asyncio.sleep(self._interval_seconds)

    async def _read_once(
        self, session: aiohttp.ClientSession, table: RouteTable, publish: Publish
    ) -> None:
        try:
            async with session.get(self._url) as response:
                response.raise_for_status()
                listing = await response.json()
            lists = serve_addresses(listing, table.pools)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            if not self._away:
                log.warning("Ray's list of replicas is away; the last one stays", cause=str(error))
            self._away = True
            return
        if self._away:
            log.info("Ray's list of replicas is back")
            self._away = False
        for pool, addresses in lists.items():
            publish(pool, addresses)


def serve_addresses(
    listing: object, pools: Mapping[str, PoolEntry]
) -> dict[str, tuple[ReplicaAddress, ...]]:
    """What a reading of ``GET /api/serve/applications/`` says about each Ray Serve pool.

    A pool is left out where the reading says nothing about it: right after its application was
    changed, Serve lists no deployments for seconds while all old replicas serve on.

    Raises:
        ValueError: the document has another shape.
    """
    statuses = read_serve_listing(listing)
    lists: dict[str, tuple[ReplicaAddress, ...]] = {}
    for pool in pools.values():
        if pool.backend is not BackendType.RAY_SERVE:
            continue
        status = statuses.get(application_name(pool.name))
        if status is None:
            lists[pool.name] = ()
        elif status.listed:
            lists[pool.name] = tuple(
                serve_address(pool, target, prefix=status.base_path) for target in status.targets
            )
    return lists


def application_name(pool: str) -> str:
    """The Serve application of a pool's key: its name without the namespace."""
    return pool.rpartition("/")[2]


def serve_address(pool: PoolEntry, target: ServeTarget, *, prefix: str) -> ReplicaAddress:
    """The address of a replica that Ray Serve runs.

    Args:
        prefix: the application's route prefix, such as ``/NAME``.
    """
    return ReplicaAddress(
        # Ray's replica id is new for every life, so a restarted replica is a new one.
        key=ReplicaKey(pool.name, target.replica),
        host=target.host,
        port=target.port,
        base_path=f"{prefix}/v1",
        health_path=f"{prefix}/health",
        alive_path=_ALIVE_PATH,
        model_name=pool.served_model_name,
        sequence_slots=pool.sequence_slots,
    )
